"""The triplet loss with a margin."""

import torch
from torch import Tensor

from stage2.losses.naive import similarity_gaps
from stage2.losses.similarity import OFFICIAL, Similarity, mean_over_anchors


def triplet_loss(
    anchors: Tensor,
    labels: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    hard_negatives: Tensor,
    hard_negative_mask: Tensor,
    *,
    similarity: Similarity = OFFICIAL,
    margin: float = 0.1,
    in_batch_negatives: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Ask positives to be nearer than negatives by a margin, and no more.

    Per anchor i, averaged over the anchors that have a positive and a negative::

        L_i = max(0, N_i + H_i − P_i + margin)

    with N_i, H_i and P_i of `naive_loss`.

    Args:
        similarity: s; RGCL's script has `cos`.
        margin: In units of s; RGCL's script has 0.1.
        in_batch_negatives: Whether N_i takes part.
        weights: [B], of the anchors in the mean; None: all alike.

    Inputs: as of `contrastive_loss`.

    Returns:
        A scalar; without any anchor that counts, a zero that is still attached to the graph.

    Recommendations: H_i is a sum, so each further hard negative asks for more; one is what was published.

    Source: RGCL (arXiv 2311.08110), the loss of its released script.
    """
    rows = (positives, positive_mask, hard_negatives, hard_negative_mask)
    gaps, valid = similarity_gaps(anchors, labels, *rows, similarity=similarity, in_batch_negatives=in_batch_negatives)
    return mean_over_anchors(torch.relu(gaps + margin), valid, weights)
