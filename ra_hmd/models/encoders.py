"""A frozen encoder of any kind, two towers of the CLIP family or an LMM embedder, and one vector per meme of either.

Shapes: B or N memes, I image features, T text features, D_v width of the vector.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ra_hmd.core.errors import UserError
from ra_hmd.models.clip_encoder import FAMILIES, Encoder
from ra_hmd.models.embedder_formats import FORMATS
from ra_hmd.models.encoder_files import EncoderFiles, EncoderSettings, known_encoders
from ra_hmd.models.lmm_embedder import LmmEmbedder

AnyEncoder = Encoder | LmmEmbedder
_EMBEDDERS = tuple(dict.fromkeys(known.family for known in FORMATS.values()))
_ROWS = 256  # of float64 vectors at a time: they stay in the cache


def open_encoder(settings: EncoderSettings) -> AnyEncoder:
    """Open the encoder of `settings`, of the kind that its `model_type` says; its weights are not loaded yet.

    An `Encoder` has two vectors per meme, of image and caption, an `LmmEmbedder` one.

    Raises:
        UserError: nothing of that name, a model of another kind, or settings that do not fit it.
    """
    files = EncoderFiles.find(settings)
    if files.family in FAMILIES:
        return Encoder(settings, files)
    if files.family not in _EMBEDDERS:
        raise UserError(
            f"{files.settings.path} is a {files.family} model; encoders are of the families "
            f"{', '.join([*FAMILIES, *_EMBEDDERS])}. {known_encoders()}"
        )
    return LmmEmbedder(files)


def open_two_towers(settings: EncoderSettings, purpose: str) -> Encoder:
    """Open an encoder with two vectors per meme.

    Args:
        settings: The encoder.
        purpose: What needs both vectors, for the message.

    Raises:
        UserError: see `open_encoder`; an LMM embedder.
    """
    files = EncoderFiles.find(settings)
    if files.family in _EMBEDDERS:
        raise UserError(
            f"{files.settings.path} is an LMM embedder, with one vector for image and caption together, and {purpose} "
            f"needs one of each; give an encoder of the families {', '.join(FAMILIES)}."
        )
    return Encoder(settings, files)


def unit_vectors(columns: Mapping[str, Tensor]) -> np.ndarray:
    """One vector of length 1 per meme, float32 [B, D_v], from the columns of an encoder of either kind."""
    if "hidden" in columns:
        return columns["hidden"].float().cpu().numpy()
    image, text = (columns[name].float().cpu().numpy() for name in ("image_features", "text_features"))
    return joint_vectors(image, text)


def joint_vectors(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Joint vectors of memes: image and text features, each of length 1, side by side and divided by the root of 2.

    Features of length 0 stay 0.

    Args:
        image: Image features [N, I].
        text: Text features [N, T].

    Returns:
        float32 [N, I + T], each row of length 1.
    """
    joint = np.empty((len(image), image.shape[1] + text.shape[1]), dtype=np.float32)
    for start in range(0, len(joint), _ROWS):
        rows = slice(start, start + _ROWS)
        joint[rows] = np.concatenate([_unit(image[rows]), _unit(text[rows])], axis=1)
    return joint


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n, W] in float64, of length 1 / √2."""
    rows = np.ascontiguousarray(rows, dtype=np.float64)
    length = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return rows / np.where(length > 0, length * np.sqrt(2), 1)
