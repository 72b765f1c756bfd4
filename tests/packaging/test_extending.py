"""CONTRIBUTING.md, "Four things that are one file each": an LMM family is added as described there.

A reader is added in tests/data/test_readers.py, a loss in tests/stage2, a bank backend in tests/memory_backend.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.families import FAMILIES, Family, family_of, register_family
from ra_hmd.models.families.llava import Llava
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.models.tiny import make_tiny_lmm
from ra_hmd.models.tokenization import check_family


@pytest.fixture
def added() -> Iterator[type[Family]]:
    """A family of one class: models of type `vipllava`, which transformers knows and we do not."""
    assert family_of("vipllava") is None

    class VipLlava(Llava):
        name = "vipllava"
        title = "ViP-LLaVA"
        templates = ("llava",)
        model = "VipLlavaForConditionalGeneration"

        def tiny_config(self, tokenizer, hidden_size, num_layers):  # type: ignore[no-untyped-def]
            from transformers import VipLlavaConfig

            plain = super().tiny_config(tokenizer, hidden_size, num_layers)
            text, vision = plain.text_config.to_dict(), plain.vision_config.to_dict()
            layers = {"vision_feature_layers": [-2, -1], "image_token_index": plain.image_token_id}
            return VipLlavaConfig(text_config=text, vision_config=vision, **layers)

    yield register_family(VipLlava)
    del FAMILIES["vipllava"]


def test_an_lmm_family(added: type[Family], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`template: qwen2_vl` does not fit a vipllava model.*`template: llava`"):
        check_family("vipllava", "qwen2_vl")
    with pytest.raises(ValueError, match="vipllava"):
        register_family(added)
    run = open_backbone(str(make_tiny_lmm("vipllava", tmp_path / "model", hidden_size=64, num_layers=2)))
    assert run.settings.template == "llava"
    model = MemeModel(run, torch.device("cpu"))
    row = model.encode("my cat", Image.new("RGB", (96, 96)))
    assert row["input_ids"].count(model.model.config.image_token_id) == model.encoder.image_tokens(96, 96)
    assert torch.isfinite(model.columns(model.collate([row]))["hidden"]).all()
