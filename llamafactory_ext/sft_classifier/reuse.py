"""Checks that a trained run is used, or resumed, as it was trained: its manifest is compared with the YAML."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory.extras import logging

from llamafactory_ext.expert_arguments import DEFAULTS
from llamafactory_ext.launchers import option
from llamafactory_ext.retention_arguments import RETENTION_DEFAULTS
from llamafactory_ext.sft_classifier.reuse_experts import take_experts
from llamafactory_ext.sft_classifier.tokenized import differences
from ra_hmd.core.artifacts import MANIFEST_NAME, plain
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import Stage1Manifest, read_folder_manifest, read_manifest
from ra_hmd.models.checkpoint import check_adapter, check_base_model, check_merged_adapters
from ra_hmd.models.tokenization import InputSettings

if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it

_HEAD = ("num_layers", "proj_dim", "output_dim")
_GUIDES = ("clusters", "guidance")

# Of a resumed run: what its losses are, and what the optimizer's saved state would override in silence.
_TRAINING = """
learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon optim optim_args lr_scheduler_type lr_scheduler_kwargs
seed data_seed metric_for_best_model greater_is_better
"""
_FINETUNING = """
loss_ratio classifier_lr classification_loss focal_gamma class_weights class_balance_beta rgcl rgcl_loss rgcl_metrics
rgcl_reindex_every rgcl_warmup rgcl_hard_negatives rgcl_pseudo_gold_positives rgcl_temperature rgcl_margin llm_moe
llm_moe_num_experts expert_rank expert_alpha expert_dropout universal_expert cluster_prior_weight router_tau
cluster_prior_init cluster_prior_scale router_input router_lr expert_top_k moe_balance_w moe_balance_scope lora_rank
lora_alpha lora_dropout lora_target use_rslora use_dora additional_target pure_bf16 freeze_trainable_layers
freeze_trainable_modules freeze_extra_modules freeze_vision_tower freeze_multi_modal_projector freeze_language_model
disable_shuffling lm_kl_weight general_dataset
"""
_RESUMED = {"training": _TRAINING.split(), "finetuning": _FINETUNING.split()}
_BEST = ("metric_for_best_model", "greater_is_better")
_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last")


def take_run_settings(
    given: Any,
    model_args: "ModelArguments",
    data_args: "DataArguments",
    training_args: "TrainingArguments",
    finetuning_args: "ClassifierFinetuningArguments",
) -> None:
    """Make the arguments those of the run that is evaluated, or continued; in place.

    What the YAML leaves out is taken from the run. Continued training may change the prompt, with a warning, but not
    the model below the adapter.

    Args:
        given: The YAML as a dictionary, or the words of the command line.
        model_args: And the other arguments, parsed.

    Raises:
        UserError: a setting of the YAML is another than the run's: both values are named.
    """
    adapters = model_args.adapter_name_or_path or []
    for adapter in adapters:
        check_adapter(adapter)
    run = Path(adapters[-1] if adapters else model_args.model_name_or_path)
    manifest = read_folder_manifest(run)
    if not isinstance(manifest, Stage1Manifest):
        return
    if adapters:
        check_base_model(manifest, model_args.model_name_or_path)
        _check_merged(manifest, adapters, run)
    take_experts(given, manifest, run, finetuning_args, trains=bool(training_args.do_train), adapters=bool(adapters))
    owners = {"model": model_args, "data": data_args, "finetuning": finetuning_args}
    recorded = _recorded(manifest, str(run / MANIFEST_NAME), adapters=bool(adapters))
    conflicts, taken = [], []
    for name, value in recorded.items():
        owner = next(each for each in owners.values() if hasattr(each, name))
        now = plain(getattr(owner, name))
        if now == value or (not now and not value):
            continue
        if training_args.do_train or option(given, name) is not None:
            conflicts.append(f"`{name}`: {value!r} in {run}, {now!r} here")
        else:
            setattr(owner, name, value)
            taken.append(f"`{name}: {value}`")
    if training_args.do_train:
        for text in conflicts:
            logger.warning_rank0(f"Training goes on with other settings than before: {text}.")
        return
    raise_all(conflicts, "The run was trained with other settings; set them back, or leave them out to take the run's")
    model_args.model_max_length = data_args.cutoff_len
    if taken:
        logger.warning_rank0(f"Taken from {run}: {', '.join(taken)}.")


def _recorded(manifest: Stage1Manifest, place: str, *, adapters: bool) -> dict[str, Any]:
    """Argument name → the run's value, of all that decides its scores."""
    recorded = plain(load_settings(InputSettings, manifest.inputs or {}, place).to_dict())
    recorded = {name: value for name, value in recorded.items() if name not in _GUIDES}
    recorded |= {name: manifest.head[name] for name in _HEAD if name in manifest.head}
    return recorded | (manifest.base_model.loading if adapters else {})


def _check_merged(manifest: Stage1Manifest, adapters: list[str], run: Path) -> None:
    """The adapters that were merged into the base model before the run was trained must be merged again."""
    check_merged_adapters(manifest)
    merged = manifest.base_model.adapters
    if merged != adapters[:-1]:
        raise UserError(
            f"{run} was trained with adapters {merged} merged into its base model, here they are {adapters[:-1]}; set "
            f"`adapter_name_or_path: {','.join([*merged, adapters[-1]])}`."
        )


def check_resumed(checkpoint: Path, manifest: Stage1Manifest) -> None:
    """Compare a checkpoint's manifest with that of the run that resumes from it.

    Another number of processes, or another batch size, gives a warning: the host finds its place in the data by
    batches.

    Raises:
        UserError: another model, data, input, head, loss or optimizer; both values are named.
    """
    if not (checkpoint / MANIFEST_NAME).is_file():
        logger.warning_rank0(f"{checkpoint} has no {MANIFEST_NAME}: what it was trained with is not compared.")
        return
    saved = read_manifest(checkpoint / MANIFEST_NAME, Stage1Manifest)
    check_base_model(saved, manifest.base_model.path)
    there, here = (_resumable(each) for each in (saved, manifest))
    if there["training"].get("metric_for_best_model") is None:  # no best one was chosen yet
        there["training"] = {name: there["training"][name] for name in there["training"] if name not in _BEST}
    for part, values in there.items():  # what was saved before a setting existed is not compared
        here[part] = {key: value for key, value in here[part].items() if key in values}
    raise_all(
        differences(there, here),
        f"`resume_from_checkpoint` {checkpoint} was made with other settings or data; set them back, or train anew "
        "(`adapter_name_or_path` trains an adapter on)",
    )
    batches, batches_now = (
        {name: each.argument("training", name) for name in _BATCHES} | {"world_size": each.world_size}
        for each in (saved, manifest)
    )
    for text in differences(batches, batches_now):
        logger.warning_rank0(f"Resuming with other batches, so some memes may be seen twice or not at all: {text}.")


def _resumable(manifest: Stage1Manifest) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {
        "inputs": dict.fromkeys(_GUIDES) | (manifest.inputs or {}),
        "head": manifest.head,
        "loading": manifest.base_model.loading,
        "base_model": {"adapters": manifest.base_model.adapters},
        "run": {"finetuning_type": manifest.finetuning_type},
    }
    for group, names in _RESUMED.items():
        arguments = (DEFAULTS | RETENTION_DEFAULTS if group == "finetuning" else {}) | manifest.arguments.get(group, {})
        parts[group] = {name: arguments[name] for name in names if name in arguments}
    chosen = manifest.argument("training", "metric_for_best_model")
    parts["data"] = {name: described.to_json() for name, described in manifest.data.items()
                     if name == "train" or chosen}  # fmt: skip
    return parts
