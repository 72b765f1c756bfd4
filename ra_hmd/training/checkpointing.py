"""Files of a training run: checkpoints, history, plots and manifest."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict
from rich.console import Console
from rich.table import Table

from ra_hmd.core.artifacts import (
    MANIFEST_NAME,
    plain,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
)
from ra_hmd.core.manifests import (
    HeadRunManifest,
    SeedsManifest,
    SweepManifest,
    TrainedHeadManifest,
    read_folder_manifest,
    write_manifest,
)
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.core.plotting import save_figure
from ra_hmd.features.compatibility import store_fingerprint
from ra_hmd.features.store import Features
from ra_hmd.models.head import HEAD_WEIGHTS, INITIAL_HEAD, save_head
from ra_hmd.training.arguments import HeadArguments
from ra_hmd.training.inputs import Stores
from ra_hmd.training.plots import sweep_figure, training_figure
from ra_hmd.training.trainer import Outcome


def save_outcome(args: HeadArguments, outcome: Outcome, stores: Stores) -> EasyDict:
    """Write head, history, figures, what a subclass adds and, last, the manifest; return the run's summary."""
    folder = args.output_dir
    notes = [*_notes(args, outcome, stores), *outcome.notes]
    save_head(folder, outcome.config, outcome.state)
    if outcome.initial_state is not None:
        # A copy, so that a report can compare before and after wherever this folder is moved.
        save_head(folder / INITIAL_HEAD, outcome.config, outcome.initial_state)
    select_by = args.select_by if stores.dev is not None else None
    history = {"select_by": select_by, "best_epoch": outcome.best_epoch, "epochs": outcome.history}
    write_json(folder / "history.json", history)
    for name, table in outcome.tables.items():
        write_json(folder / name, table)
    save_figure(training_figure(outcome.history, outcome.best_epoch, outcome.losses), folder / "curves.png")
    for name, figure in outcome.figures.items():
        save_figure(figure, folder / name)
    manifest = TrainedHeadManifest.new(
        args.KIND,
        arguments=plain(args.model_dump()),
        seed=args.seed,
        best_epoch=outcome.best_epoch,
        head_sha256=sha256_file(folder / HEAD_WEIGHTS),
        features=_features(args, stores),
        notes=notes,
        **_origin(args.init_head),
        **describe_encoder(stores.train),
    )
    write_manifest(folder / MANIFEST_NAME, manifest)
    return _summary(folder, EasyDict(history), notes)


def finished_run(args: HeadArguments, stores: Stores) -> EasyDict | None:
    """The summary of the run in `args.output_dir` if it was made with these settings and from this data, else None."""
    manifest = read_folder_manifest(args.output_dir)
    if not isinstance(manifest, TrainedHeadManifest) or manifest.arguments != plain(args.model_dump()):
        return None
    now = TrainedHeadManifest(kind=args.KIND, features=_features(args, stores), **_origin(args.init_head))
    if manifest.features != now.features or manifest.init_head != now.init_head:
        return None
    return _summary(args.output_dir, EasyDict(read_json(args.output_dir / "history.json")), manifest.notes)


def _summary(folder: Path, history: EasyDict, notes: list[str]) -> EasyDict:
    def dev_scores(entry: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entry.items() if name.startswith("dev_")}

    return EasyDict(
        output_dir=str(folder),
        best_epoch=history.best_epoch,
        epochs=len(history.epochs) - 1,
        select_by=history.select_by,
        dev=dev_scores(history.epochs[history.best_epoch]),
        dev_before=dev_scores(history.epochs[0]),
        notes=list(notes),
    )


def save_seeds(args: HeadArguments, runs: Sequence[EasyDict], console: Console) -> EasyDict:
    """Write seeds.json and a manifest: each seed's dev scores, and their mean and standard deviation over seeds."""
    seeds = list(range(args.seed, args.seed + args.seeds))
    result = EasyDict(
        output_dir=str(args.output_dir),
        select_by=runs[0].select_by,
        runs=[EasyDict(seed=seed, **run) for seed, run in zip(seeds, runs, strict=True)],
        **_spread(runs),
    )
    if result.select_by is not None:
        scores = [run.dev[args.select_by] for run in runs]
        best = scores.index(max(scores))
        result.best = EasyDict(seed=seeds[best], output_dir=runs[best].output_dir)
    write_json(args.output_dir / "seeds.json", result)
    manifest = SeedsManifest.new(f"{args.KIND}_seeds", arguments=plain(args.model_dump()), seeds=seeds)
    write_manifest(args.output_dir / MANIFEST_NAME, manifest)
    table = Table(title=f"Dev scores over {len(seeds)} seeds, mean ± standard deviation")
    for column in ("score", "initial head", "kept epoch"):
        table.add_column(column)
    for name, mean in result.dev_mean.items():
        before = format_spread(result.dev_before_mean[name], result.dev_before_std[name])
        table.add_row(name, before, format_spread(mean, result.dev_std[name]))
    console.print(table)
    return result


def _spread(runs: Sequence[EasyDict]) -> EasyDict:
    """Mean and sample standard deviation over seeds of each dev score; None where a run has none."""
    spread = EasyDict()
    for part in ("dev", "dev_before"):
        means: dict[str, float | None] = {}
        deviations: dict[str, float | None] = {}
        for name in runs[0][part]:
            values = [run[part][name] for run in runs]
            known = None not in values
            means[name] = statistics.fmean(values) if known else None
            deviations[name] = statistics.stdev(values) if known and len(values) > 1 else None
        spread[f"{part}_mean"], spread[f"{part}_std"] = means, deviations
    return spread


def format_spread(mean: float | None, deviation: float | None) -> str:
    """`0.913 ± 0.004`; the mean alone where there is one seed, `–` where there is no value."""
    if mean is None:
        return "–"
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"


def save_sweep(
    args: HeadArguments, points: Sequence[EasyDict], results: Sequence[EasyDict], console: Console
) -> EasyDict:
    """Write sweep.json, sweep.md, sweep.png and a manifest: every setting's dev score, the best one named."""
    trials = []
    for point, result in zip(points, results, strict=True):
        several = result if "dev_mean" in result else _spread([result])
        mean, deviation = several.dev_mean[args.select_by], several.dev_std[args.select_by]
        trials.append(EasyDict(settings=point, output_dir=result.output_dir, mean=mean, std=deviation))
    best = max(range(len(trials)), key=lambda number: trials[number].mean)
    sweep = EasyDict(output_dir=str(args.output_dir), select_by=args.select_by, seeds=args.seeds, trials=trials)
    sweep.best = EasyDict(trial=best, **trials[best])
    write_json(args.output_dir / "sweep.json", plain(sweep))
    rows = [
        [f"{'**' if number == best else ''}{number}{'**' if number == best else ''}",
         *(escape(value) for value in trial.settings.values()), format_spread(trial.mean, trial.std)]
        for number, trial in enumerate(trials)
    ]  # fmt: skip
    header = ["trial", *(escape(name) for name in points[0]), escape(args.select_by)]
    text = (
        f"# Sweep\n\n{escape(args.select_by)}, mean ± standard deviation over {args.seeds} seeds; best: trial {best}."
        " A score that was the best of several is optimistic: measure the chosen head on data that chose nothing.\n\n"
    )
    write_text(args.output_dir / "sweep.md", text + markdown_table(header, rows))
    save_figure(sweep_figure(trials, args.select_by, best), args.output_dir / "sweep.png")
    manifest = SweepManifest.new(f"{args.KIND}_sweep", arguments=plain(args.model_dump()), best=best)
    write_manifest(args.output_dir / MANIFEST_NAME, manifest)
    console.print(
        f"Best of {len(trials)} by {args.select_by}: {trials[best].output_dir}", highlight=False, soft_wrap=True
    )
    return sweep


def _notes(args: HeadArguments, outcome: Outcome, stores: Stores) -> list[str]:
    if stores.dev is None:
        return [f"No dev store was given: the last epoch ({outcome.best_epoch}) was kept."]
    notes = []
    if outcome.best_epoch == 0:
        notes.append(f"No epoch was better on dev than the initial head ({args.init_head}): it was kept unchanged.")
    shared = len(set(stores.train.ids) & set(stores.dev.ids))
    if shared:
        notes.append(f"{shared} ids of {args.dev} are also in {args.train}: the choice of the epoch is optimistic.")
    return notes


def describe_features(place: Path, features: Features) -> dict[str, Any]:
    """A store that a head came from, for the head's manifest."""
    return {
        "path": str(place),
        "rows": len(features),
        "fingerprint": plain(store_fingerprint(features)),
        "source": None if features.manifest.source is None else features.manifest.source.to_json(),
        "content_sha256": features.content,
    }


def describe_encoder(train: Features) -> dict[str, Any]:
    """Encoder that made the features, for the field `encoder` of a manifest: it encodes further memes alike."""
    encoder = train.manifest.encoder
    return {} if encoder is None else {"encoder": encoder.to_json()}


def describe_shots(train: Features) -> dict[str, Any]:
    """Rows of a store that a K-shot list selected."""
    # Of the memes, not of the file: lists may be added to that, and each list stays.
    return {"k_shot": sha256_bytes(*(name.encode() for name in train.ids))}


def _features(args: HeadArguments, stores: Stores) -> dict[str, Any]:
    places = {"train": (args.train, stores.train)}
    if args.dev is not None and stores.dev is not None:
        places["dev"] = args.dev, stores.dev
    described = {name: describe_features(path, features) for name, (path, features) in places.items()}
    if args.k_shot is not None:
        described["train"] |= describe_shots(stores.train)
    return described


def _origin(init_head: Path | None) -> dict[str, Any]:
    """The initial head, and how its Stage 1 run turned memes into features, which users of the refined head need."""
    if init_head is None:
        return {"init_head": None}
    manifest = read_folder_manifest(init_head)
    kind = None if manifest is None else manifest.kind
    origin: dict[str, Any] = {
        "init_head": {"path": str(init_head), "sha256": sha256_file(init_head / HEAD_WEIGHTS), "kind": kind}
    }
    if isinstance(manifest, HeadRunManifest):
        stated = manifest.to_json()
        origin |= {name: stated[name] for name in ("base_model", "inputs") if name in stated}
    return origin
