"""Tasks of several classes on the drawn memes, made from what each of them shows and says."""

import json
from pathlib import Path
from typing import Any

SINGLE = ("apart", "matching above", "together below")
SINGLE_PROMPT = '<image> This is an image with: "{text}" written on it. Do they match?'
SEVERAL = ("match", "above", "striped")
SEVERAL_PROMPT = '<image> This is an image with: "{text}" written on it. What is true?'


def true_labels(attributes: dict[str, Any]) -> tuple[int, list[int]]:
    """The three-class label and the label set of a drawn meme."""
    image, match = attributes["image"], attributes["image"]["subject"] == attributes["text"]["topic"]
    above = image["caption_place"] == "top"
    single = (1 if above else 2) if match else 0
    facts = (match, above, image["pattern"] in ("stripes", "dots"))
    return single, [index for index, fact in enumerate(facts) if fact]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
