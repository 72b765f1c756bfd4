"""Tokens of an image, predicted from its size, are those that the processor makes of its pixels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ra_hmd.models.meme_model import load_encoder
from ra_hmd.models.tokenization import FAMILY_TEMPLATES, InputSettings

SIZES = [(1, 1), (27, 29), (48, 40), (300, 90), (90, 300), (768, 768), (1200, 5), (7, 1600), (3000, 2000), (28, 5600)]
LIMITS = [{}, {"image_max_pixels": 200 * 200, "image_min_pixels": 90 * 90}]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("limits", LIMITS, ids=["default", "narrow"])
def test_predicted_image_tokens_are_the_processors(
    tiny: Callable[[str], Path], family: str, limits: dict[str, int]
) -> None:
    settings = InputSettings(template=FAMILY_TEMPLATES[family][0], **limits)
    encoder, _ = load_encoder(str(tiny(family)), settings)
    processor, plugin = encoder.processor, encoder.template.mm_plugin
    for size in SIZES:
        inputs = plugin._get_mm_inputs([Image.new("RGB", size)], [], [], processor)
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        assert encoder.image_tokens(*size) == rows * columns // processor.image_processor.merge_size**2, size


def test_the_resizing_library_is_imported_only_when_it_is_used() -> None:
    code = "import sys, ra_hmd.models.tokenization, ra_hmd.models.caption_budget; print('qwen_vl_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
