"""Stage 1 with an LMM embedder's weights, which have no LM head of their own, in stock LLaMA-Factory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import train
from transformers import AutoConfig

from llamafactory_ext.sft_classifier.checks import check_language_head
from ra_hmd.core.artifacts import read_json, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.tiny import make_tiny_embedder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_embedder(tmp_path_factory.mktemp("embedder") / "model")


def test_a_random_language_head_is_refused_unless_its_loss_is_off(embedder: Path, tmp_path: Path) -> None:
    untied = Path(shutil.copytree(embedder, tmp_path / "untied"))
    values = read_json(untied / "config.json")
    values["text_config"]["tie_word_embeddings"] = values["tie_word_embeddings"] = False
    write_json(untied / "config.json", values)
    config = AutoConfig.from_pretrained(untied)
    with pytest.raises(UserError, match="has no LM head in its weights"):
        check_language_head(config, str(untied), None, 1.0)
    check_language_head(config, str(untied), None, 0.0)
    check_language_head(AutoConfig.from_pretrained(embedder), str(embedder), None, 1.0)  # shares the embeddings


@pytest.mark.slow
def test_joint_training_without_the_language_loss_moves_the_hidden_states(
    embedder: Path, stage1_config: Callable[..., dict[str, Any]], memes: Path, tmp_path: Path
) -> None:
    changes = {"model_name_or_path": str(embedder), "rgcl": True, "loss_ratio": [0.0, 1.0]}
    printed = train(stage1_config(tmp_path / "run", "qwen3_vl", **changes), tmp_path)
    assert "do not read LMH" in printed
    run = open_run(tmp_path / "run")
    records = read_memes(memes / "confounders_a.json", media_dir=memes)[:8]
    extract_hidden_states(run, records, tmp_path / "tuned", num_workers=0)
    extract_hidden_states(run.untuned(), records, tmp_path / "untuned", num_workers=0)
    tuned, untuned = (read_features(tmp_path / name).hidden for name in ("tuned", "untuned"))
    assert np.isfinite(tuned).all()
    assert np.abs(tuned - untuned).max() > 1e-3
