"""Length of captions against the token budget of a Stage 1 configuration."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from PIL import Image

from ra_hmd.data.guidance import Guidance
from ra_hmd.models.meme_model import load_encoder
from ra_hmd.models.stage1_config import read_stage1_config

_SMALL = (56, 56)


def excess_tokens(config: str | Path, model: str | None = None) -> Callable[[str, int, int], int]:
    """Return a function that counts the tokens by which a meme exceeds the budget of a Stage 1 YAML file.

    It takes the caption, the image's width and its height; zero or less means that the meme fits.

    Only the model's tokenizer and processor are loaded. The tokens of an image are predicted from its size; those of
    the words are the difference that the caption makes to the question.

    Args:
        config: The YAML file that will be trained with.
        model: Path or name of the model, in place of the file's `model_name_or_path`.

    Raises:
        UserError: a file without the keys that are needed, or a model whose tokenizer cannot be loaded.
    """
    stated = read_stage1_config(config)
    settings = stated.inputs
    tiling = bool(stated.loading.get("crop_to_patches"))
    encoder, _ = load_encoder(model or stated.model, settings, crop_to_patches=tiling)
    count = encoder.tokenizer.encode
    question = len(count(settings.prompt.render(""), add_special_tokens=False))

    image_tokens = cache(encoder.image_tokens)
    guidance = _longest_guidance(stated.guidance, count)
    without_image = encoder.count("", Image.new("L", _SMALL), guidance) - image_tokens(*_SMALL)

    def excess(caption: str, width: int, height: int) -> int:
        words = len(count(settings.prompt.render(encoder.plain(caption)), add_special_tokens=False)) - question
        return without_image + image_tokens(width, height) + words - encoder.budget

    return excess


def _longest_guidance(path: str | None, encode: Callable[..., list[int]]) -> str:
    """Text of a guidance file that has the most tokens; "" without a file."""
    if path is None:
        return ""
    return max(Guidance.open(path).texts, key=lambda text: len(encode(text, add_special_tokens=False)))
