"""Selection of the bank rows that each anchor of a batch is compared with, and its schedule.

Shapes: B batch, N bank rows, D embedding, P positives, M hard negatives.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ra_hmd.core.errors import UserError
from ra_hmd.features.store import Features
from stage2.arguments import Stage2Arguments
from stage2.mining import Mined, mine, near_duplicates
from stage2.official_mining import mine_official, official_rows
from stage2.sparse import SparseIndex, documents


def check_minable(args: Stage2Arguments, train: Features) -> None:
    """Raise `UserError` unless the store has the captions, further fields and image hashes that the settings need."""
    if args.mining == "sparse":
        documents(train, args.object_words, str(args.train))
    if args.near_duplicate_bits is not None and train.image_hashes is None:
        raise UserError(
            f"{args.train} has no image hashes, which `near_duplicate_bits` needs; extract it again with this version."
        )


class Miner:
    """Mines the training set, which is the bank, for its own rows.

    `compat: corrected` searches for every anchor when the bank is refreshed, with its embedding in the bank.
    `compat: official` searches for each batch, with the embeddings that it has in training, dropout included.

    Args:
        args: The settings.
        train: The training set.

    Attributes:
        statistics: Statistics of each search of the whole bank (`Mined.statistics`), with its epoch and step.

    Raises:
        UserError: see `check_minable`.
    """

    def __init__(self, args: Stage2Arguments, train: Features) -> None:
        check_minable(args, train)
        self.statistics: list[dict[str, Any]] = []
        self._args, self._labels, self._official = args, train.labels, args.compat == "official"
        self._ids: Sequence[str] = () if self._official else _names(args, train)
        by_words = args.mining == "sparse" and not self._official
        self._sparse = SparseIndex(documents(train, args.object_words, str(args.train))) if by_words else None

    def refresh(self, bank: Tensor, labels: Tensor, epoch: int, step: int) -> None:
        """Mine in the bank [N, D] as it is now, labels [N] or [N, C]; keep the statistics."""
        mined = self._mine(bank, labels)
        self.statistics.append({"epoch": epoch, "step": step, **mined.statistics()})
        self._bank, self._bank_labels = bank, labels
        self._positives = torch.from_numpy(mined.all_positives()).to(bank.device)
        self._hard_negatives = torch.from_numpy(mined.hard_negatives.rows).to(bank.device)

    def rows(self, anchors: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Bank rows [B, P] and [B, M], -1 where there is none, for bank rows `anchors` [B] with embeddings [B, D]."""
        if not self._official:
            return self._positives[anchors], self._hard_negatives[anchors]
        labels = self._bank_labels[anchors]
        positives, hard_negatives, _ = official_rows(
            embedding.detach(),
            labels,
            self._bank,
            self._bank_labels,
            depth=self._args.official_depth,
            positives=self._args.pseudo_gold_positives,
            hard_negatives=self._args.hard_negatives,
            similarity=self._args.similarity,
        )
        return positives, hard_negatives

    def _mine(self, bank: Tensor, labels: Tensor) -> Mined:
        args = self._args
        if self._official:
            return mine_official(
                bank,
                labels,
                depth=args.official_depth,
                positives=args.pseudo_gold_positives,
                hard_negatives=args.hard_negatives,
                similarity=args.similarity,
            )
        return mine(
            bank.cpu().numpy(),
            self._labels,
            self._ids,
            positives=args.pseudo_gold_positives,
            hard_negatives=args.hard_negatives,
            hard_positives=args.hard_positives,
            positive_depth=args.positive_depth,
            similarity=args.similarity,
            index=args.index,
            sparse=self._sparse,
        )


def _names(args: Stage2Arguments, train: Features) -> Sequence[str]:
    """Keys that exclude a row as the anchor's partner: its id, or the group of its near-duplicate image."""
    if args.near_duplicate_bits is None or train.image_hashes is None:
        return train.ids
    return near_duplicates(train.image_hashes, args.near_duplicate_bits).astype(str).tolist()
