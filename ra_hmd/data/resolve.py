"""Resolving the `--data` of a command into memes, and describing their source for manifests."""

from dataclasses import replace
from pathlib import Path

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import as_path
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, open_data
from ra_hmd.data.meme_files import check_unique_ids, read_memes
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.generic import Generic
from ra_hmd.data.readers.tasks import Task
from ra_hmd.data.training_records import RecordFormat


def resolve_memes(
    data: str,
    split: str,
    prompt: PromptTemplate,
    answers: Answers,
    dataset_dir: str | Path = "data",
    media_dir: str | Path | None = None,
    task: Task | None = None,
) -> list[Meme]:
    """Read the memes of `data`: a file, a folder with `<split>.jsonl`, or a data set of `dataset_info.json`.

    Args:
        data: Path or name. The split of a named data set is `<data>_<split>`, for `train` also `<data>` itself.
        split: The split.
        prompt: Template of the questions of training records.
        answers: Answers of training records.
        dataset_dir: Folder of `dataset_info.json`.
        media_dir: Folder of the images; for a named data set `dataset_dir` by default, as in LLaMA-Factory.
        task: Task of the imported folder `data` (see `imported_task`) that gives the labels.

    Raises:
        UserError: There is no such file, folder or data set.
    """
    path = as_path(data)
    if task is not None:
        return _with_labels_of(task, path, read_memes(path / f"{split}.jsonl", split=split))
    if path.is_file():
        return read_memes(path, split=split, prompt=prompt, answers=answers, media_dir=media_dir)
    if path.is_dir():
        return read_memes(path / f"{split}.jsonl", split=split, prompt=prompt, answers=answers, media_dir=media_dir)
    folder = as_path(dataset_dir)
    registry = folder / "dataset_info.json"
    if not registry.is_file():
        raise UserError(f"{data} is neither a file nor a folder, and {registry} does not exist (--dataset-dir).")
    entries = read_json(registry)
    names = [f"{data}_{split}", *([data] if split == "train" else [])]
    name = next((name for name in names if name in entries), None)
    if name is None:
        raise UserError(f"{registry} has no data set {' or '.join(names)}; it has {', '.join(sorted(entries))}.")
    if "file_name" not in entries[name]:
        raise UserError(f"Data set {name} of {registry} is not a local file; save it as one, and give that.")
    file, record_format = folder / entries[name]["file_name"], RecordFormat.of_entry(entries[name])
    media_dir = media_dir or folder
    memes = [
        meme
        for part in (sorted(file.iterdir()) if file.is_dir() else [file])
        for meme in read_memes(
            part, split=split, prompt=prompt, answers=answers, media_dir=media_dir, record_format=record_format
        )
    ]
    check_unique_ids(memes, file)
    return memes


def describe_source(data: str, split: str, task: str | None = None) -> dict[str, str | None]:
    """Describe the source of memes, for the manifests of what is made from them.

    Args:
        data: As for `resolve_memes`.
        split: The split.
        task: Name of the task that gives the labels, if one was chosen.

    Returns:
        `dataset`: name of the reader of a public data set, otherwise of the folder or file. `split`: name of the split
        in the reader's terms. `task`: the chosen task, or the first one of a public data set. `place`: `data`.
    """
    path, place = as_path(data), str(data)
    if (path / DATASET_MANIFEST).is_file() and (reader := open_data(path).reader) is not Generic:
        return {"dataset": reader.name, "split": split, "task": task or reader.tasks[0].name, "place": place}
    if path.exists():
        whole = path.absolute()
        name = whole.name if path.is_dir() else whole.parent.name if path.stem == split else path.stem
        return {"dataset": name, "split": split, "task": task, "place": place}
    names = (f"{data}_{split}", *([data] if split == "train" else []))
    for reader in READERS.values():
        for ours, (name, _) in reader.sharegpt.items():
            if name in names:
                return {"dataset": reader.name, "split": ours, "task": reader.tasks[0].name, "place": place}
    return {"dataset": data, "split": split, "task": None, "place": place}


def imported_task(data: str, name: str) -> Task:
    """Return a task of an imported folder by its name.

    Raises:
        UserError: `data` is no imported folder, or has no such task.
    """
    if not (as_path(data) / DATASET_MANIFEST).is_file():
        raise UserError(
            f"--task {name}: {data} is not an imported folder (`ra-hmd data import`), and only those know their tasks. "
            "Of a training file the labels are those of its own task; leave --task out."
        )
    return open_data(data).task(name)


def _with_labels_of(task: Task, folder: Path, memes: list[Meme]) -> list[Meme]:
    data = open_data(folder)
    values = [data.value(task, meme) for meme in memes]
    return [
        replace(meme, label=tuple(value) if isinstance(value, list) else value)
        for meme, value in zip(memes, values, strict=True)
    ]
