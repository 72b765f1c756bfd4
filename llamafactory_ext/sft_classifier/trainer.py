"""The host's SFT trainer with a head: its loss, optimizer groups, checkpoints and predictions."""

import tempfile
from contextlib import nullcontext
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

from llamafactory_ext.sft_classifier.rgcl import RetrievalGuidance
from ra_hmd.core.artifacts import MANIFEST_NAME, atomic_path, plain, write_jsonl
from ra_hmd.core.errors import raise_all
from ra_hmd.core.manifests import BestCheckpoint, Stage1Manifest, read_manifest, write_manifest
from ra_hmd.models.classifier import IGNORE, ClassifierOutput, base_model, head_of, is_head_parameter
from ra_hmd.models.head import MemeHead, has_head, load_head_weights, save_head
from ra_hmd.models.losses import class_weights, weights_of


class ClassifierTrainer(CustomSeq2SeqTrainer):
    """Minimises `r0 * L_LM + r1 * L_LRC` (RA-HMD, Stage 1), with `rgcl` also `r2 * L_RGCL`.

    Args:
        manifest: Written into every checkpoint, so that each opens as a run.
        **kwargs: As for the host's trainer.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, manifest: Stage1Manifest, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # As the host does for multimodal models: a mean per micro-batch, averaged over accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.manifest = manifest
        # Sums of L_LM, L_LRC and L_RGCL; micro-batches, and those of them with L_RGCL.
        self._parts = torch.zeros(5, device=self.args.device)
        self._class_weights: Tensor | None = None
        self._guidance: RetrievalGuidance | None = None
        self._saved_step: int | None = None  # of the checkpoint that was written before its evaluation
        if self.args.do_train:
            self._prepare_objectives()
        self.add_callback(_RestoreBestHead(self))

    def _prepare_objectives(self) -> None:
        """Compute what the losses need from the whole training set: class weights and mined neighbours."""
        args, labels = self.finetuning_args, np.asarray(self.train_dataset["class_label"])
        weights = class_weights(labels, args.problem, args.class_weights, args.class_balance_beta)
        if weights is not None:
            self._class_weights = torch.from_numpy(weights).to(self.args.device)
        if args.rgcl:
            self._guidance = RetrievalGuidance(self, args.joint_loss, labels, self.train_dataset["sample_id"])
            self.add_callback(self._guidance)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, ClassifierOutput]:
        """The weighted sum of the losses, each a mean over the batch.

        In evaluation class weights and L_RGCL, which are of the training set, are left aside.
        """
        inputs = dict(inputs)
        labels, sample_index = inputs.pop("class_labels"), inputs.pop("sample_index")
        outputs = model(**inputs)
        weights = weights_of(labels, self._class_weights) if model.training else None
        lrc_loss = self.finetuning_args.objective(outputs["logits"], labels, weights)
        r0, r1, r2 = self.finetuning_args.loss_weights
        loss = r0 * outputs["lm_loss"] + r1 * lrc_loss
        if model.training:
            one = torch.ones_like(lrc_loss)
            rgcl_loss, counted = torch.zeros_like(lrc_loss), torch.zeros_like(lrc_loss)
            if self._guidance is not None and self._guidance.active:
                rgcl_loss, counted = self._guidance.loss(outputs["embedding"], labels, sample_index, weights), one
                loss = loss + r2 * rgcl_loss
            self._parts += torch.stack([outputs["lm_loss"], lrc_loss, rgcl_loss, one, counted]).detach()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the training loss (mean over ranks since the last log) and the head's learning rate."""
        if "loss" in logs:
            parts = self.accelerator.reduce(self._parts, reduction="sum").tolist()
            if parts[3]:
                logs |= {"lm_loss": parts[0] / parts[3], "lrc_loss": parts[1] / parts[3]}
            if parts[4]:
                logs["rgcl_loss"] = parts[2] / parts[4]
            self._parts.zero_()
            if "learning_rate" in logs:  # both groups follow one schedule
                logs["classifier_lr"] = (
                    logs["learning_rate"] * self.finetuning_args.classifier_lr / self.args.learning_rate
                )
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Four groups: adapter (or LMM) and head, each with and without weight decay (none on biases and norms)."""
        if self.optimizer is None:
            target = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(target))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {
                (head, decay): [] for head in (False, True) for decay in (True, False)
            }
            for name, parameter in target.named_parameters():
                if parameter.requires_grad:
                    groups[is_head_parameter(name), name in decayed].append(parameter)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            rates = {False: self.args.learning_rate, True: self.finetuning_args.classifier_lr}
            self.optimizer = cls(
                [
                    {"params": params, "lr": rates[head], "weight_decay": self.args.weight_decay if decay else 0.0}
                    for (head, decay), params in groups.items()
                    if params
                ],
                **options,
            )
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter (or model) as the host does, and beside it the head and the manifest (rank 0 writes)."""
        super().save_model(output_dir, _internal_call)
        head = head_of(self.model)
        state = {name: _full_precision(parameter) for name, parameter in head.named_parameters()}
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_head(folder, head.config, state)
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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Keep the head out of the model's own weight files: those stay loadable by stock transformers."""
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {k: v for k, v in state_dict.items() if not is_head_parameter(k)})

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


class _RestoreBestHead(TrainerCallback):
    """At the end of training the host loads the best adapter; this loads the head that was saved with it."""

    def __init__(self, trainer: ClassifierTrainer) -> None:
        self._trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best is not None and has_head(best):
            load_weights(head_of(self._trainer.model), best)


def load_whole_model(model: PreTrainedModel, folder: str) -> None:
    """Load a fully tuned model's checkpoint into `model`, its head aside.

    `save_pretrained` writes Qwen-VL's weights under the published names, which are not those of the modules; the
    trainer's own `load_state_dict` would match next to nothing and go on with a warning.
    """
    saved = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    result = model.load_state_dict(saved, strict=False)
    missing = [name for name in result.missing_keys if not is_head_parameter(name)]
    raise_all([*missing, *result.unexpected_keys], f"{folder} does not hold the weights of this model")


def load_weights(head: MemeHead, folder: str | Path) -> None:
    """Load a saved head into an attached one, also when ZeRO-3 has partitioned it."""
    parameters = list(head.parameters())
    with _gathered(parameters, modifier_rank=0):
        load_head_weights(head, folder)


def _gathered(parameters: list[nn.Parameter], modifier_rank: int | None) -> Any:
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)


def _full_precision(parameter: nn.Parameter) -> Tensor:
    """A parameter's float32 value: DeepSpeed's master copy where it keeps one, gathered where it is partitioned."""
    # By presence, not by value: a rank that owns no part of the parameter must join the collective too.
    if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        master = safe_get_full_fp32_param(parameter)
        if master is not None:
            return master.detach().cpu()
    with _gathered([parameter], modifier_rank=None):
        return parameter.detach().float().cpu().clone()
