"""Records with clusters and guidance: tokens, tokenised data that is used again, records that cannot be used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from expert_runs import TEXTS, GuideFiles, cluster_ids
from json_files import read_json
from llamafactory.train import tuner
from PIL import Image

from llamafactory_ext.sft_classifier import workflow
from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.meme_files import read_memes
from ra_hmd.models.cluster_assignment import Clusters

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]


class _EnoughError(Exception):
    """Ends a run whose records have been looked at."""


@pytest.fixture
def data(memes: Path, tmp_path: Path) -> Path:
    """Twelve records of domain A with pictures that a test may change."""
    shutil.copytree(memes, tmp_path / "data")
    path = tmp_path / "data" / "confounders_a.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:12]))
    return tmp_path / "data"


@pytest.fixture
def records(
    expert_config: Config, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, Any]]]:
    """Rows of the training set as the trainer would get them; the model is not loaded."""
    kept: dict[str, Any] = {}
    load = workflow.load_records

    def noting(template: Any, *args: Any) -> Any:
        kept["template"], kept["module"] = template, load(template, *args)
        kept["tokenizer"] = args[4]["tokenizer"]
        raise _EnoughError

    def run(**changes: Any) -> list[dict[str, Any]]:
        with monkeypatch.context() as patch:
            patch.setattr(workflow, "load_records", noting)
            settings = {"dataset_dir": str(data), "eval_dataset": None, "overwrite_cache": None} | changes
            with pytest.raises(_EnoughError):
                tuner.run_exp(expert_config(tmp_path / "out", **settings), callbacks=[])
        rows = list(kept["module"]["train_dataset"])
        return [row | {"text": kept["tokenizer"].decode(row["input_ids"])} for row in rows]

    return run


def test_rows_have_their_cluster_and_its_text_between_image_and_question(
    records: Callable[..., list[dict[str, Any]]], data: Path, guides: GuideFiles
) -> None:
    rows = records()
    expected = cluster_ids(guides, read_memes(data / "confounders_a.json", media_dir=data))
    assert [row["cluster_id"] for row in rows] == expected
    assert len(set(expected)) > 1
    for row in rows:
        text = TEXTS[row["cluster_id"]]
        after = row["text"].partition("<|vision_end|>")[2]
        assert after.startswith(f"\n{text}\n\nThis is an image with: " if text else " This is an image with: ")
    without = records(guidance=None)
    assert [row["cluster_id"] for row in without] == expected
    assert not any(text in row["text"] for row in without for text in TEXTS if text)
    hydra_lora = records(guidance=None, clusters=None)
    assert not any("cluster_id" in row for row in hydra_lora)
    assert [row["text"] for row in hydra_lora] == [row["text"] for row in without]


def test_the_cache_of_rows_follows_clusters_and_guidance(
    records: Callable[..., list[dict[str, Any]]], guides: GuideFiles, tmp_path: Path
) -> None:
    before = [row["cluster_id"] for row in records()]
    shuffled = Clusters.open(guides.clusters).shuffled(2).copy_to(tmp_path / "shuffled")
    Guidance(("one", "two", "three"), shuffled.digest).copy_to(tmp_path / "other.json")
    rows = records(clusters=str(tmp_path / "shuffled"), guidance=str(tmp_path / "other.json"))
    assert [row["cluster_id"] for row in rows] != before
    assert all(f"\n{('one', 'two', 'three')[row['cluster_id']]}\n\n" in row["text"] for row in rows)


def test_tokenised_data_is_used_again_with_the_same_clusters_and_guidance_alone(
    records: Callable[..., list[dict[str, Any]]],
    expert_config: Config,
    data: Path,
    guides: GuideFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenized = {"tokenized_path": str(tmp_path / "tokenized")}
    rows = records(**tokenized)
    stated = read_json(tmp_path / "tokenized" / "ra_hmd_inputs.json").inputs
    assert stated.clusters == Clusters.open(guides.clusters).digest
    assert stated.guidance == Guidance.open(guides.guidance).digest
    with monkeypatch.context() as patch:
        patch.setattr(Clusters, "load", None)  # no encoder is needed
        assert records(**tokenized) == rows
    Guidance(("one", "two", "three"), stated.clusters).copy_to(tmp_path / "other.json")
    Clusters.open(guides.clusters).shuffled(2).copy_to(tmp_path / "shuffled")
    for changes, named in (
        ({"guidance": str(tmp_path / "other.json")}, "inputs.guidance: "),
        ({"guidance": None}, "inputs.guidance: "),
        ({"guidance": None, "clusters": str(tmp_path / "shuffled")}, "inputs.clusters: "),
    ):
        settings = {"dataset_dir": str(data), "eval_dataset": None} | tokenized | changes
        with pytest.raises(UserError, match="made with other settings") as error:
            tuner.run_exp(expert_config(tmp_path / "out", **settings), callbacks=[])
        assert named in str(error.value)


def test_records_without_a_cluster_are_listed_with_the_other_bad_ones(
    expert_config: Config, data: Path, tmp_path: Path
) -> None:
    path = data / "confounders_a.json"
    content = json.loads(path.read_text())
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    Image.new("RGB", (900, 4), (9, 9, 9)).save(tmp_path / "line.png")
    content[1]["images"] = [str(tmp_path / "cut.png")]
    content[2]["images"] = ["a/img/gone.png"]
    content[3]["images"] = [str(tmp_path / "line.png")]
    content[4]["messages"][0]["content"] = "<image> What is this?"
    path.write_text(json.dumps(content))
    config = expert_config(tmp_path / "out", dataset_dir=str(data), eval_dataset=None)
    with pytest.raises(UserError, match=r"records that cannot be used \(4\)") as error:
        tuner.run_exp(config, callbacks=[])
    message = str(error.value)
    assert "cut.png cannot be decoded" in message
    assert "gone.png does not exist" in message
    assert "its cluster cannot be found: " in message
    assert "`prompt_template`" in message
