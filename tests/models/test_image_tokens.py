"""Tokens of an image, predicted from its size, are those that the processor makes of its pixels."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.meme_model import MemeModel, load_encoder
from ra_hmd.models.tokenization import InputSettings

SIZES = [(1, 1), (27, 29), (48, 40), (300, 90), (90, 300), (768, 768), (1200, 5), (7, 1600), (3000, 2000), (28, 5600)]
LIMITS = [{}, {"image_max_pixels": 200 * 200, "image_min_pixels": 90 * 90}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("limits", LIMITS, ids=["default", "narrow"])
def test_predicted_image_tokens_are_the_processors(
    tiny: Callable[[str], Path], family: str, limits: dict[str, int]
) -> None:
    settings = InputSettings(template=FAMILIES[family].templates[0], cutoff_len=4096, **limits)
    encoder, _ = load_encoder(str(tiny(family)), settings)
    placeholder = encoder.processor.image_token_id
    for size in SIZES:
        ids = encoder.encode("", Image.new("RGB", size)).ids
        assert encoder.image_tokens(*size) == ids.count(placeholder), size


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_prediction_all_that_stands_for_the_image_is_counted(
    tiny: Callable[[str], Path], family: str
) -> None:
    encoder, _ = load_encoder(str(tiny(family)), InputSettings(template=FAMILIES[family].templates[0]))
    sizes = [(48, 40), (300, 90), (768, 768)]
    predicted = [encoder.image_tokens(*size) for size in sizes]
    encoder.family = None
    around = {encoder.image_tokens(*size) - tokens for size, tokens in zip(sizes, predicted, strict=True)}
    assert len(around) == 1, "separators do not depend on the size"
    assert around.pop() >= 0


@pytest.mark.parametrize("family", FAMILIES)
def test_images_that_are_cut_into_several_are_counted(tiny: Callable[[str], Path], family: str) -> None:
    settings = InputSettings(template=FAMILIES[family].templates[0], cutoff_len=4096)
    encoder, _ = load_encoder(str(tiny(family)), settings, crop_to_patches=True)
    without, _ = load_encoder(str(tiny(family)), settings)
    placeholder = encoder.processor.image_token_id
    base = encoder.count("", Image.new("RGB", (96, 96))) - encoder.image_tokens(96, 96)
    found = []
    for size in [(96, 96), (700, 300), (1400, 260), (300, 700)]:
        prompt = encoder.encode("", Image.new("RGB", size))
        assert len(prompt.ids) == base + encoder.image_tokens(*size), size
        found.append(prompt.ids.count(placeholder) > without.image_tokens(*size))
    assert any(found) == (family == "internvl")


def test_an_image_of_several_tiles_is_read_whatever_the_batch(tiny: Callable[[str], Path]) -> None:
    run = replace(open_backbone(str(tiny("internvl"))), loading={"crop_to_patches": True})
    model = MemeModel(run, torch.device("cpu"))
    images = [Image.effect_noise(size, 80).convert("RGB") for size in [(96, 96), (500, 200), (150, 330)]]
    rows = [model.encode("my cat", image) for image in images]
    assert len({model.length(row) for row in rows}) == len(rows)
    single = torch.cat([model.columns(model.collate([row]))["hidden"] for row in rows])
    torch.testing.assert_close(model.columns(model.collate(rows))["hidden"], single, atol=2e-4, rtol=2e-4)
    chats = [Chat([{"role": "user", "content": "<image> What?"}], [image]) for image in images]
    speaker = ChatModel(model)
    assert speaker.generate(chats, 4) == [speaker.generate([chat], 4)[0] for chat in chats]


def test_the_resizing_library_is_imported_only_when_it_is_used() -> None:
    code = "import sys, ra_hmd.models.tokenization, ra_hmd.models.caption_budget; print('qwen_vl_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
