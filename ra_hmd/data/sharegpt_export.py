"""Export of an imported data set to training files of LLaMA-Factory: `ra-hmd data to-sharegpt`."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import alone_in, atomic_path, read_json, write_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ShareGptManifest, ShotList, parse_manifest
from ra_hmd.data.meme_dataset import MemeData, json_line, open_data
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.readers.generic import FILE_NAME
from ra_hmd.data.readers.tasks import Task
from ra_hmd.data.readers.tree import absolute
from ra_hmd.data.training_records import TrainingRecord, dataset_info_entry

REGISTRY = "dataset_info.json"
ORIGINS = "sharegpt_origins.json"  # file name → manifest of its source


@dataclass(frozen=True)
class ShareGptFile:
    """A training file that was written.

    Attributes:
        name: Its name in `dataset_info.json`.
        path: Its path.
        rows: Number of its records.
        unlabelled: Number of memes of the split that were left out, because they have no label in the task.
    """

    name: str
    path: Path
    rows: int
    unlabelled: int


def write_sharegpt(
    folder: str | Path,
    output: str | Path,
    *,
    task: str | None = None,
    prompt: str | None = None,
    media_dir: str | Path | None = None,
    name: str | None = None,
    splits: list[str] | None = None,
    shots: ShotList | None = None,
) -> tuple[list[ShareGptFile], PromptTemplate]:
    """Write one ShareGPT file per labelled split of an imported folder, and enter them in `output/dataset_info.json`.

    `output/sharegpt_origins.json` records the source of each file; files with another source are not overwritten.

    Args:
        folder: The imported folder.
        output: LLaMA-Factory's `dataset_dir`. Entries of other data sets in its registry are kept.
        task: Task to train on; default is the data set's first.
        prompt: Question, with `<image>` once and `{text}` for the caption; default is that of the task.
        media_dir: Folder that image paths are relative to, which is then the `media_dir` to train with; by default
            paths are absolute.
        name: Name of the training data in the registry; default is the official one.
        splits: Splits to write; default is all.
        shots: Write the memes of this K-shot list only, of the one split that it was drawn from; needs `name`.

    Returns:
        The files, and the template of the question.

    Raises:
        UserError: The task or split is unknown, no meme is labelled, an image is not below `media_dir`, a file of
            another source would be overwritten, or memes of the K-shot list are missing.
    """
    data, output = open_data(folder), Path(output)
    chosen = data.task(task)
    unknown = sorted(set(splits or []) - set(data.splits))
    if unknown:
        raise UserError(f"{folder} has no split {', '.join(unknown)}; it has {', '.join(data.splits)}.")
    if name is not None and not FILE_NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: it becomes a file name: letters, digits, '-', '_' and '.'.")
    if shots is not None and (name is None or len(splits or data.splits) != 1):
        raise UserError("A K-shot list is written under a name of its own, from one split: give --name and --splits.")
    template = PromptTemplate(prompt or chosen.prompt)
    chosen_splits = sorted(splits or data.splits, key=lambda split: (split != "train", split))
    unlabelled = {split: _rows_if_unlabelled(data, split, chosen) for split in chosen_splits}
    if None not in unlabelled.values():
        others = ", ".join(other.name for other in data.reader.tasks if other != chosen)
        raise UserError(f"No meme of {folder} has a label in task {chosen.name!r}; other tasks: {others or 'none'}.")
    with alone_in(output):  # the registry is read, and written with more
        files = _write_files(data, output, chosen, template, name, unlabelled, media_dir, shots)
    return [file for file in files if file.rows or file.unlabelled], template


def _write_files(
    data: MemeData,
    output: Path,
    chosen: Task,
    template: PromptTemplate,
    name: str | None,
    unlabelled: dict[str, int | None],
    media_dir: str | Path | None,
    shots: ShotList | None,
) -> list[ShareGptFile]:
    """Write the registry and a file per split.

    Args:
        unlabelled: Split → number of its memes if none of them is labelled, else None.
    """
    entries: dict[str, Any] = read_json(output / REGISTRY) if (output / REGISTRY).is_file() else {}
    origins = _read_origins(output / ORIGINS)
    names = {split: _names(data, split, chosen, name) for split in unlabelled}
    source = str(absolute(data.folder))
    _check_targets(output, list(names.values()), entries, origins, source)
    files = []
    listed: dict[str, Any] = {} if shots is None else {"shots": shots.shots, "shot_seed": shots.seed}
    for split, (registered, file_name) in names.items():
        without = unlabelled[split]
        if without is not None:
            files.append(ShareGptFile(registered, output / file_name, 0, without))
            continue
        origin = ShareGptManifest.new(
            source=source,
            fingerprint=data.manifest.fingerprint,
            split=split,
            task=chosen.name,
            prompt=template.template,
            media_dir=None if media_dir is None else str(media_dir),
            **listed,
        )
        _write_origins(output / ORIGINS, origins | {file_name: origin})
        try:
            rows, without = _write_file(output / file_name, data, split, chosen, template, media_dir, shots)
        except UserError:
            if origins:
                _write_origins(output / ORIGINS, origins)
            else:
                (output / ORIGINS).unlink()
            raise
        origins[file_name] = origin
        files.append(ShareGptFile(registered, output / file_name, rows, without))
        entries[registered] = dataset_info_entry(file_name)
    write_json(output / REGISTRY, dict(entries))
    return files


def _rows_if_unlabelled(data: MemeData, split: str, task: Task) -> int | None:
    """Return the number of memes of a split if none has a label in the task, else None."""
    count = 0
    for meme in data.memes(split):
        if data.value(task, meme) is not None:
            return None
        count += 1
    return count


def _read_origins(path: Path) -> dict[str, ShareGptManifest]:
    """File to its origin."""
    stated = read_json(path) if path.is_file() else {}
    return {file: parse_manifest(origin, ShareGptManifest, f"{path}, {file}") for file, origin in stated.items()}


def _write_origins(path: Path, origins: Mapping[str, ShareGptManifest]) -> None:
    write_json(path, {file: origin.to_json() for file, origin in origins.items()})


def _check_targets(
    output: Path,
    names: list[tuple[str, str]],
    entries: dict[str, Any],
    origins: Mapping[str, ShareGptManifest],
    source: str,
) -> None:
    """Raise `UserError` if files, or names in the registry, belong to other data."""
    problems = [
        f"{output / file} {'was written from ' + origins[file].source if file in origins else 'is not from here'}"
        for _, file in names
        if (output / file).is_file() and (file not in origins or origins[file].source != source)
    ]
    problems += [
        f"{name!r} in {output / REGISTRY} is {entries[name].get('file_name')}"
        for name, file in names
        if name in entries and entries[name].get("file_name") != file
    ]
    raise_all(problems, "What is of other data would be overwritten; remove it, or give another --output or --name")


def _names(data: MemeData, split: str, task: Task, name: str | None) -> tuple[str, str]:
    """Return the name in the registry, and the file name below the data folder, of a split.

    Both are the official names for the first task of a public data set, and contain the name of any other task.
    """
    suffix = "" if split == "train" else f"_{split}"
    stem = name or data.reader.name
    registered, file_name = f"{stem}{suffix}", f"gt/{stem}/sharegpt_{stem}_{split}_instructblip.json"
    if name is None and split in data.reader.sharegpt:
        registered, file_name = data.reader.sharegpt[split]
    if task == data.reader.tasks[0]:
        return registered, file_name
    train = data.reader.sharegpt.get("train", (stem, ""))[0] if name is None else stem
    return (
        f"{train}_{task.name}{registered.removeprefix(train)}",
        file_name.replace("_instructblip.json", f"_{task.name}_choice.json"),
    )


def _write_file(
    path: Path,
    data: MemeData,
    split: str,
    task: Task,
    template: PromptTemplate,
    media_dir: str | Path | None,
    shots: ShotList | None,
) -> tuple[int, int]:
    """Write the records of a split; return their number, and the number of unlabelled memes."""
    outside: list[str] = []
    rows = unlabelled = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for record in _records(data, split, task, template, media_dir, shots, outside):
            if record is None:
                unlabelled += 1
                continue
            file.write(("[\n" if not rows else ",\n") + json_line(record.to_row()).rstrip("\n"))
            rows += 1
        file.write("\n]\n")
        if shots is not None and rows != len(shots.ids):
            raise UserError(
                f"{data.folder}, {split}: {rows} of the {len(shots.ids)} memes of the K-shot list are there and have a "
                f"label in task {task.name!r}; draw the list from this split and task."
            )
        raise_all(outside, f"Images that are not below --media-dir {media_dir}")
    return rows, unlabelled


def _records(
    data: MemeData,
    split: str,
    task: Task,
    template: PromptTemplate,
    media_dir: str | Path | None,
    shots: ShotList | None,
    outside: list[str],
) -> Iterator[TrainingRecord | None]:
    kept = None if shots is None else set(shots.ids)
    for meme in data.memes(split):
        if kept is not None and meme.id not in kept:
            continue
        value = data.value(task, meme)
        if value is None:
            yield None
            continue
        image = os.path.normpath(meme.path.absolute())
        if media_dir is not None:
            image = os.path.relpath(image, media_dir)
            if Path(image).parts[0] == os.pardir:
                outside.append(f"{meme.id}: {meme.path}")
        label = tuple(value) if isinstance(value, list) else value
        try:
            record = TrainingRecord.of_meme(replace(meme, label=label), template, task.answers)
        except UserError as error:
            raise UserError(f"Task {task.name!r}: {error}") from error
        yield replace(record, image=image)
