"""The host's SFT trainer with a head: its loss, optimizer groups, checkpoints and predictions."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, PredictionOutput, SaveStrategy, rotate_checkpoints

from llamafactory_ext.sft_classifier.base_divergence import base_logits, token_divergence
from llamafactory_ext.sft_classifier.finite_training import FiniteTraining
from llamafactory_ext.sft_classifier.general import head_loss, labelled
from llamafactory_ext.sft_classifier.guides import Guides
from llamafactory_ext.sft_classifier.rgcl import RetrievalGuidance
from llamafactory_ext.sft_classifier.weights import load_expert_weights, load_weights, whole_state
from ra_hmd.core.artifacts import MANIFEST_NAME, atomic_path, plain, write_jsonl
from ra_hmd.core.errors import raise_all
from ra_hmd.core.manifests import BestCheckpoint, Stage1Manifest, read_manifest, write_manifest
from ra_hmd.models.classifier import IGNORE, ClassifierOutput, base_model, head_of, is_head_parameter
from ra_hmd.models.experts.attach import Experts, experts_of, is_expert_parameter, is_router_parameter
from ra_hmd.models.experts.files import save_experts
from ra_hmd.models.head import has_head, save_head
from ra_hmd.models.losses import class_weights, weights_of


class ClassifierTrainer(CustomSeq2SeqTrainer):
    """Minimises `r0 * L_LM + r1 * L_LRC` (RA-HMD, Stage 1), with `rgcl` also `r2 * L_RGCL`.

    A model with experts adds `moe_balance_w * L_balance`, and `lm_kl_weight` the divergence from the base model.

    Args:
        manifest: Written into every checkpoint, so that each opens as a run.
        guides: Clusters and guidance, copied into every checkpoint.
        **kwargs: As for the host's trainer.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, manifest: Stage1Manifest, guides: Guides, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # As the host does for multimodal models: a mean per micro-batch, averaged over accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.manifest, self.guides = manifest, guides
        self.experts = experts_of(self.model)
        # Sums of L_LM, L_LRC, L_RGCL, L_balance, L_KL and the routing entropy; micro-batches, and those with L_RGCL;
        # micro-batches whose loss was not finite, which the other sums leave out.
        self._parts = torch.zeros(9, device=self.args.device)
        self.finite = FiniteTraining(self)
        self._class_weights: Tensor | None = None
        self._rows_per_meme = 1.0  # of the training set; above 1 with general data
        self._guidance: RetrievalGuidance | None = None
        self._saved_step: int | None = None  # of the checkpoint that was written before its evaluation
        if self.args.do_train:
            self._prepare_objectives()
        self.add_callback(self.finite)
        self.add_callback(_RestoreBest(self))
        if self.experts is not None:
            self.add_callback(_EndExpertStep(self))

    def _prepare_objectives(self) -> None:
        """Compute what the losses need from the whole training set: class weights and mined neighbours."""
        args, rows = self.finetuning_args, np.asarray(self.train_dataset["class_label"])
        labels = labelled(rows)
        self._rows_per_meme = len(rows) / len(labels)
        weights = class_weights(labels, args.problem, args.class_weights, args.class_balance_beta)
        if weights is not None:
            self._class_weights = torch.from_numpy(weights).to(self.args.device)
        if args.rgcl:
            given = (args.joint_loss, labels, self.train_dataset["sample_id"])
            self._guidance = RetrievalGuidance(self, *given, check=partial(self.finite.check, weights=True))
            self.add_callback(self._guidance)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, ClassifierOutput]:
        """The weighted sum of the losses, each a mean over the batch.

        In evaluation class weights and L_RGCL, which are of the training set, are left aside.
        """
        inputs = dict(inputs)
        labels, sample_index = inputs.pop("class_labels"), inputs.pop("sample_index")
        diverges = model.training and self.finetuning_args.lm_kl_weight > 0
        base = base_logits(self.model, inputs) if diverges else None
        outputs = model(**inputs, **({"with_logits": True} if diverges else {}))
        weights = weights_of(labels, self._class_weights) if model.training else None
        objective = self.finetuning_args.objective
        if model.training and self._rows_per_meme > 1:
            lrc_loss = head_loss(objective, outputs["logits"], labels, weights, self._rows_per_meme)
        else:
            lrc_loss = objective(outputs["logits"], labels, weights)
        r0, r1, r2 = self.finetuning_args.loss_weights
        loss = r0 * outputs["lm_loss"] + r1 * lrc_loss
        if model.training:
            one = torch.ones_like(lrc_loss)
            rgcl_loss = counted = balance_loss = entropy = kl_loss = torch.zeros_like(lrc_loss)
            if self._guidance is not None and self._guidance.active:
                rgcl_loss, counted = self._guidance.loss(outputs["embedding"], labels, sample_index, weights), one
                loss = loss + r2 * rgcl_loss
            if self.experts is not None:
                balance_loss = self.experts.balance_loss(self.finetuning_args.moe_balance_scope)
                entropy = routing_entropy(self.experts)
                loss = loss + self.finetuning_args.moe_balance_w * balance_loss
            if base is not None:
                kl_loss = token_divergence(outputs["token_logits"], base, inputs["answer_labels"])
                loss = loss + self.finetuning_args.lm_kl_weight * kl_loss
            losses = [outputs["lm_loss"], lrc_loss, rgcl_loss, balance_loss, kl_loss]
            self.finite.add(torch.stack([loss, *losses]), sample_index, outputs)
            parts = torch.stack([*losses, entropy, one, counted]).detach()
            finite = torch.isfinite(loss.detach())
            self._parts[:-1] += torch.where(finite, parts, 0.0)
            self._parts[-1] += ~finite
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the training loss (mean over ranks since the last log) and the further learning rates."""
        if "loss" in logs or "train_loss" in logs:
            self.finite.check(weights="loss" not in logs, ends="loss" not in logs)
        if "loss" in logs:
            *sums, batches, counted, left_out = self.accelerator.reduce(self._parts, reduction="sum").tolist()
            if batches:
                names = ("lm_loss", "lrc_loss", "rgcl_loss", "balance_loss", "kl_loss", "routing_entropy")
                means = {name: value / batches for name, value in zip(names, sums, strict=True)}
                unused = ["rgcl_loss", *([] if self.experts else ["balance_loss", "routing_entropy"])]
                unused += [] if self.finetuning_args.lm_kl_weight else ["kl_loss"]
                logs |= {name: value for name, value in means.items() if name not in unused}
            if counted:
                logs["rgcl_loss"] = sums[2] / counted
            if left_out:
                logs["overflowed_batches"] = left_out
            self._parts.zero_()
            if "learning_rate" in logs:  # all groups follow one schedule
                now = logs["learning_rate"] / self.args.learning_rate
                logs["classifier_lr"] = now * self.finetuning_args.classifier_lr
                if self.experts is not None:
                    logs["router_lr"] = now * self.finetuning_args.router_lr
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Six groups: adapter (or LMM) with experts, head, and routers with priors, each with and without weight decay
        (none on biases and norms).
        """
        if self.optimizer is None:
            target = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(target))
            rates = {
                "adapter": self.args.learning_rate,
                "head": self.finetuning_args.classifier_lr,
                "router": self.finetuning_args.router_lr,
            }
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {
                (part, decay): [] for part in rates for decay in (True, False)
            }
            for name, parameter in target.named_parameters():
                if parameter.requires_grad:
                    groups[_part_of(name), name in decayed].append(parameter)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            self.optimizer = cls(
                [
                    {"params": params, "lr": rates[part], "weight_decay": self.args.weight_decay if decay else 0.0}
                    for (part, decay), params in groups.items()
                    if params
                ],
                **options,
            )
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter (or model) as the host does, and beside it head, experts, clusters, guidance and manifest.

        All ranks gather the weights; rank 0 writes. Nothing is written where a weight is not finite.
        """
        self.finite.check(weights=True)
        super().save_model(output_dir, _internal_call)
        head = head_of(self.model)
        state = whole_state(dict(head.named_parameters()), self.deepspeed)
        expert_state = {} if self.experts is None else whole_state(self.experts.state(), self.deepspeed)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_head(folder, head.config, state)
            if self.experts is not None:
                save_experts(folder, self.experts.settings, expert_state)
            self.guides.copy_to(folder)
            now = {"step": self.state.global_step, "best": self._best()}
            write_manifest(folder / MANIFEST_NAME, self.manifest.model_copy(update=now))

    def _best(self) -> BestCheckpoint:
        return BestCheckpoint(checkpoint=self.state.best_model_checkpoint, value=plain(self.state.best_metric))

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """The host's; `dataloader_drop_last` is for training alone, as evaluation and prediction need every row."""
        requested = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = requested and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = requested

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate during training, after the checkpoint of this step was written.

        The host does it the other way round, and an evaluation that fails or is killed loses what was trained. With
        `save_strategy: best` the evaluation decides whether there is a checkpoint, so the order stays.
        """
        self.finite.check(weights=True)
        if self.control.should_save and self.args.save_strategy != SaveStrategy.BEST:
            self._save_checkpoint(self.model, None)
            self._saved_step = self.state.global_step
        return super()._evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint as the host does; one that lies there since before its evaluation is brought up to date.

        The evaluation changes the best metric and the states of callbacks and random generators. A scheduler that
        follows a metric also changes the optimizer: then everything is written again.
        """
        follows_metric = self.args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if self._saved_step != self.state.global_step or follows_metric:
            super()._save_checkpoint(model, trial)
            return
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.state.best_global_step:
            best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.exists() else self.state.best_model_checkpoint
        if not self.args.save_only_model:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".rng-") as temporary:
                self._save_rng_state(temporary)
                for path in Path(temporary).iterdir():
                    path.replace(folder / path.name)
        if self.args.should_save:
            exported = (self.control, *self.callback_handler.callbacks)
            for callback in (each for each in exported if isinstance(each, ExportableState)):
                name = type(callback).__name__
                if not isinstance(self.state.stateful_callbacks[name], list):
                    self.state.stateful_callbacks[name] = callback.state()
            with atomic_path(folder / "trainer_state.json") as temporary_state:
                self.state.save_to_json(str(temporary_state))
            manifest = read_manifest(folder / MANIFEST_NAME, Stage1Manifest)
            write_manifest(folder / MANIFEST_NAME, manifest.model_copy(update={"best": self._best()}))
            limit = self.args.save_total_limit
            rotate_checkpoints(str(run), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the host does; with several processes on CPUs it would load to `cpu:0`, which `torch.load` refuses."""
        if self.args.device.type == "cpu":
            self.args.__dict__["_setup_devices"] = torch.device("cpu")
        super()._load_optimizer_and_scheduler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """As the host does, on every rank before any goes on: the trainer's state, which tells that a checkpoint is
        complete, is written next.
        """
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Keep head and experts out of the model's own weight files: those stay loadable by stock transformers."""
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        ours = [name for name in state_dict if is_head_parameter(name) or is_expert_parameter(name)]
        super()._save(output_dir, {name: value for name, value in state_dict.items() if name not in ours})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._whole_model_is_saved():
            load_whole_model(base_model(self.model), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._whole_model_is_saved():
            load_whole_model(base_model(self.model), self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _whole_model_is_saved(self) -> bool:
        # Adapters and DeepSpeed's engine checkpoints are restored as the host does.
        return not (isinstance(self.model, PeftModel) or self.is_deepspeed_enabled)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor] | None, Tensor | None]:
        """One forward pass for both heads: loss, named predictions ([B, …] each) and class labels [B] or [B, C]."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        predictions = {
            "lrc_logit": outputs["logits"].float(),
            "lm_loss_sum": outputs["token_loss"].sum(dim=1).float(),
            "lm_tokens": (inputs["answer_labels"] != IGNORE).sum(dim=1),
            "sample_index": inputs["sample_index"],
        }
        if outputs.get("answer_probs") is not None:
            predictions["answer_probs"] = outputs["answer_probs"].float()
        return loss.detach(), predictions, inputs["class_labels"]

    def write_predictions(self, path: Path, dataset: Any, output: PredictionOutput) -> None:
        """Write `{id, label, lmh_score, lrc_score}` per record, in the order of the data (rank 0).

        Of more than two classes the scores are lists, and so is the label of a multi-label problem, of class indices.
        """
        if not self.is_world_process_zero():
            return
        problem = self.finetuning_args.problem
        named = cast(dict[str, np.ndarray], output.predictions)  # as `prediction_step` returns them
        values = {name: np.asarray(value) for name, value in named.items()}
        scores = {"lrc_score": problem.probabilities(torch.from_numpy(values["lrc_logit"]).double()).numpy()}
        if "answer_probs" in values:
            probs = values["answer_probs"]
            scores = {"lmh_score": probs[:, 1:] if problem.kind == "binary" else probs} | scores
        labels = np.asarray(output.label_ids)
        rows = {}
        for position, index in enumerate(values["sample_index"]):
            label = labels[position]
            row: dict[str, Any] = {"label": int(label) if label.ndim == 0 else np.flatnonzero(label).tolist()}
            for name, score in scores.items():
                row[name] = float(score[position, 0]) if problem.kind == "binary" else score[position].tolist()
            rows[int(index)] = row
        write_jsonl(path, ({"id": name, **rows[index]} for index, name in enumerate(dataset["sample_id"])))


def _part_of(name: str) -> str:
    """Part of the model that a parameter belongs to, by whose learning rate it is trained."""
    if is_head_parameter(name):
        return "head"
    return "router" if is_router_parameter(name) else "adapter"


def routing_entropy(experts: Experts) -> Tensor:
    """Entropy [] in nats of the mean probabilities of a meme's tokens, mean over memes and layers of the last pass.

    It is log E where all experts are used alike.
    """
    means = torch.stack([mean.to(experts.running_share.device) for mean in experts.routing.balance.means.values()])
    return torch.special.entr(means).sum(dim=-1).mean()


class _RestoreBest(TrainerCallback):
    """At the end of training the host loads the best adapter; this loads the head and experts saved with it."""

    def __init__(self, trainer: ClassifierTrainer) -> None:
        self._trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best, trainer = state.best_model_checkpoint, self._trainer
        if args.load_best_model_at_end and best is not None and has_head(best):
            load_weights(head_of(trainer.model), best)
            if trainer.experts is not None:
                load_expert_weights(trainer.experts, best)


class _EndExpertStep(TrainerCallback):
    """After each optimizer step the running share of the experts follows, on all ranks alike."""

    def __init__(self, trainer: ClassifierTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._trainer.experts is not None
        self._trainer.experts.end_step(partial(self._trainer.accelerator.reduce, reduction="sum"))


def load_whole_model(model: PreTrainedModel, folder: str) -> None:
    """Load a fully tuned model's checkpoint into `model`, its head aside.

    `save_pretrained` writes Qwen-VL's weights under the published names, which are not those of the modules; the
    trainer's own `load_state_dict` would match next to nothing and go on with a warning.
    """
    saved = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    result = model.load_state_dict(saved, strict=False)
    missing = [name for name in result.missing_keys if not is_head_parameter(name)]
    raise_all([*missing, *result.unexpected_keys], f"{folder} does not hold the weights of this model")
