"""Rows of an example bank for labelled memes that a detector has prepared.

Shapes: M memes, C classes.
"""

from collections.abc import Sequence

import numpy as np

from ra_hmd.bank.versions import BankRows
from ra_hmd.core.problem import Problem
from ra_hmd.data.image_hashes import caption_digest, pdq_hash
from ra_hmd.data.images import perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.features.columns import label_array
from ra_hmd.inference.types import PreparedMeme


def checked_labels(memes: Sequence[Meme], problem: Problem) -> np.ndarray:
    """Labels of memes, int64 [M], or [M, C] of 0 and 1. Raises `UserError` for one that is missing or unknown."""
    labels = label_array(memes, problem.outputs if problem.kind == "multi_label" else None)
    problem.check(labels, "The new memes")
    return labels


def labelled_rows(
    memes: Sequence[Meme],
    prepared: Sequence[PreparedMeme],
    labels: np.ndarray,
    source: str,
    notes: Sequence[str] | None = None,
) -> BankRows:
    """Make rows of memes that people labelled; they are decided rows (`ra_hmd.bank.identical`).

    Args:
        memes: M memes.
        prepared: The same memes, as `Detector.prepare` returns them.
        labels: int64 [M], or [M, C] of 0 and 1.
        source: Source of the rows.
        notes: Note of each row; empty by default.
    """
    images = [meme.load_image() for meme in memes]
    return BankRows(
        ids=[meme.id for meme in memes],
        labels=labels,
        sources=[source] * len(memes),
        notes=list(notes or [""] * len(memes)),
        image_hashes=np.array([perceptual_hash(image) or 0 for image in images], dtype=np.uint64),
        contents=[meme.content for meme in prepared],
        pdqs=[pdq_hash(image) for image in images],
        caption_digests=[caption_digest(meme.text) for meme in prepared],
        decided=np.ones(len(memes), bool),
    )
