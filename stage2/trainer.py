"""Stage 2: the head refined with retrieval-guided contrast, on features that stay as they are.

Shapes: B batch, H hidden size, N train rows, D embedding, P pseudo-gold positives, M hard negatives.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.special import expit
from torch import Tensor, nn

from ra_hmd.errors import UserError
from ra_hmd.evaluation.checks import (
    check_head_fits,
    check_output,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.evaluation.metrics import THRESHOLDS, binary_metrics
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import HeadConfig, MemeHead, load_head
from ra_hmd.models.objective import Objective
from ra_hmd.retrieval.embedded import Embedded, hidden_tensor, run_head
from ra_hmd.retrieval.voting import Voting
from stage2.arguments import Stage2Arguments
from stage2.losses.contrastive import contrastive_loss
from stage2.losses.naive import naive_loss
from stage2.losses.triplet import triplet_loss
from stage2.mining import Mined, mine
from stage2.outputs import Outcome, save_outcome

_LOSSES = ("loss", "contrastive", "bce")


def run_stage2(args: Stage2Arguments) -> dict[str, Any]:
    """Refine a head; the same settings and seed give the same head (on the CPU, to the bit).

    Each epoch embeds the whole training split with the current head, mines positives and hard negatives in it, and
    steps through it once with `(1 − w)·L_CL + w·L_BCE`. The kept epoch is the best on dev by `args.select_by`, with
    the training split as the bank; among equals the one whose KNN votes are further on the right side. The initial
    head takes part as epoch 0 if it was trained before (`init_head`). Without dev the last epoch is kept.

    Returns:
        `output_dir`, `best_epoch`, `epochs`, `select_by` (None without dev), `dev` and `dev_before` (scores of the
        kept and of the initial head; {} without dev), `notes` (what a reader must know).

    Raises:
        UserError: stores and head that do not belong together, labels that are missing or of one class, gradients
            that are not finite.

    Source: RA-HMD (arXiv 2502.13061), Stage 2.
    """
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise UserError("Stage 2 trains a small head in seconds to minutes, in one process: start it without torchrun.")
    check_output(args.output_dir, "stage2")
    train, dev = _read_stores(args)
    set_seed(args.seed)
    head = _initial_head(args, train)
    trainer = Trainer(args, head, train, dev, accelerator.device)
    trainer.fit()
    return save_outcome(args, trainer.outcome(), train, dev)


def _read_stores(args: Stage2Arguments) -> tuple[Features, Features | None]:
    train = read_features(args.train)
    known = {str(args.train): store_fingerprint(train)}
    if args.init_head is not None:
        known[str(args.init_head)] = head_fingerprint(args.init_head)
    dev = read_features(args.dev) if args.dev is not None else None
    check_store(train, args.train)
    if len(set(train.labels.tolist())) < 2:
        raise UserError(f"{args.train} has memes of class {train.labels[0]} only; training needs both classes.")
    if dev is not None:
        check_store(dev, args.dev)
        if args.select_by.endswith("auroc") and len(set(dev.labels.tolist())) < 2:
            raise UserError(
                f"{args.dev} has memes of class {dev.labels[0]} only, so `select_by: {args.select_by}` is undefined; "
                "give a dev store with both classes, or select by an accuracy."
            )
        if dev.hidden.shape[1] != train.hidden.shape[1]:
            raise UserError(
                f"Hidden states have size {train.hidden.shape[1]} in {args.train} and {dev.hidden.shape[1]} in "
                f"{args.dev}: they come from different LMMs. Extract both with one checkpoint."
            )
        known[str(args.dev)] = store_fingerprint(dev)
    check_same_origin(known)
    return train, dev


def _initial_head(args: Stage2Arguments, train: Features) -> MemeHead:
    """The head of `init_head`, or a fresh one, with the asked dropout."""
    rates = {name: getattr(args, name) for name in ("dropout", "input_dropout") if getattr(args, name) is not None}
    if args.init_head is None:
        shape = {name: getattr(args, name) for name in ("num_layers", "proj_dim") if getattr(args, name) is not None}
        return MemeHead(HeadConfig(input_dim=train.hidden.shape[1], **shape, **rates))
    saved = load_head(args.init_head)
    check_head_fits(saved.config, args.init_head, train, args.train)
    head = MemeHead(replace(saved.config, **rates))
    head.load_state_dict(saved.state_dict())
    return head


def parameter_groups(head: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, biases do not."""
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]


def _loss_function(args: Stage2Arguments) -> Callable[..., Tensor]:
    """The retrieval-guided loss with its settings; called with tensors and `weights`."""
    common = {"similarity": args.similarity, "in_batch_negatives": args.in_batch_negatives}
    if args.loss == "triplet":
        return partial(triplet_loss, margin=args.margin, **common)
    if args.loss == "naive":
        return partial(naive_loss, **common)
    return partial(contrastive_loss, temperature=args.temperature, **common)


def _balanced(labels: Tensor) -> Tensor:
    """Weight [C] of each class with which all classes weigh the same and the mean weight of a meme is 1."""
    counts = torch.bincount(labels)
    return len(labels) / (len(counts) * counts.clamp(min=1))


class Trainer:
    """One Stage 2 run in memory: call `fit`, then `outcome`.

    Args:
        args: The settings.
        head: The initial head; trained in place.
        train: Features that are trained on and that are the bank.
        dev: Features that choose the epoch, or None.
        device: Where head and features live.
    """

    def __init__(
        self, args: Stage2Arguments, head: MemeHead, train: Features, dev: Features | None, device: torch.device
    ) -> None:
        self.args, self.train, self.dev = args, train, dev
        self.head = head.to(device)
        self.hidden = hidden_tensor(train).to(device)
        self.labels = torch.tensor(train.labels, device=device)
        self.class_weights = _balanced(self.labels) if args.class_weights == "balanced" else None
        self.loss = _loss_function(args)
        self.dev_hidden = hidden_tensor(dev).to(device) if dev is not None else None
        self.optimizer = torch.optim.AdamW(parameter_groups(self.head, args.weight_decay), lr=args.lr, fused=True)
        self.order = torch.Generator().manual_seed(args.seed)
        self.initial_state = self._state()
        self.best_state, self.best_epoch = self.initial_state, 0
        self.best_key: tuple[float, float] | None = None
        self.history: list[dict[str, Any]] = []
        self.mining: list[dict[str, Any]] = []
        self.bank = self._embed_bank()

    def fit(self) -> None:
        """Train for the asked number of epochs."""
        steps = -(-len(self.train) // self.args.batch_size)
        columns = (TextColumn("Stage 2"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("", total=steps * self.args.epochs)
            self._close_epoch(0, {})
            for epoch in range(1, self.args.epochs + 1):
                mined = self._mine(epoch)
                losses = self._train_epoch(epoch, mined, lambda: progress.advance(task))
                self.bank = self._embed_bank()
                self._close_epoch(epoch, losses)
                progress.console.print(self._line(), soft_wrap=True, highlight=False)

    def outcome(self) -> Outcome:
        """What there is to save."""
        return Outcome(
            config=self.head.config,
            state=self.best_state,
            initial_state=self.initial_state,
            best_epoch=self.best_epoch,
            history=self.history,
            mining=self.mining,
        )

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self.head.state_dict().items()}

    def _embed_bank(self) -> Tensor:
        return run_head(self.head, self.hidden)[0]

    def _mine(self, epoch: int) -> Mined:
        mined = mine(
            self.bank.cpu().numpy(),
            self.train.labels,
            self.train.ids,
            positives=self.args.pseudo_gold_positives,
            hard_negatives=self.args.hard_negatives,
            hard_positives=self.args.hard_positives,
            positive_depth=self.args.positive_depth,
            similarity=self.args.similarity,
        )
        self.mining.append({"epoch": epoch, **mined.statistics()})
        return mined

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.train), generator=self.order)
        yield from order.to(self.hidden.device).split(self.args.batch_size)

    def _train_epoch(self, epoch: int, mined: Mined, advance: Callable[[], None]) -> dict[str, float]:
        """One pass; returns the mean losses. Nothing in a step waits for the device."""
        device = self.hidden.device
        positives = torch.from_numpy(mined.all_positives()).to(device)
        hard_negatives = torch.from_numpy(mined.hard_negatives.rows).to(device)
        totals = torch.zeros(len(_LOSSES), device=device)
        not_finite = torch.zeros((), dtype=torch.long, device=device)
        self.head.train()
        for rows in self._batches():
            losses = self._losses(rows, positives[rows], hard_negatives[rows])
            self.optimizer.zero_grad(set_to_none=True)
            losses[0].backward()
            norm = nn.utils.clip_grad_norm_(self.head.parameters(), self.args.grad_clip)
            self.optimizer.step()
            totals += losses.detach() * len(rows)
            not_finite += ~torch.isfinite(norm)
            advance()
        self.head.eval()
        if not_finite:
            raise UserError(
                f"Stage 2, epoch {epoch}: the gradient was not finite in {int(not_finite)} steps. Lower `lr` "
                f"({self.args.lr}), or set `metric: cos` if the embeddings are very long; nothing was saved."
            )
        return dict(zip(_LOSSES, (totals / len(self.train)).tolist(), strict=True))

    def _losses(self, rows: Tensor, positives: Tensor, hard_negatives: Tensor) -> Tensor:
        """Total, contrastive and BCE loss [3] of the anchors `rows` [B], with bank rows [B, P] and [B, M]."""
        output = self.head(self.hidden[rows])
        labels = self.labels[rows]
        weights = None if self.class_weights is None else self.class_weights[labels]
        contrastive = self.loss(
            output.embedding,
            labels,
            self.bank[positives.clamp(min=0)],
            positives >= 0,
            self.bank[hard_negatives.clamp(min=0)],
            hard_negatives >= 0,
            weights=weights,
        )
        bce = Objective()(output.logits, labels, weights)
        weight = self.args.ce_weight
        return torch.stack([(1 - weight) * contrastive + weight * bce, contrastive, bce])

    def _close_epoch(self, epoch: int, losses: dict[str, float]) -> None:
        """Record an epoch and keep its head if it is the best so far."""
        scores = self._dev_scores()
        self.history.append({"epoch": epoch, **losses, **scores})
        if epoch == 0 and self.args.init_head is None:
            return  # An untrained head is no candidate.
        if not scores:
            better = epoch > 0
        else:
            key = (scores[self.args.select_by], scores["dev_rkc_margin"])
            better = self.best_key is None or key > self.best_key
            self.best_key = key if better else self.best_key
        if better:
            self.best_state, self.best_epoch = self._state(), epoch

    def _dev_scores(self) -> dict[str, float | None]:
        """Accuracy and AUROC of RKC and LRC on dev, and how far RKC's mean vote is on the right side."""
        if self.dev is None or self.dev_hidden is None:
            return {}
        embedding, logits = run_head(self.head, self.dev_hidden)
        bank = Embedded(self.train.ids, self.train.labels, self.bank.cpu().numpy())
        queries = Embedded(self.dev.ids, self.dev.labels, embedding.cpu().numpy())
        voting = Voting(self.args.topk, self.args.weights)
        rkc = voting.vote(bank.nearest(queries, voting.topk), bank.labels).scores[:, 0]
        lrc = expit(logits[:, 0].double().cpu().numpy())
        scores: dict[str, float | None] = {}
        for head, values in (("rkc", rkc), ("lrc", lrc)):
            found = binary_metrics(values, self.dev.labels, THRESHOLDS[head], ("auroc", "accuracy"))
            scores |= {f"dev_{head}_{name}": value for name, value in found.items()}
        scores["dev_rkc_margin"] = float(((2 * self.dev.labels - 1) * rkc).mean())
        return scores

    def _line(self) -> str:
        """One line about the last epoch, for the terminal."""
        entry, mined = self.history[-1], self.mining[-1]
        parts = [f"epoch {entry['epoch']}: loss {entry['loss']:.4f} (contrastive {entry['contrastive']:.4f}, "
                 f"bce {entry['bce']:.4f})"]  # fmt: skip
        if self.args.select_by in entry:
            parts.append(f"{self.args.select_by} {entry[self.args.select_by]:.4f}")
        if mined["inverted"] is not None:
            parts.append(f"{mined['inverted']:.1%} of anchors nearer to a negative")
        for kind in ("positives", "hard_negatives", "hard_positives"):
            if mined[kind]["anchors_short"]:
                parts.append(f"{mined[kind]['anchors_short']} anchors short of {kind.replace('_', ' ')}")
        return ", ".join(parts)
