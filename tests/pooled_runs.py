"""Runs of random weights on tiny models, and memes, for tests of the vLLM backend."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ra_hmd.models.checkpoint import Run
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.head import HeadConfig, MemeHead, save_head
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.models.pooling.model import PooledModel
from ra_hmd.models.tokenization import InputSettings

CPU = torch.device("cpu")
SIZES = ((96, 96), (320, 40), (31, 200), (20, 20), (640, 480))
CAPTIONS = ("a cat", "", "two\nlines <|im_end|> and <image>", "ünïcödé 漢字 🍰", 'he said "cake" ' * 12)
PIXELS = 160 * 160


def drawn(size: tuple[int, int]) -> Image.Image:
    image = Image.effect_mandelbrot(size, (-2, -1.2, 1, 1.2), 60).convert("RGB")
    ImageDraw.Draw(image).rectangle((2, 2, size[0] // 2, size[1] // 2), fill=(200, 60, 20))
    return image


MEMES = list(zip(CAPTIONS, map(drawn, SIZES), strict=True))


def lora_run(model: Path, folder: Path) -> Run:
    """A run with a LoRA and a head of random weights on a tiny model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    name = json.loads((model / "config.json").read_text())["model_type"]
    torch.manual_seed(5)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    targets = ".*language_model.*(q_proj|v_proj|o_proj|gate_proj|down_proj)"
    tuned = get_peft_model(loaded, LoraConfig(r=8, lora_alpha=32, target_modules=targets, init_lora_weights=False))
    tuned.save_pretrained(folder)
    head = MemeHead(HeadConfig(input_dim=64, proj_dim=16))
    save_head(folder, head.config, head.state_dict())
    settings = InputSettings(template=FAMILIES[name].templates[0], cutoff_len=512, image_max_pixels=PIXELS)
    return Run(folder, settings, str(model), adapter=folder, head=folder)


def columns(model: MemeModel | PooledModel) -> dict[str, torch.Tensor]:
    batch: Any = model.collate([model.encode(text, image) for text, image in MEMES])  # type: ignore[misc]
    return model.columns(batch)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert (found[name] - value.float()).abs().max() < 1e-4, name
