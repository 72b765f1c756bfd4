"""Stage 2: the head refined with retrieval-guided contrast, on features that stay as they are.

Shapes: B batch, N train rows, D embedding, C outputs, P positives, M hard negatives.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from easydict import EasyDict
from torch import Tensor

from ra_hmd.core.errors import UserError
from ra_hmd.features.store import Features
from ra_hmd.models.head import HeadConfig, MemeHead
from ra_hmd.models.losses import weights_of
from ra_hmd.training.run import run_training
from ra_hmd.training.trainer import HeadTrainer, Outcome
from stage2.arguments import Stage2Arguments
from stage2.losses.settings import loss_against_bank, retrieval_loss
from stage2.miner import Miner, check_minable
from stage2.plots import mining_figure


class Trainer(HeadTrainer[Stage2Arguments]):
    """One Stage 2 run: call `fit`, then `outcome`.

    Args:
        args: The settings.
        head: The initial head; trained in place.
        train: Features that are trained on and that are the bank.
        dev: Features that choose the epoch, or None.
        device: Where head and features live.

    Raises:
        UserError: see `check_minable`.
    """

    LOWER: ClassVar[str] = "Lower `lr` ({lr}), or set `metric: cos` if the embeddings are very long"

    losses = ("loss", "retrieval", "classification")

    def __init__(
        self, args: Stage2Arguments, head: MemeHead, train: Features, dev: Features | None, device: torch.device
    ) -> None:
        super().__init__(args, head, train, dev, device)
        self.loss = retrieval_loss(args)
        self.miner = Miner(args, train)

    @classmethod
    def check(cls, args: Stage2Arguments, config: HeadConfig, train: Features) -> None:
        """Raise `UserError` for label sets with `compat: official`, or where the store has not what mining needs."""
        check_minable(args, train)
        if args.compat == "official" and config.problem.kind == "multi_label":
            raise UserError(
                f"`compat: official` has one class per meme; {args.train} has sets of them. Use `corrected`."
            )

    def outcome(self) -> Outcome:
        """Values to save with a checkpoint, with the mining statistics."""
        mining = self.miner.statistics
        return replace(
            super().outcome(),
            tables={"mining.json": {"metric": self.args.metric, "searches": mining}},
            figures={"mining.png": mining_figure(mining, self.args.metric)},
        )

    def _before_step(self, epoch: int, step: int) -> None:
        """Embed the bank and mine in it, at the start of each epoch and every `reindex_every` steps."""
        if step and not (self.args.reindex_every and step % self.args.reindex_every == 0):
            return
        if step:
            self._bank = None
        self.miner.refresh(self.bank, self.labels, epoch, step)

    def _losses(self, rows: Tensor) -> Tensor:
        """Total, retrieval and classification loss [3] of the anchors `rows` [B]."""
        output = self._apply(self.head, self.hidden[rows])
        positives, hard_negatives = self.miner.rows(rows, output.embedding)
        labels = self.labels[rows]
        weights = weights_of(labels, self.class_weights)
        mined = (self.bank, positives, hard_negatives)
        retrieval = loss_against_bank(self.loss, output.embedding, labels, *mined, weights)
        classification = self.objective(output.logits, labels, weights)
        weight = self.args.ce_weight
        return torch.stack([(1 - weight) * retrieval + weight * classification, retrieval, classification])

    def _report_parts(self) -> list[str]:
        parts, mined = super()._report_parts(), self.miner.statistics[-1]
        if mined["inverted"] is not None:
            parts.append(f"{mined['inverted']:.1%} of anchors nearer to a negative")
        parts += [f"{choice['candidates']} rows searched by {choice['index']}, recall@20 {choice['recall_at_20']:.4f}"
                 for choice in mined["indexes"] if choice["index"] != "flat"]  # fmt: skip
        for kind in ("positives", "hard_negatives", "hard_positives"):
            if mined[kind]["anchors_short"]:
                parts.append(f"{mined[kind]['anchors_short']} anchors short of {kind.replace('_', ' ')}")
        return parts

    def _notes(self) -> list[str]:
        """Also which anchors found less than was requested."""
        args, notes = self.args, super()._notes()
        knobs = {
            "positives": "pseudo_gold_positives",
            "hard_negatives": "hard_negatives",
            "hard_positives": "hard_positives",
        }
        for kind, knob in knobs.items():
            short, words = self.miner.statistics[-1][kind]["anchors_short"], kind.replace("_", " ")
            if short and args.compat == "official":
                notes.append(f"{short} anchors found fewer {words} than requested among {args.official_depth}.")
            elif short and args.mining == "sparse":
                notes.append(f"{short} anchors share words with fewer {words} than requested; lower `{knob}`.")
            elif short:
                notes.append(f"{short} anchors have fewer {words} in the data than requested; lower `{knob}`.")
        return notes


def run_stage2(args: Stage2Arguments) -> EasyDict:
    """Refine a head; see `run_training` for what is kept, returned and raised.

    Each epoch embeds the whole training split with the current head, mines positives and hard negatives in it, and
    steps through it once with `(1 − w)·L_CL + w·L_classification`.

    Source: RA-HMD (arXiv 2502.13061), Stage 2; on a fresh fused head, RGCL (arXiv 2311.08110).
    """
    return run_training(args, Trainer)
