"""The public Python API: the names that `from ra_hmd import …` gives (docs/python.md).

These names and their documented arguments are stable. Everything else in this package may move.
"""

from collections.abc import Sequence
from pathlib import Path

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import create_bank
from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.features.extract_clip import encode
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import Features, read_features
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import Verdict
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.encoders import open_encoder

__all__ = ["Bank", "Detector", "Features", "Meme", "Verdict", "create_bank", "evaluate", "extract"]


def extract(
    model: str | Path,
    memes: Sequence[Meme] | str | Path,
    output: str | Path,
    *,
    split: str = "",
    batch_size: int = 16,
    num_workers: int = 2,
) -> Features:
    """Extract features of memes into a feature store, as `ra-hmd extract` and `ra-hmd encode` do.

    If it is interrupted and called again, it continues.

    Args:
        model: Folder of a Stage 1 run; or an encoder: a preset, a folder, or a name on the Hugging Face hub.
        memes: The memes, each with its caption and its image in a file; or a file of them (see `read_memes`).
        output: Folder of the feature store.
        split: Name of the split, recorded in the store.
        batch_size: Memes per forward pass.
        num_workers: Processes that decode images.

    Returns:
        The features, in the order of the memes.

    Raises:
        UserError: a missing model, images that cannot be decoded (all listed), or another store in `output`.
    """
    if isinstance(memes, str | Path):
        memes = read_memes(memes, split=split)
    if (Path(model) / MANIFEST_NAME).is_file():
        folder = extract_hidden_states(
            open_run(model), list(memes), output, split=split, batch_size=batch_size, num_workers=num_workers
        )
    else:
        encoder = open_encoder(EncoderSettings(path=str(model)))
        folder = encode(encoder, list(memes), output, split=split, batch_size=batch_size, num_workers=num_workers)
    return read_features(folder)
