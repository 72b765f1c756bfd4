"""The checkpoint that training continues from."""

from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory.extras import logging
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llamafactory_ext.sft_classifier.nodes import of_every_rank
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.models.head import has_head

if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it


def checkpoint_to_resume(training_args: "TrainingArguments", *, asked: bool) -> Path | None:
    """The checkpoint to resume from, the same on every rank; None to train from the start.

    Where a kill left an unfinished checkpoint behind, it is the newest complete one.

    Args:
        training_args: Arguments of training; `resume_from_checkpoint` is the user's, or what the host found in
            `output_dir`.
        asked: Whether the user gave `resume_from_checkpoint`: then it is an error to find no complete one. A restart
            by torchrun after a rank was killed in its first checkpoint trains from the start.

    Raises:
        UserError: on every rank, where there is none, or not the same one.
    """
    if not training_args.do_train:
        return None
    found = of_every_rank(lambda: _found(training_args, asked=asked))
    raise_all([str(error) for error in found if isinstance(error, UserError)][:1], "Training cannot be resumed")
    if len(set(found)) > 1:
        places = [f"rank {rank} found {place or 'none'}" for rank, place in enumerate(found)]
        raise UserError(
            f"Nodes find different checkpoints to resume from: {'; '.join(places)}. Put `output_dir` "
            f"{training_args.output_dir} on a file system that all nodes share, copy the checkpoint to every node, or "
            "train from the start with another `output_dir`."
        )
    checkpoint = found[0]
    assert not isinstance(checkpoint, UserError)
    if checkpoint is not None:
        logger.info_rank0(f"Resuming from {checkpoint}.")
    return checkpoint


def _found(training_args: "TrainingArguments", *, asked: bool) -> Path | UserError | None:
    resumed = training_args.resume_from_checkpoint
    if resumed in (None, False, "false", "False"):
        return None
    folder = Path(training_args.output_dir) if resumed in (True, "true", "True") else Path(resumed)
    if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        if _complete(folder):
            return folder
        logger.warning_rank0(f"{folder} is not complete (training was stopped while it was written).")
        folder = folder.parent
    checkpoints = sorted(
        (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _complete(path)),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    if checkpoints:
        return checkpoints[-1]
    if asked:
        return UserError(f"`resume_from_checkpoint`: {folder} holds no complete checkpoint; train from the start.")
    logger.warning_rank0(f"{folder} holds no complete checkpoint: training begins from the start.")
    return None


def _complete(checkpoint: Path) -> bool:
    # The trainer's state is the last file that is written into a checkpoint, by any rank.
    return (checkpoint / "trainer_state.json").is_file() and has_head(checkpoint)
