"""Ends Stage 1 where its loss or its weights are not finite, on every rank alike, before anything of it is saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llamafactory_ext.launchers import STAGE
from llamafactory_ext.sft_classifier.nodes import of_every_rank
from llamafactory_ext.sft_classifier.weights import local_part
from ra_hmd.core.errors import UserError
from ra_hmd.models.classifier import ClassifierOutput
from ra_hmd.training.finite import FP16_STEPS, BadBatch, LossRecord, not_finite

LOSSES = ("language", "classifier", "contrastive", "balance", "divergence")
"""Names in messages of the parts of the loss, in the order in which `FiniteTraining.add` takes them."""

CHECK_EVERY = 500
"""Steps between checks where nothing is logged, evaluated or saved."""


class FiniteTraining(TrainerCallback):
    """Records the losses of a training on the device, and ends it where they, or the weights, are not finite.

    The trainer calls `check` where it waits for the device anyway: when it logs, evaluates, saves and ends, and every
    `CHECK_EVERY` steps. With `fp16` a loss that overflows is left out by the loss scaler; training ends after
    `FP16_STEPS` such steps in a row.

    Args:
        trainer: The `ClassifierTrainer`; of its parts, arguments and device exist already.

    Attributes:
        checkpoint: The last checkpoint: that which training resumed from, until it writes one; "" if there is none.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._checked, self.checkpoint = trainer, 0, ""
        self._record = LossRecord(LOSSES, FP16_STEPS if trainer.args.fp16 else 1)

    def add(self, losses: Tensor, sample_index: Tensor, outputs: ClassifierOutput) -> None:
        """Note a micro-batch: the total loss and its parts [1 + len(LOSSES)], rows [B] of the training set."""
        finite = torch.isfinite(outputs["logits"].detach()).all(dim=-1)
        if outputs.get("token_loss") is not None:
            finite = finite & torch.isfinite(outputs["token_loss"].detach()).all(dim=-1)
        self._record.add(self._trainer.state.global_step + 1, losses, sample_index, finite)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where training begins."""
        self._checked = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check where nothing else did for long."""
        if state.global_step - self._checked >= CHECK_EVERY:
            self.check()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the last checkpoint."""
        self.checkpoint = str(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def check(self, *, weights: bool = False, ends: bool = False) -> None:
        """End the training where the loss was not finite. Every rank calls it after the same step.

        Args:
            weights: Look at the trained weights, too.
            ends: Training ends here: at least one step must have had a finite loss.

        Raises:
            UserError: on every rank, with the same message.
        """
        trainer, record = self._trainer, self._record
        self._checked = trainer.state.global_step
        record.end() if ends else record.read()
        bad = not_finite(self._trained()) if weights else []
        flag = torch.tensor(float(record.found is not None or bool(bad)), device=trainer.args.device)
        if not trainer.accelerator.reduce(flag, reduction="sum").item():
            return
        found = of_every_rank(lambda: (record.found, bad))
        batches = [(batch, rank) for rank, (batch, _) in enumerate(found) if batch is not None]
        if batches:
            problem = self._of_loss(*min(batches, key=lambda pair: (pair[0].step, pair[1])))
        else:
            problem = self._of_weights(sorted({name for _, names in found for name in names}))
        raise UserError(f"Training was stopped: {problem}. {' '.join(self._remedies())}")

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        """What this rank holds of the trained weights, and of the experts' running share."""
        trainer = self._trainer
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                yield name, local_part(parameter)
        if trainer.experts is not None:
            yield "running_share", trainer.experts.running_share

    def _of_loss(self, batch: BadBatch, rank: int) -> str:
        trainer = self._trainer
        state, several = trainer.state, trainer.args.world_size > 1
        epoch = (state.epoch or 0.0) * batch.step / max(state.global_step, 1)
        memes = batch.describe(trainer.train_dataset["sample_id"])
        where = f"at step {batch.step} (epoch {epoch:.2f})"
        if trainer.args.fp16:
            where = f"{where} and every step from then on, until step {state.global_step},"
        return f"{where} {memes}{f' on rank {rank}' if several else ''}"

    def _of_weights(self, names: list[str]) -> str:
        return (
            f"after step {self._trainer.state.global_step} {len(names)} trained tensors hold values that are not "
            f"finite, the first is {names[0]}, though the loss of every step was finite"
        )

    def _remedies(self) -> Iterator[str]:
        args, finetuning = self._trainer.args, self._trainer.finetuning_args
        rates = [f"`learning_rate` ({args.learning_rate:g})", f"`classifier_lr` ({finetuning.classifier_lr:g})"]
        rates += [f"`router_lr` ({finetuning.router_lr:g})"] if self._trainer.experts is not None else []
        yield f"Lower {', '.join(rates[:-1])} and {rates[-1]}."
        if not args.max_grad_norm:
            yield "Clip the gradient: `max_grad_norm: 1.0`."
        if args.fp16:
            yield "Train with `bf16: true` in place of `fp16: true`, whose largest number is 65,504."
        yield "See whether `ra-hmd doctor` names packages that do not work together, and look at those memes."
        if not self.checkpoint:
            yield f"Nothing of stage {STAGE} was saved."
            return
        place = "model_name_or_path" if finetuning.finetuning_type in ("full", "freeze") else "adapter_name_or_path"
        yield (
            f"Nothing was saved after {self.checkpoint}: `{place}: {self.checkpoint}` with another `output_dir` "
            "trains it on with other settings, `resume_from_checkpoint` with the same ones."
        )
