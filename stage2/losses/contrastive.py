"""The retrieval-guided contrastive loss."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ra_hmd.retrieval.knn import Metric


def contrastive_loss(
    anchors: Tensor,
    labels: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    hard_negatives: Tensor,
    hard_negative_mask: Tensor,
    *,
    metric: Metric = "ip",
    in_batch_negatives: bool = True,
) -> Tensor:
    """Pull anchors to their pseudo-gold positives, push them from hard and in-batch negatives.

    Per anchor i, averaged over the anchors that have a positive::

        L_i = −log( P_i / (P_i + H_i + N_i) )
        P_i = mean_k exp s(g_i, g⁺_ik)                pseudo-gold positives that were found
        H_i = mean_m exp s(g_i, h_im)                 hard negatives that were found
        N_i = Σ_{j in batch, y_j ≠ y_i} exp s(g_i, g_j)
        s(a, b) = cos(a, b)  or  ⟨a, b⟩ / D

    Computed with log-sum-exp, in float32 at least. What is absent is left out by a boolean mask, never by its
    value: a similarity of exactly 0 is common between ReLU embeddings and is a similarity like any other.

    Args:
        metric: `cos`, or `ip` for the inner product divided by D.
        in_batch_negatives: Whether N_i takes part.

    Requires: rows where a mask is False may hold anything finite.

    Inputs:
        ==================  =========  =====================================================
        anchors             [B, D]     embeddings with gradient
        labels              [B]        class indices, any number of classes
        positives           [B, P, D]  bank rows of the anchor's class, constants in training
        positive_mask       [B, P]     bool, True where found
        hard_negatives      [B, M, D]  bank rows of other classes; M may be 0
        hard_negative_mask  [B, M]     bool
        ==================  =========  =====================================================

    Returns:
        A scalar; without any anchor that has a positive, a zero that is still attached to the graph.

    Recommendations: there is no temperature, so with `cos` the loss moves within about two nats; N_i is a sum and
    H_i a mean, as published, so that the batch size sets the balance between them.

    Source: RGCL (arXiv 2311.08110) and RA-HMD (arXiv 2502.13061), the terms as the official Stage 2 code weights
    them; unlike that code, it survives large inner products and keeps similarities of zero.

    Example::

        loss = contrastive_loss(g, y, bank[rows_pos], rows_pos >= 0, bank[rows_neg], rows_neg >= 0, metric="cos")
    """
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    anchors, positives, hard_negatives = (x.to(dtype) for x in (anchors, positives, hard_negatives))
    if metric == "cos":
        vectors = (anchors, positives, hard_negatives)
        anchors, positives, hard_negatives = (functional.normalize(x, dim=-1, eps=1e-8) for x in vectors)
        scale = 1.0
    else:
        scale = 1.0 / anchors.shape[-1]
    has_positive = positive_mask.any(dim=1)
    # A row without a positive keeps its placeholders unmasked, so that nothing below is infinite; it leaves at the end.
    positive_mask = positive_mask | ~has_positive[:, None]

    log_p = _log_terms(anchors, positives, positive_mask, scale)
    log_h = _log_terms(anchors, hard_negatives, hard_negative_mask, scale)
    in_batch = anchors @ anchors.T * scale
    opposite = labels[:, None] != labels[None, :]
    if not in_batch_negatives:
        opposite = torch.zeros_like(opposite)
    log_n = in_batch.masked_fill(~opposite, -math.inf)

    log_total = torch.logsumexp(torch.cat([log_p, log_h, log_n], dim=1), dim=1)
    per_anchor = log_total - torch.logsumexp(log_p, dim=1)
    return torch.where(has_positive, per_anchor, 0).sum() / has_positive.sum().clamp(min=1)


def _log_terms(anchors: Tensor, others: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Logarithms [B, K] whose exponentials add up to the mean of exp s over the unmasked K; −inf where masked."""
    scores = torch.einsum("bd,bkd->bk", anchors, others) * scale
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return scores.masked_fill(~mask, -math.inf) - count.log().to(scores.dtype)
