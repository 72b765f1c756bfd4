"""The interface of models that make features of memes."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL.Image import Image
from torch import Tensor

from ra_hmd.data.meme import Meme


class FeatureModel(Protocol):
    """A model that makes features of memes. `encode` and `collate` run in the loader's worker processes."""

    def prepare(self, memes: Sequence[Meme]) -> None:
        """Compute by batches what `encode` needs to know of memes, in the process that has the device."""

    def encode(self, text: str, image: Image) -> Any:
        """Encode a meme as an item of a batch.

        Raises:
            ValueError: The meme cannot be encoded; the message is a predicate without its subject.
        """

    def length(self, row: Any) -> int:
        """Approximate cost of an item, in tokens."""

    def collate(self, rows: list[Any]) -> Any:
        """Collate B items of `encode` to a batch."""

    def columns(self, batch: Any) -> dict[str, Tensor]:
        """Columns of a store for a batch, each [B, …]: fields of `Features`, the two of `MODALITIES`, or
        `view_NAME` of a further view."""
