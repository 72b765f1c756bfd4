"""From what a user names on the command line to memes."""

from pathlib import Path

from ra_hmd.data.record import Meme, read_memes
from ra_hmd.data.sharegpt import Answers, PromptTemplate
from ra_hmd.errors import UserError
from ra_hmd.manifest import read_json


def resolve_memes(
    data: str,
    split: str,
    prompt: PromptTemplate,
    answers: Answers,
    dataset_dir: str | Path = "data",
    media_dir: str | Path | None = None,
) -> list[Meme]:
    """The memes of `data`: a file, a folder with `<split>.jsonl`, or a data set of `dataset_info.json`.

    A data set's split is looked up as `<data>_<split>`, or as `<data>` itself for `train`. Images are looked for under
    `media_dir`; for a data set that is `dataset_dir` unless given, as in LLaMA-Factory.

    Raises:
        UserError: nothing of that name, with what was looked for.
    """
    path = Path(data)
    if path.is_file():
        return read_memes(path, split=split, prompt=prompt, answers=answers, media_dir=media_dir)
    if path.is_dir():
        return read_memes(path / f"{split}.jsonl", split=split, prompt=prompt, answers=answers, media_dir=media_dir)
    folder = Path(dataset_dir)
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
    file = folder / entries[name]["file_name"]
    return read_memes(file, split=split, prompt=prompt, answers=answers, media_dir=media_dir or folder)
