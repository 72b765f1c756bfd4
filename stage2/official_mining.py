"""Mining as the released RGCL code does it, for reproductions: `compat: official`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ra_hmd.retrieval.knn import ABSENT, Neighbours
from stage2.losses.similarity import Similarity
from stage2.mining import Mined

_BLOCK = 4096


def official_rows(
    queries: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    depth: int,
    positives: int,
    hard_negatives: int,
    similarity: Similarity,
) -> tuple[Tensor, Tensor, Tensor]:
    """One search for positives and negatives together, the anchor's own row among the candidates.

    Args:
        queries: [B, D].
        labels: [B].
        bank: [N, D].
        bank_labels: [N].
        depth: Candidates per query; 12 for each requested positive in the released code.
        positives: P.
        hard_negatives: M.
        similarity: Candidates are the nearest by inner product for `ip`, else by cosine, also for `l2`.

    Returns:
        The bank rows of the first P candidates of the query's class [B, P], of the first M of another [B, M], and the
        similarities [B, P + M] of both on the loss's scale; rows are -1 where the candidates hold too few.

    Source: `retrieval.py` of the official repository at 82a66c7 (behaviour, not code).
    """
    if similarity.metric == "ip":
        products = queries @ bank.T
    else:
        products = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    candidates = products.topk(min(depth, len(bank)), dim=1).indices
    same = bank_labels[candidates] == labels[:, None]
    rows = torch.cat([_first(candidates, same, positives), _first(candidates, ~same, hard_negatives)], dim=1)
    here, there = similarity.prepare(queries), similarity.prepare(bank[rows.clamp(min=0)])
    return rows[:, :positives], rows[:, positives:], similarity.to(here, there)


def _first(candidates: Tensor, wanted: Tensor, count: int) -> Tensor:
    """The first `count` wanted ones of candidates [B, K], in their order; -1 where there are fewer."""
    order = (~wanted).long().argsort(dim=1, stable=True)[:, :count]
    rows = torch.where(wanted.gather(1, order), candidates.gather(1, order), ABSENT)
    return F.pad(rows, (0, count - rows.shape[1]), value=ABSENT)


def mine_official(
    bank: Tensor, labels: Tensor, *, depth: int, positives: int, hard_negatives: int, similarity: Similarity
) -> Mined:
    """`official_rows` of every bank row [N, D] among all of them."""
    parts = [
        official_rows(queries, kinds, bank, labels, depth=depth, positives=positives, hard_negatives=hard_negatives,
                      similarity=similarity)
        for queries, kinds in zip(bank.split(_BLOCK), labels.split(_BLOCK), strict=True)
    ]  # fmt: skip
    own, other, found = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    nothing = Neighbours(own[:, :0], found[:, :0])
    return Mined(
        positives=Neighbours(own, found[:, :positives]),
        hard_negatives=Neighbours(other, found[:, positives:]),
        hard_positives=nothing,
    )
