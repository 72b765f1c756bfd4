"""Auxiliary losses of a training: of each modality alone, and finer labels. Their layers are not kept.

Shapes: B batch, N train rows, n projected width, D embedding, C classes of a fine-grained task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import UNLABELLED, Problem
from ra_hmd.features.store import Features
from ra_hmd.models.fusion import Float32Linear
from ra_hmd.models.head import HeadConfig, MemeHead


def modality_head(config: HeadConfig, modality: str) -> MemeHead:
    """Pre-output layers and output as the head has them, on the projection [B, n] of one modality."""
    if config.fusion is None:
        raise ValueError("a head without fusion projects no modality")
    return MemeHead(config.replace(input_dim=config.fusion.width_of(modality), fusion=None))


@dataclass(frozen=True)
class FineTask:
    """A finer labelling of the training memes.

    Attributes:
        name: Field of the memes' extras.
        problem: `single_label`, or `multi_label` where a meme may have several of the classes.
        targets: int64 [N] or [N, C] of 0 and 1; `UNLABELLED` where a meme has none.
    """

    name: str
    problem: Problem
    targets: np.ndarray


def fine_tasks(features: Features, names: Sequence[str], place: str | Path) -> list[FineTask]:
    """The named tasks, from the memes' extras: a class index each, or a list of indices; missing or None: unlabelled.

    Raises:
        UserError: the store, read from `place`, has no such field, or it holds something else or one class only.
    """
    extras = features.extras or [{}] * len(features)
    known = sorted({key for extra in extras for key in extra})
    unknown = [f"{name!r} is no field of the memes" for name in names if name not in known]
    raise_all(unknown, f"`fine_grained`: {place} has {', '.join(known) or 'no further fields'}")
    return [_task(name, [extra.get(name) for extra in extras], features.ids, place) for name in names]


def _task(name: str, values: Sequence[Any], ids: Sequence[str], place: str | Path) -> FineTask:
    def index(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    labelled = [(row, value) for row, value in enumerate(values) if value is not None]
    multi = any(isinstance(value, list) for _, value in labelled)
    for row, value in labelled:
        if not (isinstance(value, list) and all(map(index, value)) if multi else index(value)):
            wanted = "a list of class indices, as of other memes" if multi else "a class index or a list of them"
            raise UserError(f"`fine_grained`: {name!r} of meme {ids[row]!r} in {place} is {value!r}, not {wanted}.")
    present = {item for _, value in labelled for item in (value if multi else [value])}
    if len(present) < (1 if multi else 2):
        what = f"class {present.pop()} only" if present else "no class"
        raise UserError(f"`fine_grained`: the memes of {place} have {what} of {name!r}; there is nothing to learn.")
    classes = max(present) + 1
    targets = np.full((len(values), classes) if multi else len(values), UNLABELLED, dtype=np.int64)
    for row, value in labelled:
        targets[row] = np.isin(np.arange(classes), value) if multi else value
    return FineTask(name, Problem("multi_label" if multi else "single_label", classes), targets)


class FineGrained(nn.Module):
    """One linear output per fine-grained task, on the head's embedding.

    Args:
        width: D.
        problems: Classification problem of each task.
    """

    def __init__(self, width: int, problems: Sequence[Problem]) -> None:
        super().__init__()
        self.problems = list(problems)
        self.outputs = nn.ModuleList(Float32Linear(width, problem.outputs) for problem in problems)

    def forward(self, embedding: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Mean over the tasks of `fine_loss`, from embeddings [B, D] and each task's targets [B] or [B, C]."""
        losses = [
            fine_loss(output(embedding), target, problem)
            for output, target, problem in zip(self.outputs, targets, self.problems, strict=True)
        ]
        return sum(losses[1:], losses[0]) / len(losses)


def fine_loss(logits: Tensor, targets: Tensor, problem: Problem) -> Tensor:
    """Cross-entropy of logits [B, C] over the labelled memes, of label sets the mean of the classes' BCE.

    Where no meme of the batch is labelled it is a zero that is still part of the graph.
    """
    if problem.kind == "single_label":
        total = F.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="sum")
        return total / (targets != UNLABELLED).sum().clamp(min=1)
    known = (targets != UNLABELLED).float()
    total = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).float(), weight=known, reduction="sum")
    return total / known.sum().clamp(min=1)
