"""Verdicts on the pictures that a command line names."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import Explain, Verdict
from ra_hmd.inference.writers import answer_of

if TYPE_CHECKING:
    pass

_SHOWN = 5


def check_pictures(images: Sequence[Path], texts: Sequence[str]) -> None:
    """Raise `UserError` unless there is a caption for each picture, or none, and each picture is a file."""
    if texts and len(texts) != len(images):
        raise UserError(
            f"{len(texts)} --text for {len(images)} pictures: give one for each, in their order, or none; then they "
            "are read from the pictures."
        )
    gone = next((path for path in images if not path.exists()), None)
    if gone is not None:
        raise UserError(f"{gone} does not exist; check its path.")
    folder = next((path for path in images if path.is_dir()), None)
    if folder is not None:
        raise UserError(f"{folder} is a folder; judge what is in it with --input {folder} --output verdicts.jsonl.")


def judge_pictures(
    detector: Detector, images: Sequence[Path], texts: Sequence[str] = (), explain: Explain | None = None
) -> list[Verdict]:
    """Judge pictures, each with its caption, or with what is read from it where there are none; ids are the paths.
    `explain` as for `Detector`.

    Raises:
        UserError: see `check_pictures` and `Detector`.
    """
    check_pictures(images, texts)
    return detector(
        [Meme(str(path), path, text) for path, text in zip(images, texts or [None] * len(images), strict=True)],
        explain,
    )


def as_lines(found: Sequence[Verdict]) -> str:
    """For machines: a JSON object per line, as `--output` has them in `.jsonl`."""
    return "\n".join(json.dumps(answer_of(one), ensure_ascii=False, allow_nan=False) for one in found)


def as_table(found: Sequence[Verdict]) -> Table:
    """For people: verdict, scores with probabilities, nearest neighbours, and what was read where no text was given."""
    explained = any(one.rationale is not None for one in found)
    columns = ["meme", "verdict", "scores", "nearest neighbours", *(["rationale (generated)"] if explained else [])]
    table = Table(show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")  # a path that is cut names no picture
    for one in found:
        limit = "" if one.threshold is None else f" from {_shown(one.threshold)}"
        verdict = "left to a person" if one.verdict is None else str(one.verdict)
        scores = "\n".join(
            f"{head} {_shown(score)} (probability {_shown(one.probabilities[head])})"
            for head, score in one.scores.items()
        )
        near = "\n".join(
            f"{item['id']}  label {item['label']}  similarity {item['similarity']:.3f}  share {item['share']:.2f}"
            for item in (one.neighbours or [])[:_SHOWN]
        )
        read = "" if one.text_source == "given" else f"\n{one.text_source}: {one.text}"
        # As `Text`: names and captions are no markup.
        cells = [one.id + read, f"{verdict}\n{one.head}{limit}", scores, near, *([one.rationale] if explained else [])]
        table.add_row(*map(Text, cells))
    return table


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "[" + ", ".join(map(_shown, value)) + "]"
