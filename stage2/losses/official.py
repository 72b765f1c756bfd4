"""The losses as the released RGCL code computes them, for reproductions: `compat: official`."""

from typing import Literal

import torch
from torch import Tensor

from stage2.losses.similarity import OFFICIAL, Similarity, other_class

LossName = Literal["contrastive", "triplet", "naive"]


def official_loss(
    anchors: Tensor,
    labels: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    hard_negatives: Tensor,
    hard_negative_mask: Tensor,
    *,
    loss: LossName = "contrastive",
    similarity: Similarity = OFFICIAL,
    margin: float = 0.1,
    in_batch_negatives: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute the loss of the official code, its oddities included: a missing row is a zero vector::

        P_i, contrastive   mean_k exp s(g_i, g⁺_ik) over all P places: a missing positive adds exp s(g_i, 0)
        P_i, else          mean_k s(g_i, g⁺_ik) over all P places
        H_i, contrastive   mean of exp s over the hard negatives whose s is not exactly 0; 0 without any
        H_i, else          Σ_m s(g_i, h_im); a zero vector adds nothing
        N_i, contrastive   Σ exp s over the other class's rows whose s is not exactly 0, whatever `in_batch_negatives`
        N_i, else          mean of s over the same rows, 0 without `in_batch_negatives`

    L is the mean over the whole batch of −log(P / (P + H + N)), max(0, N + H − P + margin) or N + H − P.

    Args:
        loss: Which of the three.
        similarity: s; there is no temperature.
        margin: Margin of the loss `triplet`.
        in_batch_negatives: Without effect on `contrastive`, as released.
        weights: Weights of the anchors; None, as released.

    Inputs: as of `contrastive_loss`; rows where a mask is False are taken for zero vectors.

    Returns:
        A scalar. Unlike the released code it is computed in float32 at least, and an anchor whose products with all
        rows of the other class are exactly 0 has N_i = 0, where the released mean is 0/0.

    Source: `loss.py` of the official repository at 82a66c7 (behaviour, not code); docs/stage2.md lists the differences.
    """
    zero = torch.zeros((), dtype=positives.dtype, device=positives.device)
    positives = torch.where(positive_mask[..., None], positives, zero)
    hard_negatives = torch.where(hard_negative_mask[..., None], hard_negatives, zero)
    found = hard_negatives.sum(dim=2) != 0
    anchors, positives, hard_negatives = map(similarity.prepare, (anchors, positives, hard_negatives))

    positive = similarity.to(anchors, positives)
    hard = similarity.to(anchors, hard_negatives) * found
    in_batch = similarity.within(anchors) * other_class(labels, True)
    if loss == "contrastive":
        p = positive.exp().mean(dim=1)
        h = (hard.exp() * (hard != 0)).sum(dim=1) / (hard != 0).sum(dim=1).clamp(min=1)
        n = (in_batch.exp() * (in_batch != 0)).sum(dim=1)
        losses = -(p / (p + h + n)).log()
    else:
        n = in_batch.sum(dim=1) / (in_batch != 0).sum(dim=1).clamp(min=1) * in_batch_negatives
        losses = n + hard.sum(dim=1) - positive.mean(dim=1)
        losses = torch.relu(losses + margin) if loss == "triplet" else losses
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
