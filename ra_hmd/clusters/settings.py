"""Settings of `ra-hmd cluster`."""

from typing import ClassVar

from pydantic import Field

from ra_hmd.core.config import Settings


class ClusterSettings(Settings):
    """Settings of the fit; all of them are part of what the result depends on."""

    TITLE: ClassVar[str] = "cluster"

    clusters: int = Field(8, ge=1, description="K, the number of clusters.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the starts.")
    unknown_quantile: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Quantile of the training memes' distances to their centroids beyond which a meme belongs to no "
        "cluster (id -1); default: each meme belongs to one.",
    )
    stability_seeds: int = Field(
        5, ge=1, le=100, description="Number of fits with consecutive seeds that are compared with each other; 1: none."
    )
