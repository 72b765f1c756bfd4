"""Settings of `ra-hmd cluster`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ra_hmd.core.choices import DType
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


class ClusterSource(Settings):
    """The memes: a store of their features, or the memes themselves and an encoder."""

    TITLE: ClassVar[str] = "source"

    features: Path | None = Field(
        None, description="Feature store of `ra-hmd encode` with the memes of a training split."
    )
    data: str | None = Field(
        None,
        description="The memes: file, folder, or data set name; with --features, where the images of the report are, "
        "by default the place that the store states.",
    )
    split: str | None = Field(None, description="Training split; default: train, with --features that of the store.")
    encoder: str | None = Field(
        None, description="Instead of --features: preset, folder, or name on the hub, as of `encode`."
    )
    long_text: Literal["truncate", "average"] | None = Field(
        None, description="With --encoder, captions past its limit: truncate (default), or average."
    )
    revision: str | None = Field(None, description="With --encoder: its revision on the hub.")
    batch_size: int = Field(32, ge=1, description="With --encoder: memes per call.")
    workers: int = Field(2, ge=0, description="With --encoder: processes that decode images.")
    dtype: DType = Field("auto", description="With --encoder: auto, float32, bfloat16 or float16.")
