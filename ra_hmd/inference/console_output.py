"""Verdicts on the images of a command line, as text or as JSON lines."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import Explain, Verdict

_NEIGHBOURS_SHOWN = 5


def check_images(images: Sequence[Path], texts: Sequence[str]) -> None:
    """Raise `UserError` unless each image is a file and there are as many captions as images, or none."""
    if texts and len(texts) != len(images):
        raise UserError(
            f"{len(texts)} --text for {len(images)} images: give one for each, in their order, or none; then they "
            "are read from the images."
        )
    missing = next((path for path in images if not path.exists()), None)
    if missing is not None:
        raise UserError(f"{missing} does not exist; check its path.")
    folder = next((path for path in images if path.is_dir()), None)
    if folder is not None:
        raise UserError(f"{folder} is a folder; classify its images with --input {folder} --output verdicts.jsonl.")


def judge_images(
    detector: Detector, images: Sequence[Path], texts: Sequence[str] = (), explain: Explain | None = None
) -> list[Verdict]:
    """Classify image files, whose ids are their paths.

    Args:
        detector: Detector to run.
        images: The files.
        texts: Their captions, in the same order; without captions these are read from the images.
        explain: See `Detector`.

    Raises:
        UserError: see `check_images` and `Detector`.
    """
    check_images(images, texts)
    captions: Sequence[str | None] = texts or [None] * len(images)
    return detector([Meme(str(path), path, text) for path, text in zip(images, captions, strict=True)], explain)


def as_lines(verdicts: Sequence[Verdict]) -> str:
    """A JSON object per line, as in a `.jsonl` file of `--output`."""
    return "\n".join(json.dumps(one.to_row(), ensure_ascii=False, allow_nan=False) for one in verdicts)


def as_text(verdicts: Sequence[Verdict]) -> str:
    """Each verdict with its scores, probabilities and nearest neighbours, and a caption that was read by OCR."""
    return "\n\n".join("\n".join(_lines(one)) for one in verdicts)


def _lines(one: Verdict) -> Iterator[str]:
    yield one.id
    if one.text_source != "given":
        yield f"  caption     {one.text} ({one.text_source})"
    if one.caption_check is not None:
        yield f"  caption     {_checked(one.caption_check)}"
    limit = "" if one.threshold is None else f" (threshold {_number(one.threshold)})"
    yield f"  verdict     {'left to a person' if one.verdict is None else one.verdict}, by {one.head}{limit}"
    if one.known is not None:
        yield f"  {_copy_of(one.known)}"
    for head, score in one.scores.items():
        yield f"  {head}         {_number(score)} (probability {_number(one.probabilities[head])})"
    if one.neighbours:
        yield "  nearest neighbours"
    for item in (one.neighbours or [])[:_NEIGHBOURS_SHOWN]:
        numbers = f"similarity {item['similarity']:.3f}  share {item['share']:.2f}"
        yield f"    {item['id']}  label {item['label']}  {numbers}"
    if one.rationale is not None:
        yield f"  rationale (generated)\n    {one.rationale}"


def _checked(check: dict[str, Any]) -> str:
    """The words on the picture, and how far the caption agrees with them."""
    return f"{'agrees' if check['agrees'] else 'differs'} ({check['agreement']:.2f}); read: {check['read']}"


def _copy_of(known: dict[str, Any]) -> str:
    """The row that a meme is a copy of, and whether it decides."""
    turned = "" if known["transform"] == "none" else f", {known['transform']}"
    caption = {True: "same caption", False: "another caption", None: "caption not known"}[known["same_caption"]]
    role = "known" if known["decides"] else "evidence"
    return f"{role}: copy of {known['id']}  label {known['label']}  distance {known['distance']}{turned}, {caption}"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "[" + ", ".join(map(_number, value)) + "]"
