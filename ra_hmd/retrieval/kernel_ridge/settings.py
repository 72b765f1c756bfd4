"""Settings of the kernel head."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.retrieval.embeddings import EMBEDDING


class KernelSettings(Settings):
    """Settings of kernel ridge regression over the rows of a bank."""

    TITLE: ClassVar[str] = "kernel head"

    views: tuple[str, ...] = Field(
        default=(EMBEDDING,),
        min_length=1,
        description="Views of a meme that are compared: embedding (the head's), hidden, untuned, or an encoder's name.",
    )
    balanced: bool = Field(default=False, description="Give the classes of the bank equal weight.")
    exact_rows: int = Field(default=5000, ge=1, description="Largest bank that is solved as one system.")
    local_rows: int = Field(default=256, ge=2, description="Beyond it, number of nearest rows that answer a query.")


def kernel_settings(views: Sequence[str] = (), *, balanced: bool = False) -> KernelSettings:
    """The settings for views as options give them: `NAME`, or `NAME=ENCODER`; none: the head's embedding."""
    names = tuple(dict.fromkeys(view.partition("=")[0] for view in views))
    return KernelSettings(balanced=balanced, views=names or (EMBEDDING,))
