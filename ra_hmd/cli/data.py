"""`ra-hmd data …`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import GROUP, Lists, Output, checked, from_settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from ra_hmd.data.meme_dataset import MemeData


data_app = typer.Typer(
    help="Import, check and prepare meme data.",
    **GROUP,
)
Folder = Annotated[Path, typer.Argument(help="Folder written by `ra-hmd data import`.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that open images.")]
TaskName = Annotated[str | None, typer.Option(help="Task, see `ra-hmd data list`; default: the first.")]
_WORKERS = os.cpu_count() or 1


@data_app.command("list")
def list_command() -> Outcome:
    """Show the data sets that can be imported: splits, expected counts, tasks, terms, and where they come from."""
    from ra_hmd.data.catalogue import catalogue, catalogue_table

    return Outcome(catalogue(), [catalogue_table()])


@data_app.command("import", cls=Lists)
def import_dataset_command(
    dataset: Annotated[str, typer.Argument(help="hateful_memes, harm_c, … or generic; see `ra-hmd data list`.")],
    root: Annotated[
        Path, typer.Argument(help="Folder that it was unpacked to; generic: also a file, or a name on the hub.")
    ],
    output: Output,
    images: Annotated[Path | None, typer.Option(help="Folder with the images, if not below ROOT.")] = None,
    add_on: Annotated[Path | None, typer.Option(help="Folder with further annotations, if not below ROOT.")] = None,
    text: Annotated[str, typer.Option(help="Normalisation of captions: single_line, strip or raw.")] = "single_line",
    val_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Share of train that becomes val.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the val split.")] = 0,
    columns: Annotated[list[str] | None, typer.Option(help="generic: field=column of the file …")] = None,
    labels: Annotated[list[str] | None, typer.Option(help="generic: label in the file=class index …")] = None,
    subset: Annotated[str | None, typer.Option(help="With a name on the hub: configuration of the data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="With a name on the hub: branch, tag or commit.")] = None,
    workers: Workers = _WORKERS,
) -> Outcome:
    """Read a data set as it lies on disk and write validated records. An interrupted import continues."""
    from ra_hmd.data.import_dataset import ImportOptions, import_data
    from ra_hmd.data.readers import get_reader
    from ra_hmd.data.text import TextPolicy

    named = dataset == "generic" and not root.exists() and not root.is_absolute()
    if (subset or revision) and not named:
        raise UserError(f"--subset and --revision are for names on the hub (generic ORG/NAME); {root} is a place here.")
    if named:
        from ra_hmd.data.hub_dataset import fetch_dataset

        root = fetch_dataset(root.as_posix(), f"{output}_download", subset=subset, revision=revision)
    reader = get_reader(dataset, columns=_pairs("--columns", columns), labels=_indices(labels))
    data = import_data(
        reader,
        root,
        output,
        images=images,
        add_on=add_on,
        options=ImportOptions(checked("--text", text, TextPolicy), val_fraction, seed),
        workers=workers,
        show=True,
    )
    manifest = data.manifest
    counts = {"splits": manifest.splits, "rejected": manifest.rejected, "reasons": manifest.reasons}
    result = {"output": data.folder, "layout": manifest.layout, **counts, "notes": manifest.notes}
    return Outcome(result, list(_description(data)))


@data_app.command("check")
@from_settings
def check_command(
    folder: Folder,
    engine: WorkerSettings,
    config: Annotated[Path | None, typer.Option(help="Stage 1 YAML file whose token budget must hold.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of that file, if it lies elsewhere.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="First repair what can be repaired without loss.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 on warnings too.")] = False,
    workers: Workers = _WORKERS,
) -> Outcome:
    """Check records and images, and write check/report.md and report.json. Exit code 1 when there are errors."""
    from ra_hmd.data.checks.check import CHECK, check_data

    excess = None
    if config is not None:
        from ra_hmd.models.caption_budget import excess_tokens

        excess = excess_tokens(config, model)
    report = check_data(folder, excess=excess, config=config, fix=fix, workers=workers, engine=engine, show=True)
    lines = [f"mended   {text}" for text in report.fixed]
    for finding in report.findings:
        lines.append(f"{finding['severity']:8} {finding['kind']}: {finding['count']} · {finding['meaning']}")
        lines += [f"           {example}" for example in finding["examples"][:3]]
    if not report.findings:
        lines.append("Nothing was found.")
    data = {"worst": report.worst, "fixed": report.fixed, "findings": report.findings}
    failed = report.worst == "error" or (strict and report.worst == "warning")
    return Outcome(data, [*lines, folder / CHECK / "report.md"], int(failed))


@data_app.command("to-sharegpt", cls=Lists)
def to_sharegpt_command(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", help="LLaMA-Factory's `dataset_dir`.")],
    task: TaskName = None,
    prompt: Annotated[str | None, typer.Option(help="Question, with <image> and {text}.")] = None,
    media_dir: Annotated[Path | None, typer.Option(help="Write image paths relative to this folder.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the training data, in place of the official one.")] = None,
    splits: Annotated[list[str] | None, typer.Option(help="Only these splits: --splits train val.")] = None,
    k_shot: Annotated[Path | None, typer.Option(help="K-shot lists: write the memes of one of them only.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="With --k-shot: K of the list.")] = None,
    shot_seed: Annotated[int, typer.Option(min=0, help="With --k-shot: seed of the list.")] = 0,
) -> Outcome:
    """Write the files that LLaMA-Factory trains on, and enter them in dataset_info.json."""
    from ra_hmd.core.manifests import KShotManifest, ShotList, read_manifest
    from ra_hmd.data.k_shot import read_shot_list
    from ra_hmd.data.meme_dataset import open_data
    from ra_hmd.data.prompt import OFFICIAL_PROMPT
    from ra_hmd.data.sharegpt_export import write_sharegpt

    if (k_shot is None) != (shots is None):
        raise UserError("Give both --k-shot (the lists) and --shots (which K of them), or neither.")
    shot_list = None
    if k_shot is not None and shots is not None:
        splits = splits or [read_manifest(k_shot, KShotManifest).split or "train"]
        ids = read_shot_list(k_shot, shots, shot_seed, splits[0])
        shot_list = ShotList(shots=shots, seed=shot_seed, ids=ids)
        name = name or f"{open_data(folder).reader.name}_{shots}_shot_seed_{shot_seed}"
    files, question = write_sharegpt(
        folder, output, task=task, prompt=prompt, media_dir=media_dir, name=name, splits=splits, shots=shot_list
    )
    lines = []
    for file in files:
        left = f", {file.unlabelled} without a label left out" if file.unlabelled else ""
        lines.append(
            f"{file.name}: {file.rows} records{left} · {file.path}" if file.rows else f"{file.name}: no labels"
        )
    keys: dict[str, Any] = {"dataset_dir": output, "dataset": next(file.name for file in files if file.rows)}
    if media_dir is not None:
        keys["media_dir"] = media_dir
    chosen = open_data(folder).task(task)
    if chosen.multi_label or len(chosen.answers) > 2:
        keys |= {"problem_type": "multi_label" if chosen.multi_label else "single_label"}
        keys |= {"output_dim": len(chosen.classes), "answers": list(chosen.answers)}
    if question.template != OFFICIAL_PROMPT:
        keys["prompt_template"] = question.template
    shown = {"answers": json.dumps(keys.get("answers"), ensure_ascii=False), "prompt_template": repr(question.template)}
    lines += ["", "For the YAML file:", *(f"  {key}: {shown.get(key, value)}" for key, value in keys.items())]
    written = [
        {"name": file.name, "path": file.path, "rows": file.rows, "unlabelled": file.unlabelled} for file in files
    ]
    return Outcome({"files": written, "yaml": keys}, lines)


@data_app.command("k-shot", cls=Lists)
def k_shot_command(
    folder: Folder,
    shots: Annotated[list[int], typer.Option(help="Numbers of memes K: --shots 4 8 16.")],
    seeds: Annotated[int, typer.Option(min=1, help="Number of lists of each size.")] = 5,
    per_class: Annotated[
        bool, typer.Option("--per-class/--no-per-class", help="Draw K memes of each class, or K in total.")
    ] = True,
    split: Annotated[str, typer.Option(help="Split to draw from.")] = "train",
    task: TaskName = None,
    output: Annotated[Path | None, typer.Option(help="The file; default: k_shot/ in the folder.")] = None,
) -> Outcome:
    """Write reproducible lists of ids for few-shot experiments."""
    from ra_hmd.data.k_shot import write_k_shot

    made = write_k_shot(folder, shots, seeds=seeds, per_class=per_class, split=split, task=task, output=output)
    return Outcome.of(output=made)


@data_app.command("ocr")
def ocr_command(
    folder: Folder,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest confidence of a line that is used.")] = 0.5,
) -> Outcome:
    """Read captions from the images of memes that have none (extra `ocr`). An interrupted run continues."""
    from ra_hmd.data.ocr import fill_captions

    filled = fill_captions(folder, min_score=min_score, show=True)
    lines = [f"{split}: {count} captions read" for split, count in filled.items()]
    return Outcome({"read": filled}, lines or ["Every meme has a caption, or was read before."])


@data_app.command("make-confounders")
def make_confounders_command(
    output: Output,
    size: Annotated[int | None, typer.Option(help="Number of training memes of each domain.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of images and captions.")] = 0,
) -> Outcome:
    """Write harmless synthetic memes, in the layout of Hateful Memes, whose label depends on image and caption."""
    from ra_hmd.data.synthetic.confounders import make_confounders

    options = {} if size is None else {"size": size}
    rows = make_confounders(output, seed=seed, **options)
    lines = [f"{name}: {count} memes" for name, count in rows.items() if name.partition("_")[2] != "captions"]
    return Outcome({"output": output, "rows": rows}, [*lines, output])


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    bad = [item for item in given or [] if "=" not in item]
    if bad:
        raise UserError(f"{option} {bad[0]!r}: write name=value.")
    return dict(item.rsplit("=", 1) if option == "--labels" else item.split("=", 1) for item in given or [])


def _indices(given: list[str] | None) -> dict[str, int]:
    pairs = _pairs("--labels", given)
    bad = [f"{name}={value}" for name, value in pairs.items() if not value.isdecimal()]
    if bad:
        raise UserError(f"--labels {bad[0]!r}: the right side is a class index: 0, 1, …")
    return {name: int(value) for name, value in pairs.items()}


def _description(data: "MemeData") -> Iterator[Any]:
    """The layout, the counts and the notes of an import."""
    manifest = data.manifest
    yield f"{data.reader.title}: {manifest.layout}, in {manifest.root}"
    for split, rows in manifest.splits.items():
        whole = data.expected.get(split)
        expected = f", {whole.rows} in a whole copy" if whole and whole.rows != rows else ""
        left = manifest.rejected.get(split, 0)
        yield f"  {split}: {rows} memes{expected}" + (f", {left} rows left out" if left else "")
    yield from (f"  note: {note}" for note in manifest.notes)
    yield from (f"  left out: {reason} ({count})" for reason, count in manifest.reasons.items())
    yield data.folder
