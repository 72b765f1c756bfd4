"""Settings of the retrieval-guided loss, shared by Stage 2 and joint training, and the loss that they describe.

Shapes: B batch, N bank rows, D embedding, C classes, P positives, M hard negatives.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor

from ra_hmd.core.config import Settings
from ra_hmd.models.losses import anchor_weights
from stage2.losses.contrastive import contrastive_loss
from stage2.losses.naive import naive_loss
from stage2.losses.official import LossName, official_loss
from stage2.losses.similarity import LossMetric, Similarity
from stage2.losses.triplet import triplet_loss


class RetrievalLossSettings(Settings):
    """Settings of the retrieval-guided loss; the defaults are those of the released RA-HMD script."""

    compat: Literal["corrected", "official"] = Field(
        default="corrected",
        description="official: mine and weigh as the released code does, its faults included (docs/stage2.md).",
    )
    loss: LossName = Field(
        default="contrastive",
        description="contrastive (RA-HMD), triplet (RGCL's script, with metric cos) or naive.",
    )
    metric: LossMetric = Field(
        default="ip",
        description="Similarity for mining and loss: cos, ip (inner product / D) or l2 (minus distance / D).",
    )
    l2_normalise: bool = Field(default=False, description="metric l2: between embeddings of length 1.")
    l2_squared: bool = Field(default=True, description="metric l2: of the squared distance.")
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="loss contrastive: similarities are divided by it; 1 is the official value.",
    )
    margin: float = Field(default=0.1, ge=0, description="loss triplet: how much nearer positives must be.")
    hard_negatives: int = Field(default=1, ge=0, description="Nearest rows of another class per anchor; 0: none.")
    pseudo_gold_positives: int = Field(default=1, ge=0, description="Nearest other rows of the same class per anchor.")
    in_batch_negatives: bool = Field(
        default=True, description="Whether all other-class rows of the batch are negatives too."
    )

    @property
    def similarity(self) -> Similarity:
        """Similarity for mining and loss."""
        return Similarity(self.metric, self.l2_normalise, self.l2_squared)


LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "contrastive": (contrastive_loss, ("temperature",)),
    "triplet": (triplet_loss, ("margin",)),
    "naive": (naive_loss, ()),
}
"""Name of a loss → the function, and the settings that it takes beside the similarity and the in-batch negatives."""


def retrieval_loss(settings: RetrievalLossSettings) -> Callable[..., Tensor]:
    """The loss that `settings` describe, as a function of tensors and `weights`; inputs as of `contrastive_loss`."""
    similarity, in_batch = settings.similarity, settings.in_batch_negatives
    if settings.compat == "official":
        kind, margin = settings.loss, settings.margin
        return partial(official_loss, similarity=similarity, in_batch_negatives=in_batch, loss=kind, margin=margin)
    loss, own = LOSSES[settings.loss]
    values = {name: getattr(settings, name) for name in own}
    return partial(loss, similarity=similarity, in_batch_negatives=in_batch, **values)


def loss_against_bank(
    loss: Callable[..., Tensor],
    anchors: Tensor,
    labels: Tensor,
    bank: Tensor,
    positives: Tensor,
    hard_negatives: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute a retrieval-guided loss of anchors against the bank rows that were mined for them.

    Args:
        loss: From `retrieval_loss`.
        anchors: [B, D], embeddings with gradient.
        labels: [B] or [B, C].
        bank: [N, D], constants.
        positives: [B, P], bank rows; -1 where there is none.
        hard_negatives: [B, M], bank rows; -1 where there is none.
        weights: [B] or [B, C], those of the classification loss; a meme's weight is the mean over its classes.
    """
    return loss(
        anchors,
        labels,
        bank[positives.clamp(min=0)],
        positives >= 0,
        bank[hard_negatives.clamp(min=0)],
        hard_negatives >= 0,
        weights=anchor_weights(weights),
    )
