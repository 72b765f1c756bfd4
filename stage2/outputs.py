"""What a Stage 2 run leaves in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ra_hmd.evaluation.checks import store_fingerprint
from ra_hmd.evaluation.evaluate import INITIAL_HEAD
from ra_hmd.evaluation.plots import training_figure
from ra_hmd.features.store import Features
from ra_hmd.figures import save_figure
from ra_hmd.manifest import MANIFEST_NAME, plain, read_json, run_manifest, sha256_file, write_json
from ra_hmd.models.head import HEAD_WEIGHTS, HeadConfig, save_head
from stage2.arguments import Stage2Arguments

CARRIED = ("base_model", "inputs", "prompt", "pixels")
"""Fields of a Stage 1 manifest that a user of the refined head needs as well."""


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        config: Shape of the head.
        state: Weights of the kept epoch.
        initial_state: Weights before the first step.
        best_epoch: The kept epoch; 0 is the initial head.
        history: Losses and dev scores per epoch, epoch 0 first.
        mining: Mining statistics per epoch.
    """

    config: HeadConfig
    state: dict[str, Tensor]
    initial_state: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, Any]]
    mining: list[dict[str, Any]]


def save_outcome(args: Stage2Arguments, outcome: Outcome, train: Features, dev: Features | None) -> dict[str, Any]:
    """Write head, history, mining statistics, curves and manifest; return the summary of `run_stage2`."""
    folder = args.output_dir
    select_by = args.select_by if dev is not None else None
    notes = _notes(args, outcome, train, dev)
    save_head(folder, outcome.config, outcome.state)
    if args.init_head is not None:
        # A copy, so that a report can compare before and after wherever this folder is moved.
        save_head(folder / INITIAL_HEAD, outcome.config, outcome.initial_state)
    history = {"select_by": select_by, "best_epoch": outcome.best_epoch, "epochs": outcome.history}
    write_json(folder / "history.json", history)
    write_json(folder / "mining.json", {"metric": args.metric, "epochs": outcome.mining})
    save_figure(training_figure(outcome.history, outcome.best_epoch), folder / "curves.png")
    write_json(folder / MANIFEST_NAME, _manifest(args, outcome, train, dev, notes))

    def dev_scores(entry: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entry.items() if name.startswith("dev_")}

    return {
        "output_dir": str(folder),
        "best_epoch": outcome.best_epoch,
        "epochs": args.epochs,
        "select_by": select_by,
        "dev": dev_scores(outcome.history[outcome.best_epoch]),
        "dev_before": dev_scores(outcome.history[0]),
        "notes": notes,
    }


def _notes(args: Stage2Arguments, outcome: Outcome, train: Features, dev: Features | None) -> list[str]:
    notes = []
    if dev is None:
        notes.append(f"No dev store was given: the last epoch ({outcome.best_epoch}) was kept.")
    else:
        if outcome.best_epoch == 0:
            notes.append(f"No epoch was better on dev than the initial head ({args.init_head}): it was kept unchanged.")
        shared = len(set(train.ids) & set(dev.ids))
        if shared:
            notes.append(f"{shared} ids of {args.dev} are also in {args.train}: the choice of the epoch is optimistic.")
    knobs = {
        "positives": "pseudo_gold_positives",
        "hard_negatives": "hard_negatives",
        "hard_positives": "hard_positives",
    }
    for kind, knob in knobs.items():
        short = outcome.mining[-1][kind]["anchors_short"]
        if short:
            notes.append(f"{short} anchors have fewer {kind.replace('_', ' ')} in the data than asked; lower `{knob}`.")
    return notes


def _manifest(
    args: Stage2Arguments, outcome: Outcome, train: Features, dev: Features | None, notes: list[str]
) -> dict[str, Any]:
    stores = {"train": (args.train, train)} | ({"dev": (args.dev, dev)} if dev is not None else {})
    return run_manifest(
        "stage2",
        arguments=plain(vars(args)),
        seed=args.seed,
        best_epoch=outcome.best_epoch,
        head_sha256=sha256_file(args.output_dir / HEAD_WEIGHTS),
        features={
            name: {"path": str(path), "rows": len(features), "fingerprint": plain(store_fingerprint(features))}
            for name, (path, features) in stores.items()
        },
        notes=notes,
        **_origin(args.init_head),
    )


def _origin(init_head: Path | None) -> dict[str, Any]:
    """Where the initial head came from, and how Stage 1 turned memes into its features (`CARRIED`), where known."""
    if init_head is None:
        return {"init_head": None}
    path = init_head / MANIFEST_NAME
    manifest = read_json(path) if path.is_file() else {}
    origin = {"path": str(init_head), "sha256": sha256_file(init_head / HEAD_WEIGHTS), "kind": manifest.get("kind")}
    return {"init_head": origin, **{key: plain(manifest[key]) for key in CARRIED if key in manifest}}
