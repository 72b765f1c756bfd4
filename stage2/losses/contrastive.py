"""The retrieval-guided contrastive loss.

Recommendations: with τ = 1 and `cos` the loss moves within about two nats; N_i is a sum and H_i a mean, as published,
so that the batch size sets the balance between them.
"""

import math

import torch
from torch import Tensor

from stage2.losses.similarity import OFFICIAL, Similarity, mean_over_anchors, other_class


def contrastive_loss(
    anchors: Tensor,
    labels: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    hard_negatives: Tensor,
    hard_negative_mask: Tensor,
    *,
    similarity: Similarity = OFFICIAL,
    temperature: float = 1.0,
    in_batch_negatives: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Pull anchors to their pseudo-gold positives, push them from hard and in-batch negatives.

    Per anchor i, averaged over the anchors that have a positive::

        L_i = −log( P_i / (P_i + H_i + N_i) )
        P_i = mean_k exp( s(g_i, g⁺_ik) / τ )              positives that were found
        H_i = mean_m exp( s(g_i, h_im) / τ )               hard negatives that were found
        N_i = Σ_{j in batch, y_j ≠ y_i} exp( s(g_i, g_j) / τ )

    Computed with log-sum-exp, in float32 at least. Absent rows are masked, never recognised by their value.

    Args:
        similarity: s.
        temperature: τ; 1 is the official value.
        in_batch_negatives: Whether N_i takes part.
        weights: [B], of the anchors in the mean; None: all alike.

    Inputs (rows where a mask is False may hold anything finite):
        ==================  =========  =====================================================
        anchors             [B, D]     embeddings with gradient
        labels              [B]        class indices, any number of classes; [B, C] of 0 and 1 for label sets
        positives           [B, P, D]  bank rows of the anchor's class, constants in training
        positive_mask       [B, P]     bool, True where found
        hard_negatives      [B, M, D]  bank rows of other classes; M may be 0
        hard_negative_mask  [B, M]     bool
        ==================  =========  =====================================================

    Returns:
        A scalar; without any anchor that has a positive, a zero that is still attached to the graph.

    Source: RGCL (arXiv 2311.08110) and RA-HMD (arXiv 2502.13061), the terms as the official Stage 2 code weights
    them; unlike that code, it survives large inner products and keeps similarities of zero.
    """
    anchors, positives, hard_negatives = map(similarity.prepare, (anchors, positives, hard_negatives))
    has_positive = positive_mask.any(dim=1)
    # A row without a positive keeps its placeholders unmasked, so that nothing below is infinite; it leaves at the end.
    positive_mask = positive_mask | ~has_positive[:, None]

    log_p = _log_terms(similarity.to(anchors, positives) / temperature, positive_mask)
    log_h = _log_terms(similarity.to(anchors, hard_negatives) / temperature, hard_negative_mask)
    opposite = other_class(labels, in_batch_negatives)
    log_n = (similarity.within(anchors) / temperature).masked_fill(~opposite, -math.inf)

    log_total = torch.logsumexp(torch.cat([log_p, log_h, log_n], dim=1), dim=1)
    per_anchor = log_total - torch.logsumexp(log_p, dim=1)
    return mean_over_anchors(per_anchor, has_positive, weights)


def _log_terms(scores: Tensor, mask: Tensor) -> Tensor:
    """Logarithms [B, K] whose exponentials add up to the mean of exp s over the unmasked K; −inf where masked."""
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return scores.masked_fill(~mask, -math.inf) - count.to(scores.dtype).log()
