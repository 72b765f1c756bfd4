"""Losses and weights of a training that are not finite.

Shapes: L losses of a step, B batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

FP16_STEPS = 10
"""Steps in a row whose loss is not finite after which a training in float16 ends.

The forward pass of a batch may overflow in float16; the gradients are then not finite either, and the loss scaler
leaves the step out, so that no weight changes. Where it happens to batch after batch, nothing is learnt any more.
"""

_SHOWN = 16  # ids in a message


@dataclass(frozen=True)
class BadBatch:
    """A batch whose loss was not finite.

    Attributes:
        step: Step that it belongs to, from 1 on.
        losses: Names of the losses that were not finite; empty where only their sum was not.
        rows: Its rows of the training set; where single rows are known to give values that are not finite, those.
    """

    step: int
    losses: tuple[str, ...]
    rows: tuple[int, ...]

    def describe(self, ids: Sequence[str]) -> str:
        """Part of a sentence: which losses were not finite, and of which memes; `ids` are those of the training set."""
        named = [f"the {name} loss" for name in self.losses] or ["the sum of the losses"]
        losses = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
        listed = ", ".join(repr(ids[row]) for row in self.rows[:_SHOWN])
        more = f" and {len(self.rows) - _SHOWN} more" if len(self.rows) > _SHOWN else ""
        memes = "meme" if len(self.rows) == 1 else "memes"
        return f"{losses} {'was' if len(named) == 1 else 'were'} not finite for the {memes} {listed}{more}"


class LossRecord:
    """Record of the losses of a training. A step adds them without waiting for the device; `read` looks at them.

    Args:
        names: Names of the losses of a batch after the first, which is their weighted sum.
        patience: Steps in a row with a loss that is not finite that end the training: 1, or `FP16_STEPS`.

    Attributes:
        steps: Number of steps whose loss was finite.
        bad_batches: Number of batches whose loss was not.
        found: First batch of the steps for which the training must end; None while there are none.
        last_bad: First batch of the steps in a row, up to the last one, without a finite loss; None if that had one.
    """

    def __init__(self, names: Sequence[str], patience: int = 1) -> None:
        self.steps = self.bad_batches = 0
        self.found: BadBatch | None = None
        self.last_bad: BadBatch | None = None
        self._names, self._patience = tuple(names), patience
        self._unread: list[tuple[int, Tensor, Tensor, Tensor | None]] = []
        self._in_a_row = 0

    def add(self, step: int, losses: Tensor, rows: Tensor, finite_rows: Tensor | None = None) -> None:
        """Note a batch.

        Args:
            step: Optimizer step that it belongs to, from 1 on.
            losses: [L], the weighted sum first.
            rows: [B], rows of the training set.
            finite_rows: [B], whether what the model gives for a row is finite; None where that is not known.
        """
        self._unread.append((step, losses.detach(), rows, finite_rows))

    def read(self) -> None:
        """Look at what was added since the last call, which must be whole steps. Waits for the device."""
        if not self._unread:
            return
        finite = torch.isfinite(torch.stack([losses for _, losses, _, _ in self._unread])).tolist()
        batches = zip(self._unread, finite, strict=True)
        self._unread = []
        for step, group in groupby(batches, key=lambda pair: pair[0][0]):
            bad = [(batch, flags) for batch, flags in group if not flags[0]]
            self.bad_batches += len(bad)
            if not bad:
                self.steps, self._in_a_row, self.last_bad = self.steps + 1, 0, None
                continue
            self._in_a_row += 1
            self.last_bad = self.last_bad or self._describe(*bad[0], step)
            if self._in_a_row >= self._patience and self.found is None:
                self.found = self.last_bad

    def end(self) -> None:
        """As `read`, after the last step: a training must also end where no step at all had a finite loss."""
        self.read()
        if self.steps == 0:
            self.found = self.found or self.last_bad

    def _describe(self, batch: tuple[int, Tensor, Tensor, Tensor | None], flags: list[bool], step: int) -> BadBatch:
        _, _, rows, finite_rows = batch
        bad_rows = rows if finite_rows is None else rows[~finite_rows]
        names = tuple(name for name, finite in zip(self._names, flags[1:], strict=True) if not finite)
        return BadBatch(step, names, tuple((bad_rows if len(bad_rows) else rows).tolist()))


def not_finite(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors with a value that is not finite; waits for the device once."""
    named = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    if not named:
        return []
    device = named[0][1].device
    flags = torch.stack([torch.isfinite(tensor).all().to(device) for _, tensor in named]).tolist()
    return [name for (name, _), finite in zip(named, flags, strict=True) if not finite]
