"""One training of a head in memory, on features that stay as they are.

Shapes: B batch, H hidden size, N train rows, D embedding, C outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast

import torch
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ra_hmd.core.errors import UserError
from ra_hmd.core.progress import notebook_safe_progress
from ra_hmd.features.store import Features
from ra_hmd.models.head import HeadConfig, HeadOutput, MemeHead
from ra_hmd.models.losses import Objective, class_weights
from ra_hmd.retrieval.embeddings import Embeddings, hidden_tensor, run_head
from ra_hmd.training.arguments import HeadArguments
from ra_hmd.training.finite import FP16_STEPS, LossRecord, not_finite
from ra_hmd.training.reporting import Report
from ra_hmd.training.validation import dev_scores

A = TypeVar("A", bound=HeadArguments)
_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, biases do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale gradients that are longer than `limit` together down to it; returns the norm [] that they had.

    As `clip_grad_norm_`, to the bit, but on the CPU, where asking for a value waits for nothing, short gradients are
    not multiplied by 1: that pass over 15 MB takes a tenth of a step or more.
    """
    norm = nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
    if not (norm.is_cpu and norm <= limit - 1e-6):
        nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return norm


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        config: Shape of the head.
        state: Weights of the kept epoch.
        initial_state: Weights before the first step, where they were trained before.
        best_epoch: The kept epoch; 0 is the initial head.
        losses: Names of the losses in `history`.
        history: Losses and dev scores per epoch, epoch 0 first.
        notes: What a reader must know.
        tables: Further JSON files: name → content.
        figures: Further figures: name → figure.
    """

    config: HeadConfig
    state: dict[str, Tensor]
    initial_state: dict[str, Tensor] | None
    best_epoch: int
    losses: Sequence[str]
    history: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    tables: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)


class HeadTrainer(Generic[A]):
    """One run: call `fit`, then `outcome`. A subclass defines the loss (`_losses`).

    Args:
        args: The settings.
        head: The initial head; trained in place.
        train: Features that are trained on and that are the bank.
        dev: Features that choose the epoch, or None.
        device: Where head and features live.

    Attributes:
        model: All that is trained: the head, and what a subclass adds to it.
        losses: Names of what `_losses` gives, the total first.
        report: Takes losses and dev scores of each epoch; None reports nothing.
    """

    LOWER: ClassVar[str] = "Lower `lr` ({lr})"
    """Remedies for losses and gradients that are not finite."""

    losses: tuple[str, ...] = ("loss", "classification")

    def __init__(self, args: A, head: MemeHead, train: Features, dev: Features | None, device: torch.device) -> None:
        self.args, self.train, self.dev = args, train, dev
        self.head = head.to(device)
        self.model = nn.ModuleList([self.head, *self._parts()]).to(device)
        self.problem = head.config.problem
        self.hidden = hidden_tensor(train).to(device)
        self.labels = torch.tensor(train.labels, device=device)
        weights = class_weights(train.labels, self.problem, args.class_weights, args.class_balance_beta)
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(device)
        self.objective = Objective(self.problem, args.gamma)
        self.dev_hidden = hidden_tensor(dev).to(device) if dev is not None else None
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, args.weight_decay), lr=args.lr, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.mixed_precision == "fp16")
        names = [name.removesuffix("_loss").replace("_", " ") for name in self.losses[1:]]
        self.record = LossRecord(names, FP16_STEPS if self.scaler.is_enabled() else 1)
        self.left_out = 0
        self.order = torch.Generator().manual_seed(args.seed)
        self.initial_state = None if args.init_head is None else self._state()
        self.best_state, self.best_epoch = self.initial_state, 0
        self.best_key: tuple[float, float] | None = None
        self.history: list[dict[str, Any]] = []
        self.report: Report | None = None
        self._bank: Tensor | None = None

    @classmethod
    def check(cls, args: A, config: HeadConfig, train: Features) -> None:
        """Raise `UserError` if a head of this shape cannot be trained so on these rows."""

    @property
    def bank(self) -> Tensor:
        """The training set as last embedded [N, D], without gradient."""
        if self._bank is None:
            self._bank = self._embed_bank()
        return self._bank

    def fit(self) -> None:
        """Train for the requested number of epochs, or until dev has not improved for `patience` of them."""
        steps = -(-len(self.train) // self.args.batch_size)
        columns = (TextColumn(self.args.TITLE), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with notebook_safe_progress(*columns) as progress:
            task = progress.add_task("", total=steps * self.args.epochs)
            self.close_epoch(0, {})
            for epoch in range(1, self.args.epochs + 1):
                losses = self.train_epoch(epoch, lambda: progress.advance(task))
                self.close_epoch(epoch, losses)
                progress.console.print(", ".join(self._report_parts()), soft_wrap=True, highlight=False)
                if self.args.patience is not None and epoch - self.best_epoch >= self.args.patience:
                    progress.console.print(f"No better dev score for {self.args.patience} epochs: stopped.")
                    break

    def outcome(self) -> Outcome:
        """Values to save with a checkpoint."""
        if self.best_state is None:
            raise RuntimeError("no epoch was closed that could be kept")
        return Outcome(
            config=self.head.config,
            state=self.best_state,
            initial_state=self.initial_state,
            best_epoch=self.best_epoch,
            losses=self.losses,
            history=self.history,
            notes=self._notes(),
        )

    def train_epoch(self, epoch: int, advance: Callable[[], None]) -> dict[str, float]:
        """Pass once through the data; returns the mean losses. No step waits for the device."""
        device = self.hidden.device
        totals = torch.zeros(len(self.losses), device=device)
        counted, bad_norms = (torch.zeros((), dtype=torch.long, device=device) for _ in range(2))
        before = (epoch - 1) * -(-len(self.train) // self.args.batch_size)
        self.model.train()
        for step, rows in enumerate(self._batches()):
            self._before_step(epoch, step)
            losses = self._losses(rows)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(losses[0]).backward()
            self.scaler.unscale_(self.optimizer)
            norm = clip_gradients(self.model, self.args.grad_clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            finite = torch.isfinite(losses[0].detach())
            totals += torch.where(finite, losses.detach(), 0.0) * len(rows)
            counted += finite * len(rows)
            bad_norms += ~torch.isfinite(norm)
            self.record.add(before + step + 1, losses, rows)
            advance()
        self.model.eval()
        self._bank = None
        self._check_finite(epoch, int(bad_norms))
        return dict(zip(self.losses, (totals / counted).tolist(), strict=True))

    def close_epoch(self, epoch: int, losses: dict[str, float]) -> None:
        """Record an epoch and keep its head if it is the best so far."""
        scores = self._dev_scores(epoch)
        self.history.append({"epoch": epoch, **losses, **scores})
        if self.report is not None:
            self.report({**losses, **scores}, epoch)
        if epoch == 0 and self.args.init_head is None:
            return  # An untrained head is no candidate.
        if not scores:
            better = epoch > 0
        else:
            # Never None: `read_stores` refuses a dev store whose labels leave the metric undefined.
            key = cast(tuple[float, float], (scores[self.args.select_by], scores["dev_rkc_margin"]))
            better = self.best_key is None or key > self.best_key
            self.best_key = key if better else self.best_key
        if better:
            self.best_state, self.best_epoch = self._state(), epoch

    def _parts(self) -> list[nn.Module]:
        """Modules that are trained beside the head, and thrown away after training."""
        return []

    def _before_step(self, epoch: int, step: int) -> None:
        """Hook before a step; the model stays in training mode."""

    def _losses(self, rows: Tensor) -> Tensor:
        """The losses of the rows [B], the total first."""
        raise NotImplementedError

    def _notes(self) -> list[str]:
        """Notes for the reader of the run."""
        if not self.left_out:
            return []
        return [f"fp16: {self.left_out} steps overflowed and were left out; the loss is then scaled less."]

    def _report_parts(self) -> list[str]:
        """Summary of the last epoch for the terminal."""
        entry = self.history[-1]
        parts = ", ".join(f"{name.replace('_', ' ')} {entry[name]:.4f}" for name in self.losses[1:])
        lines = [f"epoch {entry['epoch']}: loss {entry['loss']:.4f} ({parts})"]
        if self.args.select_by in entry:
            lines.append(f"{self.args.select_by} {entry[self.args.select_by]:.4f}")
        return lines

    def _apply(self, head: MemeHead, features: Tensor) -> HeadOutput:
        """A head's output of features [B, H], its products in the requested precision."""
        head.autocast_dtype = _DTYPES[self.args.mixed_precision]
        try:
            return head(features)
        finally:
            head.autocast_dtype = None  # bank and dev are seen as they will be once the head is deployed

    def _check_finite(self, epoch: int, bad_norms: int) -> None:
        """End the training where a loss, a gradient or a weight of the epoch is not finite.

        With loss scaling, steps whose gradient or loss overflowed changed no weight: training ends if scaling less did
        not help, or where the loss of `FP16_STEPS` steps in a row, or of the whole epoch, was not finite.
        """
        finite_steps = self.record.steps
        self.record.read()
        scaled = self.scaler.is_enabled()
        remedy = ", or use `mixed_precision: bf16`" if scaled else ""
        found = self.record.found or (self.record.last_bad if self.record.steps == finite_steps else None)
        problem = ""
        if found is not None:
            problem = f"in step {found.step} {found.describe(self.train.ids)}"
        elif bad_norms and not (scaled and self.scaler.get_scale() >= 1):
            problem = f"the gradient was not finite in {bad_norms} step{'s' * (bad_norms > 1)}"
        elif names := not_finite(self.head.state_dict()):
            problem = f"the weights {', '.join(names)} are not finite"
        if problem:
            self._stop(epoch, problem, remedy)
        self.left_out += bad_norms

    def _stop(self, epoch: int, problem: str, remedy: str = "") -> NoReturn:
        lower = self.LOWER.format(lr=self.args.lr)
        raise UserError(f"{self.args.TITLE}, epoch {epoch}: {problem}. {lower}{remedy}; nothing was saved.")

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self.head.state_dict().items()}

    def _embed_bank(self) -> Tensor:
        return run_head(self.head, self.hidden)[0]

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.train), generator=self.order)
        yield from order.to(self.hidden.device).split(self.args.batch_size)

    def _dev_scores(self, epoch: int) -> dict[str, float | None]:
        if self.dev is None or self.dev_hidden is None:
            return {}
        embedding, logits = run_head(self.head, self.dev_hidden)
        lengths = {"the bank": self.bank.square().sum(1), "the dev memes": embedding.square().sum(1)}
        if bad := not_finite(lengths | {"the logits": logits}):
            self._stop(epoch, f"values that are not finite, or too large to be compared, in {', '.join(bad)}")
        bank = Embeddings(self.train.ids, self.train.labels, self.bank.cpu().numpy())
        queries = Embeddings(self.dev.ids, self.dev.labels, embedding.cpu().numpy())
        return dev_scores(bank, queries, logits, self.args.voting, self.problem)
