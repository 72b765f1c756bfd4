"""The naive loss: similarities to negatives minus similarities to positives."""

import torch
from torch import Tensor

from stage2.losses.similarity import OFFICIAL, Similarity, masked_mean, mean_over_anchors, other_class


def naive_loss(
    anchors: Tensor,
    labels: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    hard_negatives: Tensor,
    hard_negative_mask: Tensor,
    *,
    similarity: Similarity = OFFICIAL,
    in_batch_negatives: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Lower the similarity to negatives and raise that to positives, without bound.

    Per anchor i, averaged over the anchors that have a positive and a negative::

        L_i = N_i + H_i − P_i
        P_i = mean_k s(g_i, g⁺_ik)                     positives that were found
        H_i = Σ_m s(g_i, h_im)                         hard negatives that were found
        N_i = mean_{j in batch, y_j ≠ y_i} s(g_i, g_j)

    Args:
        similarity: s. With `ip` the loss has no lower bound: use `cos`, or `triplet_loss`.
        in_batch_negatives: Whether N_i takes part.
        weights: [B], of the anchors in the mean; None: all alike.

    Inputs: as of `contrastive_loss`.

    Returns:
        A scalar; without any anchor that counts, a zero that is still attached to the graph.

    Source: RGCL's official code (`--loss naive`). A missing hard negative is left out by a mask there too, but a
    missing positive is a zero vector; here its anchor is left out.
    """
    rows = (positives, positive_mask, hard_negatives, hard_negative_mask)
    gaps, valid = similarity_gaps(anchors, labels, *rows, similarity=similarity, in_batch_negatives=in_batch_negatives)
    return mean_over_anchors(gaps, valid, weights)


def similarity_gaps(
    anchors: Tensor,
    labels: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    hard_negatives: Tensor,
    hard_negative_mask: Tensor,
    *,
    similarity: Similarity,
    in_batch_negatives: bool,
) -> tuple[Tensor, Tensor]:
    """N_i + H_i − P_i [B] of `naive_loss`, and which anchors have a positive and a negative [B]."""
    anchors, positives, hard_negatives = map(similarity.prepare, (anchors, positives, hard_negatives))
    opposite = other_class(labels, in_batch_negatives)
    in_batch = masked_mean(similarity.within(anchors), opposite)
    hard = torch.where(hard_negative_mask, similarity.to(anchors, hard_negatives), 0).sum(dim=1)
    positive = masked_mean(similarity.to(anchors, positives), positive_mask)
    valid = positive_mask.any(dim=1) & (hard_negative_mask.any(dim=1) | opposite.any(dim=1))
    return in_batch + hard - positive, valid
