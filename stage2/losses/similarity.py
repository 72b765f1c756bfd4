"""Functions that the losses of Stage 2 share: similarities of anchors to other rows, and the mean over anchors."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LossMetric = Literal["cos", "ip", "l2"]


@dataclass(frozen=True)
class Similarity:
    """s(a, b) of embeddings of width D, larger for more alike ones::

        cos   ⟨a, b⟩ / (‖a‖ ‖b‖)
        ip    ⟨a, b⟩ / D
        l2    −‖a − b‖² / D, or −‖a − b‖ / D without `squared`; of unit vectors with `normalise`

    Computed in float32 at least. Where two embeddings are equal, the distance that is not squared has gradient zero.

    Source: RGCL's official code (`--metric`, `--norm_feats_loss`, `--l2_sqrt`).
    """

    metric: LossMetric = "ip"
    normalise: bool = False
    squared: bool = True

    def prepare(self, embeddings: Tensor) -> Tensor:
        """Embeddings [..., D] in the precision and of the length that the similarity is computed with."""
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        if self.metric == "cos" or (self.metric == "l2" and self.normalise):
            return functional.normalize(embeddings, dim=-1, eps=1e-8)
        return embeddings

    def within(self, prepared: Tensor) -> Tensor:
        """[B, B] between the rows of [B, D]."""
        if self.metric == "l2":
            return self._from_differences(prepared[:, None] - prepared[None, :])
        return self._from_products(prepared @ prepared.T, prepared.shape[-1])

    def to(self, prepared: Tensor, others: Tensor) -> Tensor:
        """[B, K] from the rows of [B, D] to those of [B, K, D]."""
        if self.metric == "l2":
            return self._from_differences(prepared[:, None] - others)
        return self._from_products(torch.einsum("bd,bkd->bk", prepared, others), prepared.shape[-1])

    def _from_products(self, products: Tensor, width: int) -> Tensor:
        return products if self.metric == "cos" else products / width

    def _from_differences(self, differences: Tensor) -> Tensor:
        width = differences.shape[-1]
        distance = differences.square().sum(dim=-1)
        if not self.squared:
            apart = distance > 0  # the root has no gradient at zero
            distance = torch.where(apart, torch.where(apart, distance, 1).sqrt(), 0)
        return -distance / width


OFFICIAL = Similarity()
"""The similarity of the released RA-HMD script."""


def same_class(labels: Tensor) -> Tensor:
    """bool [B, B]: which rows are positives of each other: of one class (labels [B]), or with a class in common (labels
    [B, C] of 0 and 1; rows without any class are alike).
    """
    if labels.ndim == 1:
        return labels[:, None] == labels[None, :]
    member = labels.float()
    none = ~labels.bool().any(dim=1)
    return (member @ member.T > 0) | (none[:, None] & none[None, :])


def other_class(labels: Tensor, wanted: bool) -> Tensor:
    """bool [B, B]: which rows of the batch are negatives of which anchor; none where in-batch ones are not `wanted`."""
    opposite = ~same_class(labels)
    return opposite if wanted else torch.zeros_like(opposite)


def mean_over_anchors(losses: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of losses [B] over the anchors where `valid` [B], weighted by `weights` [B]; without any of them a zero that
    is still attached to the graph.
    """
    share = valid.to(losses.dtype) if weights is None else valid * weights.to(losses.dtype)
    total = share.sum()
    return (torch.where(valid, losses, 0) * share).sum() / torch.where(total > 0, total, 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [B] of the unmasked of values [B, K]; 0 for a row without any."""
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
