"""One training, several seeds, or a sweep of settings: from stores to folders with heads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from easydict import EasyDict
from rich.console import Console

from ra_hmd.core.errors import UserError
from ra_hmd.core.memory import keep_freed_memory
from ra_hmd.features.compatibility import check_output
from ra_hmd.training.arguments import HeadArguments
from ra_hmd.training.checkpointing import finished_run, save_outcome, save_seeds, save_sweep
from ra_hmd.training.inputs import Stores, head_config, initial_head, read_stores, training_rows
from ra_hmd.training.reporting import check_trackers, reported
from ra_hmd.training.trainer import A, HeadTrainer


def run_training(args: A, trainer: type[HeadTrainer[A]]) -> EasyDict:
    """Train heads; the same settings and seed give the same head (on the CPU, to the bit).

    The kept epoch is the best on dev by `args.select_by`, with the training rows as the bank; among equals the one
    whose KNN votes are further on the right side. The initial head takes part as epoch 0 if it was trained before
    (`init_head`). Without dev the last epoch is kept.

    With `seeds` each run has a folder `seed-<n>`, with `sweep` each setting a folder `trial-<n>`; there, runs that are
    finished are not done again.

    Returns:
        Of one run: `output_dir`, `best_epoch`, `epochs`, `select_by` (None without dev), `dev` and `dev_before` (scores
        of the kept and of the initial head; {} without dev), `notes` (what a reader must know). Of several seeds or a
        sweep: what seeds.json or sweep.json holds.

    Raises:
        UserError: stores and head that do not belong together, labels that are missing or of one class, gradients
            that are not finite.
    """
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise UserError(
            f"{args.TITLE} trains a small head in seconds to minutes, in one process: start it without torchrun."
        )
    check_output(args.output_dir, _kind(args))
    check_trackers(args.report_to)
    stores = read_stores(args)
    trials = [(EasyDict(point), trial) for point, trial in args.trials()]
    several = args.seeds > 1 or args.sweep is not None
    for run in (run for _, trial in trials for run in trial.runs()):
        check_output(run.output_dir, run.KIND)
        rows = training_rows(run, stores.train)
        trainer.check(run, head_config(run, rows), rows)
    keep_freed_memory()
    console = Console()
    results = []
    for number, (point, trial) in enumerate(trials, 1):
        if args.sweep:
            console.print(f"[bold]Trial {number} of {len(trials)}[/bold]: {_report_parts(point)}", highlight=False)
        runs = [_run(run, trainer, stores, accelerator.device, console if several else None) for run in trial.runs()]
        results.append(runs[0] if trial.seeds == 1 else save_seeds(trial, runs, console))
    return save_sweep(args, [point for point, _ in trials], results, console) if args.sweep else results[0]


def _kind(args: HeadArguments) -> str:
    if args.sweep:
        return f"{args.KIND}_sweep"
    return args.KIND if args.seeds == 1 else f"{args.KIND}_seeds"


def _report_parts(point: EasyDict) -> str:
    return ", ".join(f"{name} = {value}" for name, value in point.items())


def _run(
    args: A, trainer: type[HeadTrainer[A]], stores: Stores, device: torch.device, resumes: Console | None
) -> EasyDict:
    """Train once; with `resumes`, a run that is finished already is reported there and not repeated."""
    stores = Stores(training_rows(args, stores.train), stores.dev)
    done = finished_run(args, stores) if resumes is not None else None
    if resumes is not None and done is not None:
        resumes.print(f"{args.output_dir}: already done", highlight=False, soft_wrap=True)
        return done
    set_seed(args.seed)
    with _deterministic(device):
        training = trainer(args, initial_head(args, stores.train), stores.train, stores.dev, device)
        with reported(args.report_to, args.output_dir, args.model_dump()) as training.report:
            training.fit()
    return save_outcome(args, training.outcome(), stores)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, use deterministic kernels; a GPU's may be slower or missing, and are left as they are."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
