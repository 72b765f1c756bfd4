"""What the nodes of a run must agree on before training begins."""

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist
from llamafactory.extras import logging
from transformers.trainer_utils import SaveStrategy

from ra_hmd.core.errors import UserError

if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments

T = TypeVar("T")

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it

VISIBLE_WITHIN = 10.0
"""Seconds within which a shared file system must show a new file to every node."""


def check_nodes(training_args: "TrainingArguments") -> None:
    """Compare what several nodes see of `output_dir` with how checkpoints are written, before training.

    Rank 0 alone writes a run, and with `save_on_each_node` the first rank of each node.

    Raises:
        UserError: on every rank.
    """
    _warn_of_lost_restarts(training_args)
    if not training_args.do_train or _one_node():
        return
    shared, folder = _is_shared(Path(training_args.output_dir)), training_args.output_dir
    if shared and training_args.save_on_each_node:
        raise UserError(
            f"`save_on_each_node: true`, and all nodes see the same `output_dir` {folder}: they would write the same "
            "files at once. Remove `save_on_each_node`."
        )
    if shared or training_args.save_on_each_node:
        return
    if training_args.load_best_model_at_end:
        raise UserError(
            f"`load_best_model_at_end: true`, but `output_dir` {folder} is not on a file system that all nodes share: "
            "only the first node would have the best checkpoint. Share it, or set `save_on_each_node: true`."
        )
    if training_args.save_strategy != SaveStrategy.NO:
        logger.warning_rank0(
            f"`output_dir` {folder} is not on a file system that all nodes share: only the first node has the "
            "checkpoints, and training cannot be resumed from them. Share it, or set `save_on_each_node: true`."
        )


def _warn_of_lost_restarts(training_args: "TrainingArguments") -> None:
    if not training_args.do_train or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    lost = ["`save_strategy: no`"] if training_args.save_strategy == SaveStrategy.NO else []
    if getattr(training_args, "overwrite_output_dir", False) and training_args.resume_from_checkpoint is None:
        lost.append("`overwrite_output_dir: true`")
    if lost:
        logger.warning_rank0(f"MAX_RESTARTS is set, but with {' and '.join(lost)} a restart begins from the start.")


def of_every_rank(compute: Callable[[], T]) -> list[T]:
    """Values that the ranks compute, by rank; every rank calls it."""
    value = compute()
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _one_node() -> bool:
    # Set by torchrun; under Ray it is missing, and the ranks are looked at one by one.
    world = os.environ.get("WORLD_SIZE", "1")
    return os.environ.get("LOCAL_WORLD_SIZE", "" if world != "1" else "1") == world


def _is_shared(folder: Path) -> bool:
    """Whether every rank sees a file that rank 0 writes into `folder`."""
    name = of_every_rank(lambda: f".{secrets.token_hex(8)}")[0]
    first = dist.get_rank() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    dist.barrier()
    try:
        return all(of_every_rank(lambda: first or _appears(folder / name)))
    finally:
        if first:
            (folder / name).unlink()


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + VISIBLE_WITHIN
    while not file.exists():
        if not file.parent.exists() or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
