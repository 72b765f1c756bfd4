"""One run of Stage 2 in memory: the head refined with retrieval-guided contrast, on features that stay as they are.

Shapes: B batch, H hidden size, N train rows, D embedding, C outputs, P positives, M hard negatives.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ra_hmd.errors import UserError
from ra_hmd.features.store import Features
from ra_hmd.models.head import MemeHead
from ra_hmd.models.objective import Objective, anchor_weights, class_weights, weights_of
from ra_hmd.retrieval.embedded import Embedded, hidden_tensor, run_head
from stage2.arguments import Stage2Arguments
from stage2.dev import dev_scores
from stage2.losses.contrastive import contrastive_loss
from stage2.losses.naive import naive_loss
from stage2.losses.official import official_loss
from stage2.losses.triplet import triplet_loss
from stage2.miner import Miner
from stage2.outputs import Outcome

_LOSSES = ("loss", "retrieval", "classification")


def parameter_groups(head: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, biases do not."""
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]


def clip_gradients(head: nn.Module, limit: float) -> Tensor:
    """Scale gradients that are longer than `limit` together down to it; returns the norm [] that they had.

    As `clip_grad_norm_`, to the bit, but on the CPU, where asking for a value waits for nothing, short gradients are
    not multiplied by 1: that pass over 15 MB takes a tenth of a step or more.
    """
    norm = nn.utils.get_total_norm([parameter.grad for parameter in head.parameters()])
    if not (norm.is_cpu and norm <= limit - 1e-6):
        nn.utils.clip_grads_with_norm_(head.parameters(), limit, norm)
    return norm


def retrieval_loss(args: Stage2Arguments) -> Callable[..., Tensor]:
    """The retrieval-guided loss with its settings; called with tensors and `weights`."""
    common = {"similarity": args.similarity, "in_batch_negatives": args.in_batch_negatives}
    if args.compat == "official":
        return partial(official_loss, loss=args.loss, margin=args.margin, **common)
    if args.loss == "triplet":
        return partial(triplet_loss, margin=args.margin, **common)
    if args.loss == "naive":
        return partial(naive_loss, **common)
    return partial(contrastive_loss, temperature=args.temperature, **common)


class Trainer:
    """One Stage 2 run: call `fit`, then `outcome`.

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
        self.problem = head.config.problem
        self.hidden = hidden_tensor(train).to(device)
        self.labels = torch.tensor(train.labels, device=device)
        weights = class_weights(train.labels, self.problem, args.class_weights, args.class_balance_beta)
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(device)
        self.loss = retrieval_loss(args)
        self.objective = Objective(self.problem, args.gamma)
        self.dev_hidden = hidden_tensor(dev).to(device) if dev is not None else None
        self.optimizer = torch.optim.AdamW(parameter_groups(self.head, args.weight_decay), lr=args.lr, fused=True)
        self.order = torch.Generator().manual_seed(args.seed)
        self.miner = Miner(args, train)
        self.initial_state = self._state()
        self.best_state, self.best_epoch = self.initial_state, 0
        self.best_key: tuple[float, float] | None = None
        self.history: list[dict[str, Any]] = []
        self.bank = self._embed_bank()

    def fit(self) -> None:
        """Train for the asked number of epochs, or until dev has not improved for `patience` of them."""
        steps = -(-len(self.train) // self.args.batch_size)
        columns = (TextColumn("Stage 2"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("", total=steps * self.args.epochs)
            self.close_epoch(0, {})
            for epoch in range(1, self.args.epochs + 1):
                losses = self.train_epoch(epoch, lambda: progress.advance(task))
                self.close_epoch(epoch, losses)
                progress.console.print(self._line(), soft_wrap=True, highlight=False)
                if self.args.patience is not None and epoch - self.best_epoch >= self.args.patience:
                    progress.console.print(f"No better dev score for {self.args.patience} epochs: stopped.")
                    break

    def outcome(self) -> Outcome:
        """What there is to save."""
        return Outcome(
            config=self.head.config,
            state=self.best_state,
            initial_state=self.initial_state,
            best_epoch=self.best_epoch,
            history=self.history,
            mining=self.miner.statistics,
        )

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self.head.state_dict().items()}

    def _embed_bank(self) -> Tensor:
        return run_head(self.head, self.hidden)[0]

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.train), generator=self.order)
        yield from order.to(self.hidden.device).split(self.args.batch_size)

    def train_epoch(self, epoch: int, advance: Callable[[], None]) -> dict[str, float]:
        """Mine, pass once through the data, embed the bank; returns the mean losses. No step waits for the device."""
        device = self.hidden.device
        totals = torch.zeros(len(_LOSSES), device=device)
        not_finite = torch.zeros((), dtype=torch.long, device=device)
        for step, rows in enumerate(self._batches()):
            if step == 0 or (self.args.reindex_every and step % self.args.reindex_every == 0):
                if step:
                    self.bank = self._embed_bank()
                self.miner.refresh(self.bank, self.labels, epoch, step)
                self.head.train()
            losses = self._losses(rows)
            self.optimizer.zero_grad(set_to_none=True)
            losses[0].backward()
            norm = clip_gradients(self.head, self.args.grad_clip)
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
        self.bank = self._embed_bank()
        return dict(zip(_LOSSES, (totals / len(self.train)).tolist(), strict=True))

    def _losses(self, rows: Tensor) -> Tensor:
        """Total, retrieval and classification loss [3] of the anchors `rows` [B]."""
        output = self.head(self.hidden[rows])
        positives, hard_negatives = self.miner.rows(rows, output.embedding)
        labels = self.labels[rows]
        weights = weights_of(labels, self.class_weights)
        retrieval = self.loss(
            output.embedding,
            labels,
            self.bank[positives.clamp(min=0)],
            positives >= 0,
            self.bank[hard_negatives.clamp(min=0)],
            hard_negatives >= 0,
            weights=anchor_weights(weights),
        )
        classification = self.objective(output.logits, labels, weights)
        weight = self.args.ce_weight
        return torch.stack([(1 - weight) * retrieval + weight * classification, retrieval, classification])

    def close_epoch(self, epoch: int, losses: dict[str, float]) -> None:
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
        if self.dev is None or self.dev_hidden is None:
            return {}
        embedding, logits = run_head(self.head, self.dev_hidden)
        bank = Embedded(self.train.ids, self.train.labels, self.bank.cpu().numpy())
        queries = Embedded(self.dev.ids, self.dev.labels, embedding.cpu().numpy())
        return dev_scores(bank, queries, logits, self.args.voting, self.problem)

    def _line(self) -> str:
        """One line about the last epoch, for the terminal."""
        entry, mined = self.history[-1], self.miner.statistics[-1]
        parts = [f"epoch {entry['epoch']}: loss {entry['loss']:.4f} (retrieval {entry['retrieval']:.4f}, "
                 f"classification {entry['classification']:.4f})"]  # fmt: skip
        if self.args.select_by in entry:
            parts.append(f"{self.args.select_by} {entry[self.args.select_by]:.4f}")
        if mined["inverted"] is not None:
            parts.append(f"{mined['inverted']:.1%} of anchors nearer to a negative")
        for kind in ("positives", "hard_negatives", "hard_positives"):
            if mined[kind]["anchors_short"]:
                parts.append(f"{mined[kind]['anchors_short']} anchors short of {kind.replace('_', ' ')}")
        return ", ".join(parts)
