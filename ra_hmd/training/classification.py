"""`ra-hmd train-head`: a head trained by classification alone, as Hate-CLIPper trains its own.

Shapes: B batch, N train rows, C outputs.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ra_hmd.core.errors import raise_all
from ra_hmd.features.store import Features
from ra_hmd.models.head import HeadConfig
from ra_hmd.models.losses import weights_of
from ra_hmd.training.arguments import HeadArguments
from ra_hmd.training.auxiliary_losses import FineGrained, fine_tasks, modality_head
from ra_hmd.training.run import run_training
from ra_hmd.training.trainer import HeadTrainer

_MODALITIES = ("image", "text")


class TrainHeadArguments(HeadArguments):
    """Settings of `ra-hmd train-head`; the defaults are Hate-CLIPper's (its variant align with three layers).

    Raises:
        UserError: values that do not fit or contradict each other, all listed together.
    """

    TITLE: ClassVar[str] = "train-head"
    KIND: ClassVar[str] = "head"
    FRESH: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "fusion": "align",
            "map_dim": 1024,
            "mapping_layers": 1,
            "map_dropout": 0.2,
            "input_dropout": 0.4,
            "num_layers": 4,
            "proj_dim": 1024,
            "dropout": (0.1,),
        }
    )

    image_loss: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the loss of an output that reads the image's projection alone; 0: none.",
    )
    text_loss: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the loss of an output that reads the text's projection alone; 0: none.",
    )
    fine_grained_loss: float = Field(
        default=0.0, ge=0, description="Weight of the mean loss of the `fine_grained` tasks; 0: none."
    )
    fine_grained: tuple[str, ...] = Field(
        default=(),
        description="Fields of the memes' extras with finer labels, a class index or a list of them, as in [kind]; "
        "memes without one are left out of that task's loss.",
    )

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.fine_grained_loss and not self.fine_grained:
            yield "`fine_grained_loss` is set: name the tasks with `fine_grained`."
        if self.fine_grained and not self.fine_grained_loss:
            yield "`fine_grained` is set, but `fine_grained_loss` is 0: give it a weight, or remove it."

    @property
    def modality_losses(self) -> dict[str, float]:
        """Modality → weight of its own loss, of those that have one."""
        return {name: weight for name in _MODALITIES if (weight := getattr(self, f"{name}_loss"))}


class ClassificationTrainer(HeadTrainer[TrainHeadArguments]):
    """A training by classification: call `fit`, then `outcome`. See `HeadTrainer`.

    The loss is that of the head's logits, and, each times its weight, of each modality's own output and of
    fine-grained outputs. Their layers share the head's projections or embedding, and are not part of what is saved.

    Source: Hate-CLIPper (arXiv 2210.05916), section 3, and its code's auxiliary losses.
    """

    @classmethod
    def check(cls, args: TrainHeadArguments, config: HeadConfig, train: Features) -> None:
        """Raise `UserError` unless the head looks at the requested modalities and the memes have the finer labels."""
        looked_at = () if config.fusion is None else config.fusion.modalities
        fusion = "has no fusion" if config.fusion is None else f"has `fusion: {config.fusion.kind}`"
        problems = [f"`{name}_loss` is {weight}, but the head {fusion} and projects no {name} features; remove it."
                    for name, weight in args.modality_losses.items() if name not in looked_at]  # fmt: skip
        raise_all(problems, "The auxiliary losses do not fit")
        fine_tasks(train, args.fine_grained, args.train)

    def _parts(self) -> list[nn.Module]:
        args, config = self.args, self.head.config
        self.modality_heads = {name: modality_head(config, name) for name in args.modality_losses}
        tasks = fine_tasks(self.train, args.fine_grained, args.train)
        self.fine_grained = FineGrained(config.embedding_dim, [task.problem for task in tasks]) if tasks else None
        device = next(self.head.parameters()).device
        self.fine_targets = [torch.from_numpy(task.targets).to(device) for task in tasks]
        names = [f"{name}_loss" for name in self.modality_heads] + ["fine_grained_loss"] * bool(tasks)
        self.losses = ("loss", "classification", *names)
        self.shares = torch.tensor([1.0, *(getattr(args, name) for name in names)], device=device)
        return [*self.modality_heads.values(), *([self.fine_grained] if self.fine_grained is not None else [])]

    def _losses(self, rows: Tensor) -> Tensor:
        """Total, classification and auxiliary losses of the rows [B]."""
        output = self._apply(self.head, self.hidden[rows])
        labels = self.labels[rows]
        weights = weights_of(labels, self.class_weights)
        parts = [self.objective(output.logits, labels, weights)]
        for name, head in self.modality_heads.items():
            if output.projected is None:
                raise RuntimeError("a head without fusion has no modalities")
            parts.append(self.objective(self._apply(head, output.projected[name]).logits, labels, weights))
        if self.fine_grained is not None:
            parts.append(self.fine_grained(output.embedding, [targets[rows] for targets in self.fine_targets]))
        losses = torch.stack(parts)
        return torch.cat([(self.shares * losses).sum()[None], losses])


def train_head(args: TrainHeadArguments) -> dict[str, Any]:
    """Train a head by classification; see `run_training` for what is kept, returned and raised.

    Source: Hate-CLIPper (arXiv 2210.05916).
    """
    return run_training(args, ClassificationTrainer)
