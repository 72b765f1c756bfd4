"""Counterpart of LLaMA-Factory's `_training_function` for stage `sft-classifier`."""

import dataclasses
from typing import Any, cast

import torch.distributed as dist
from llamafactory.extras import logging
from llamafactory.extras.misc import is_env_enabled
from llamafactory.extras.packages import is_ray_available
from llamafactory.hparams import get_train_args, parser
from llamafactory.train.callbacks import (
    LogCallback,
    ModuleProfilerCallback,
    ReporterCallback,
    TorchProfilerCallback,
)
from llamafactory.train.trainer_utils import get_swanlab_callback
from transformers import EarlyStoppingCallback, TrainerCallback

from llamafactory_ext.arguments import STAGE, correct_host_arguments
from llamafactory_ext.host_arguments import refusals
from llamafactory_ext.launchers import option
from llamafactory_ext.sft_classifier.reuse import take_run_settings
from llamafactory_ext.sft_classifier.workflow import run_sft_classifier
from ra_hmd.core.config import unknown_keys
from ra_hmd.core.errors import raise_all

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it


def run_stage(config: dict[str, Any]) -> None:
    """Parse the arguments, build the callbacks, train, and take the process group down.

    Args:
        config: `{"args": the YAML as a dictionary or the command line as a list, "callbacks": list}`.
    """
    args = config["args"]
    if isinstance(args, dict):
        _check_keys(args)
        for note in correct_host_arguments(args):
            logger.warning_rank0(note)
    arguments = cast(tuple[Any, Any, Any, Any, Any], get_train_args(args))
    raise_all(refusals(*arguments), f"Arguments that stage {STAGE} cannot honour")
    take_run_settings(args, *arguments[:4])
    callbacks = [*(config.get("callbacks") or []), *_callbacks(*arguments)]
    try:
        resume_asked = option(args, "resume_from_checkpoint") is not None
        run_sft_classifier(*arguments, callbacks=callbacks, resume_asked=resume_asked)
    finally:
        if dist.is_initialized() and not _inside_ray():
            dist.destroy_process_group()


def _check_keys(args: dict[str, Any]) -> None:
    if is_env_enabled("ALLOW_EXTRA_ARGS"):
        return
    known = {field.name for cls in parser._TRAIN_ARGS for field in dataclasses.fields(cls) if field.init}
    raise_all(unknown_keys(args, known), "The YAML file has keys that neither LLaMA-Factory nor ra-hmd knows")


def _inside_ray() -> bool:
    if not is_ray_available():
        return False
    import ray

    return ray.is_initialized()


def _callbacks(
    model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, generating_args: Any
) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [LogCallback()]
    if finetuning_args.use_swanlab:
        callbacks.append(get_swanlab_callback(finetuning_args))
    if finetuning_args.early_stopping_steps is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=finetuning_args.early_stopping_steps))
    if getattr(training_args, "enable_torch_profiler", False):
        callbacks.append(TorchProfilerCallback(training_args))
    if getattr(training_args, "profile_modules", None):
        callbacks.append(ModuleProfilerCallback(training_args.profile_modules))
    callbacks.append(ReporterCallback(model_args, data_args, finetuning_args, generating_args))
    return callbacks
