"""Joint training, the combined ablation of RA-HMD: the retrieval-guided loss of Stage 2 inside Stage 1.

Shapes: B batch, N training memes, D embedding, C classes, P pseudo-gold positives, M hard negatives.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.progress import track
from stage2.losses.settings import loss_against_bank, retrieval_loss
from stage2.losses.similarity import same_class

if TYPE_CHECKING:
    from datasets import Dataset
    from llamafactory.hparams import TrainingArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments, JointLossSettings


def check_rgcl(dataset: "Dataset", training_args: "TrainingArguments", args: "ClassifierFinetuningArguments") -> None:
    """Raise `UserError` where no anchor could have a negative."""
    problems = []
    if training_args.per_device_train_batch_size == 1 and args.rgcl_hard_negatives == 0:
        problems.append("`rgcl_hard_negatives: 0` leaves the batch's other memes, and `per_device_train_batch_size` is "
                        "1; raise one of them.")  # fmt: skip
    kinds = np.unique(np.asarray(list(dataset["class_label"])), axis=0)
    if same_class(torch.from_numpy(kinds)).all():
        problems.append("no two memes of the training data are of different classes, so there is no negative; train on "
                        "data with several classes, or without `rgcl`.")  # fmt: skip
    raise_all(problems, "`rgcl: true` cannot work")


class RetrievalGuidance(TrainerCallback):
    """The bank of joint training, and the loss against it.

    The bank is the embedding of the whole training set by the head as it is. It is made, and mined, before the first
    step after `rgcl_warmup` optimizer steps, then every `rgcl_reindex_every`, and when training resumes.

    Args:
        trainer: Trainer that provides the model, the data and the processes.
        settings: Settings of the loss and of the bank's renewal.
        labels: Labels of the training set, [N] or [N, C].
        ids: Ids of the training set; memes of one id are not each other's neighbours.
        check: Called by every rank before the bank is renewed: raises where the weights give no bank.

    Source: RA-HMD's ablation with both stages in one. The official code for it does not run, and counts micro-batches
    where it should count optimizer steps.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: "JointLossSettings",
        labels: np.ndarray,
        ids: Sequence[str],
        check: Callable[[], None],
    ) -> None:
        self._trainer, self._labels, self._ids, self._check = trainer, labels, list(ids), check
        self._settings, self._loss = settings, retrieval_loss(settings)
        self._loader: DataLoader | None = None
        self.bank: Tensor | None = None
        self.positives = self.hard_negatives = torch.empty(0, 0, dtype=torch.long)

    @property
    def active(self) -> bool:
        """Whether a bank exists; from then on the loss counts."""
        return self.bank is not None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a warm-up that never ends."""
        if self._settings.warmup >= state.max_steps:
            raise UserError(
                f"`rgcl_warmup` is {self._settings.warmup}, but training has {state.max_steps} steps: the loss would "
                "never count. Lower it, or leave `rgcl` out."
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make or renew the bank where it is due. Called once per optimizer step, before its first micro-batch."""
        since = state.global_step - self._settings.warmup
        if since >= 0 and (self.bank is None or since % self._settings.reindex_every == 0):
            self._check()
            self.refresh()

    def loss(self, embedding: Tensor, labels: Tensor, sample_index: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss [] of anchors [B, D] with labels [B] or [B, C], rows `sample_index` [B] of the training set.

        What was mined is constant; in-batch negatives are those of this process's batch. `weights` are those of the
        head's loss; a meme's weight is the mean over its classes.
        """
        if self.bank is None:
            raise RuntimeError("the bank is made at the beginning of an optimizer step")
        mined = (self.bank, self.positives[sample_index], self.hard_negatives[sample_index])
        return loss_against_bank(self._loss, embedding, labels, *mined, weights)

    def refresh(self) -> None:
        """Embed the training set, mine in it on the first process, and log what was found."""
        from stage2.mining import mine

        trainer, settings, start = self._trainer, self._settings, time.monotonic()
        self.bank = bank = self._embed()
        counts = settings.pseudo_gold_positives, settings.hard_negatives
        rows = torch.empty(len(bank), sum(counts), dtype=torch.long)
        found: list[dict[str, float]] = [{}]
        if trainer.accelerator.is_main_process:
            mined = mine(
                bank.cpu().numpy(),
                self._labels,
                self._ids,
                positives=counts[0],
                hard_negatives=counts[1],
                similarity=settings.similarity,
            )
            rows = torch.from_numpy(np.concatenate([mined.all_positives(), mined.hard_negatives.rows], axis=1))
            found = [_summary(mined.statistics(), time.monotonic() - start)]
        rows = broadcast(rows.to(bank.device))
        self.positives, self.hard_negatives = rows.split(counts, dim=1)
        trainer.log(broadcast_object_list(found)[0])

    def _embed(self) -> Tensor:
        """Embeddings [N, D] of the training set in evaluation mode, the same on every process.

        Each process embeds a part. Rows find their place by index, so that neither the sampler's order nor the repeats
        that fill up its last batch matter. The random state stays as it was: training goes on as without the pass.
        """
        trainer = self._trainer
        model, gather = trainer.model, trainer.accelerator.gather
        assert model is not None
        training, bank = model.training, None
        seen = torch.zeros(len(self._ids), dtype=torch.bool, device=trainer.args.device)
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), trainer.compute_loss_context_manager():
            for batch in self._batches():
                inputs = trainer._prepare_inputs(batch)
                own = inputs.pop("sample_index")
                for name in ("class_labels", "answer_labels"):
                    del inputs[name]
                embedding, index = gather((model(**inputs)["embedding"].float().contiguous(), own))
                bank = embedding.new_zeros(len(seen), embedding.shape[1]) if bank is None else bank
                bank[index], seen[index] = embedding, True
        model.train(training)
        if bank is None or not seen.all():
            raise RuntimeError(f"the pass over the training set left out {int((~seen).sum())} of {len(seen)} memes")
        return bank

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        trainer = self._trainer
        if self._loader is None:
            # Not the trainer's own: that may drop the last batch.
            self._loader = trainer.accelerator.prepare(
                DataLoader(
                    cast("torch.utils.data.Dataset[Any]", trainer.train_dataset),
                    batch_size=trainer.args.per_device_eval_batch_size,
                    collate_fn=trainer.data_collator,
                    num_workers=trainer.args.dataloader_num_workers,
                    pin_memory=trainer.args.dataloader_pin_memory,
                    prefetch_factor=trainer.args.dataloader_prefetch_factor,
                )
            )
        show = trainer.is_world_process_zero() and not trainer.args.disable_tqdm
        counted = ((1, batch) for batch in self._loader)
        return track(counted, "Embedding the bank", len(self._loader), "batches", show=show)


def _summary(statistics: dict[str, Any], seconds: float) -> dict[str, float]:
    """Numbers of a mining step for the training log."""
    summary = {"rgcl_reindex_seconds": round(seconds, 2)}
    for name, kind in (("positive", "positives"), ("negative", "hard_negatives")):
        summary[f"rgcl_anchors_without_{name}"] = statistics[kind]["anchors_without"]
        if statistics[kind]["similarity"]:
            summary[f"rgcl_{name}_similarity"] = statistics[kind]["similarity"]["median"]
    if statistics["inverted"] is not None:
        summary["rgcl_inverted"] = statistics["inverted"]
    return summary
