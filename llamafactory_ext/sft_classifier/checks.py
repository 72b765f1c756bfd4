"""Settings compared with the records: metrics that evaluation will give, classes, rows that training would drop."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from llamafactory.extras import logging
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from llamafactory_ext.sft_classifier.general import labelled
from llamafactory_ext.sft_classifier.metric import logged_metrics
from llamafactory_ext.sft_classifier.rgcl import check_rgcl
from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.features.test_lock import says_test
from ra_hmd.models.families import family_of

if TYPE_CHECKING:
    from datasets import Dataset
    from llamafactory.hparams import DataArguments, TrainingArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it


def check_attention(model_type: str, flash_attn: str) -> None:
    """Raise `UserError` where training by FlashAttention 2 would compute another model than extraction does."""
    family = family_of(model_type)
    if flash_attn == "fa2" and family is not None and family.without_flash_attention:
        raise UserError(
            f"`flash_attn: fa2` does not fit a {model_type} model: {family.without_flash_attention}. Use "
            "`flash_attn: sdpa`."
        )


def check_language_head(config: Any, name: str, revision: str | None, weight: float) -> None:
    """Raise `UserError` where the language loss counts and the model's weights have no LM head: it would be random.

    With the language loss off a warning says that LMH is not trained.

    Args:
        config: The model's configuration.
        name: Its folder, or its id on the hub.
        revision: Commit there.
        weight: r0, of the language loss.
    """
    if weight == 0:
        logger.warning_rank0("The language loss is off (`loss_ratio`): the LM head is not trained; do not read LMH.")
        return
    if any(getattr(one, "tie_word_embeddings", False) for one in (config, config.get_text_config())):
        return
    names = _weight_names(name, revision)
    if names and not any("lm_head" in one for one in names):
        raise UserError(
            f"`model_name_or_path: {name}` has no LM head in its weights, and does not share that of the input "
            "embeddings: it would be random. Set `loss_ratio: [0.0, 1.0]` to train without the language loss."
        )


def _weight_names(name: str, revision: str | None) -> list[str]:
    """Names of a model's weights in safetensors; none where they are unknown, as in a single file on the hub."""
    single = Path(name) / SAFE_WEIGHTS_NAME
    if single.is_file():
        with safe_open(single, framework="pt") as weights:
            return list(weights.keys())
    index = cached_file(
        name,
        SAFE_WEIGHTS_INDEX_NAME,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return [] if index is None else list(read_json(Path(index))["weight_map"])


def check_training(
    records: dict[str, Any],
    data_args: "DataArguments",
    training_args: "TrainingArguments",
    args: "ClassifierFinetuningArguments",
) -> None:
    """Raise `UserError` where training on these records would learn nothing, where the requested metrics do not exist,
    and where the best checkpoint would be chosen on a test split.

    A warning names classes that no row, or every row, belongs to.
    """
    dataset = records["train_dataset"]
    if args.rgcl:
        check_rgcl(dataset, training_args, args)
    labels = labelled(list(dataset["class_label"]))
    args.problem.refuse_one_class(labels, "The training data")
    constant = args.problem.constant_classes(labels)
    if constant:
        logger.warning_rank0(f"The training data does not vary in classes {constant}: they cannot be learnt.")
    batch = training_args.train_batch_size * training_args.world_size
    if training_args.dataloader_drop_last and len(dataset) < batch:
        raise UserError(
            f"`dataloader_drop_last: true` drops batches that are not full, and the {len(dataset)} training rows do "
            f"not fill one of {batch}: nothing would be trained. Lower `per_device_train_batch_size`."
        )
    _check_choice(data_args, training_args)
    _check_metric(records.get("eval_dataset"), training_args, args)


def evaluation_names(dataset: "Dataset | dict[str, Dataset]", args: "ClassifierFinetuningArguments") -> list[str]:
    """Names of the metrics that evaluating the given set, or each of several, will log."""
    sets = {f"eval_{name}": each for name, each in dataset.items()} if isinstance(dataset, dict) else {"eval": dataset}
    names = []
    for prefix, each in sets.items():
        labels = np.asarray(list(each["class_label"]))
        found = logged_metrics(labels, args.objective, answers=args.problem_type != "multi_label")
        names += [f"{prefix}_{name}" for name in ("loss", *found)]
    return names


def _check_choice(data_args: "DataArguments", training_args: "TrainingArguments") -> None:
    """Raise `UserError` where the metric that chooses the checkpoint is computed on test data."""
    metric = (training_args.metric_for_best_model or "").removeprefix("eval_")
    if not metric or training_args.eval_strategy == "no":
        return
    names = data_args.eval_dataset or []
    if data_args.eval_on_each_dataset and len(names) > 1:
        names = [name for name in names if metric.startswith(f"{name}_")]
    raise_all(
        [f"`eval_dataset: {name}`" for name in names if says_test(name)],
        f"Nothing is chosen by test data, and `metric_for_best_model: {metric}` chooses a checkpoint; give a dev split",
    )


def _check_metric(dataset: Any, training_args: "TrainingArguments", args: "ClassifierFinetuningArguments") -> None:
    metric, evaluates = training_args.metric_for_best_model, training_args.eval_strategy != "no"
    problems = []
    if not evaluates and training_args.save_strategy == "best":
        problems.append("`save_strategy: best` needs evaluations, or nothing is saved; set `eval_strategy`.")
    if args.early_stopping_steps is not None and not (metric and evaluates):
        problems.append(
            f"`early_stopping_steps: {args.early_stopping_steps}` needs `metric_for_best_model` and `eval_strategy`."
        )
    if evaluates and metric is not None:
        names = evaluation_names(dataset, args)
        if f"eval_{metric.removeprefix('eval_')}" not in names:
            problems.append(f"`metric_for_best_model` {metric!r} is no metric of this evaluation; choose one of "
                            f"{', '.join(names)}.")  # fmt: skip
    raise_all(problems, "The best checkpoint cannot be chosen as requested")
