"""`ra-hmd stage2`: one run, several seeds, or a sweep of settings, from stores to folders with heads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from ra_hmd.errors import UserError
from ra_hmd.evaluation.checks import (
    check_head_fits,
    check_output,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import HeadConfig, MemeHead, load_head, read_head_config
from ra_hmd.problem import Problem
from stage2.arguments import Stage2Arguments
from stage2.memory import keep_freed_memory
from stage2.outputs import finished_run, save_outcome, save_seeds, save_sweep
from stage2.trainer import Trainer


def run_stage2(args: Stage2Arguments) -> dict[str, Any]:
    """Refine a head; the same settings and seed give the same head (on the CPU, to the bit).

    Each epoch embeds the whole training split with the current head, mines positives and hard negatives in it, and
    steps through it once with `(1 − w)·L_CL + w·L_classification`. The kept epoch is the best on dev by
    `args.select_by`, with the training split as the bank; among equals the one whose KNN votes are further on the right
    side. The initial head takes part as epoch 0 if it was trained before (`init_head`). Without dev the last epoch is
    kept.

    With `seeds` each run has a folder `seed-<n>`, with `sweep` each setting a folder `trial-<n>`; there, runs that are
    finished are not done again.

    Returns:
        Of one run: `output_dir`, `best_epoch`, `epochs`, `select_by` (None without dev), `dev` and `dev_before` (scores
        of the kept and of the initial head; {} without dev), `notes` (what a reader must know). Of several seeds or a
        sweep: what seeds.json or sweep.json holds.

    Raises:
        UserError: stores and head that do not belong together, labels that are missing or of one class, gradients
            that are not finite.

    Source: RA-HMD (arXiv 2502.13061), Stage 2.
    """
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise UserError("Stage 2 trains a small head in seconds to minutes, in one process: start it without torchrun.")
    check_output(args.output_dir, _kind(args))
    train, dev = _read_stores(args)
    keep_freed_memory()
    console = Console()
    trials, several = list(args.trials()), args.seeds > 1 or args.sweep is not None
    results = []
    for number, (point, trial) in enumerate(trials, 1):
        if args.sweep:
            console.print(f"[bold]Trial {number} of {len(trials)}[/bold]: {_told(point)}", highlight=False)
        runs = [_run(run, train, dev, accelerator.device, console if several else None) for run in trial.runs()]
        results.append(runs[0] if trial.seeds == 1 else save_seeds(trial, runs, console))
    return save_sweep(args, [point for point, _ in trials], results, console) if args.sweep else results[0]


def _kind(args: Stage2Arguments) -> str:
    if args.sweep:
        return "stage2_sweep"
    return "stage2" if args.seeds == 1 else "stage2_seeds"


def _told(point: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in point.items())


def _run(
    args: Stage2Arguments, train: Features, dev: Features | None, device: torch.device, resumes: Console | None
) -> dict[str, Any]:
    """One run; with a console, as one of several: it is left out, and that is said, if it was done before."""
    check_output(args.output_dir, "stage2")
    done = finished_run(args, train, dev) if resumes is not None else None
    if resumes is not None and done is not None:
        resumes.print(f"{args.output_dir}: already done", highlight=False, soft_wrap=True)
        return done
    set_seed(args.seed)
    with _deterministic(device):
        trainer = Trainer(args, initial_head(args, train), train, dev, device)
        trainer.fit()
    return save_outcome(args, trainer.outcome(), train, dev)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, use deterministic kernels; a GPU's may be slower or missing, and are left as they are."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _problem(args: Stage2Arguments) -> Problem:
    return args.problem if args.init_head is None else read_head_config(args.init_head).problem


def _read_stores(args: Stage2Arguments) -> tuple[Features, Features | None]:
    train, problem = read_features(args.train), _problem(args)
    known = {str(args.train): store_fingerprint(train)}
    if args.init_head is not None:
        known[str(args.init_head)] = head_fingerprint(args.init_head)
    dev = read_features(args.dev) if args.dev is not None else None
    check_store(train, args.train, problem)
    if args.compat == "official" and problem.kind == "multi_label":
        raise UserError(f"`compat: official` has one class per meme; {args.train} has sets of them. Use `corrected`.")
    _check_classes(train, args.train, problem, "; training needs both classes")
    if dev is not None:
        check_store(dev, args.dev, problem)
        if args.select_by.endswith("auroc"):
            why = f", so `select_by: {args.select_by}` is undefined; give a dev store with both classes, or select by "
            _check_classes(dev, args.dev, problem, why + "an accuracy")
        if dev.hidden.shape[1] != train.hidden.shape[1]:
            raise UserError(
                f"Hidden states have size {train.hidden.shape[1]} in {args.train} and {dev.hidden.shape[1]} in "
                f"{args.dev}: they come from different LMMs. Extract both with one checkpoint."
            )
        known[str(args.dev)] = store_fingerprint(dev)
    check_same_origin(known)
    return train, dev


def _check_classes(features: Features, place: Any, problem: Problem, why: str) -> None:
    member = problem.membership(features.labels)
    if not (member.any(axis=0) & ~member.all(axis=0)).any():
        raise UserError(f"{place} has memes of class {features.labels[0]} only{why}.")


def initial_head(args: Stage2Arguments, train: Features) -> MemeHead:
    """The head of `init_head`, or a fresh one, with the asked dropout."""
    rates = {name: getattr(args, name) for name in ("dropout", "input_dropout") if getattr(args, name) is not None}
    if args.init_head is None:
        names = ("num_layers", "proj_dim", "problem_type", "output_dim")
        shape = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        return MemeHead(HeadConfig(input_dim=train.hidden.shape[1], **shape, **rates))
    saved = load_head(args.init_head)
    check_head_fits(saved.config, args.init_head, train, args.train)
    head = MemeHead(replace(saved.config, **rates))
    head.load_state_dict(saved.state_dict())
    return head
