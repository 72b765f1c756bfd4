"""Tokenised data knows what it was made from: settings, data files, images; it is used again for nothing else."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict
from llamafactory.data.parser import get_dataset_list
from llamafactory.extras import logging
from llamafactory.extras.misc import has_tokenized_data

from llamafactory_ext.sft_classifier.nodes import of_every_rank
from ra_hmd.core.artifacts import new_folder, plain, read_json, sha256_bytes, sha256_file, write_json
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.models.tokenization import InputSettings

if TYPE_CHECKING:
    from llamafactory.data.data_utils import DatasetModule
    from llamafactory.hparams import DataArguments, TrainingArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it

PICTURE = "picture"
"""Column of the tokenised rows: the state of a meme's image file."""

_ORIGIN = "ra_hmd_inputs.json"
_DATA = (
    "dataset",
    "eval_dataset",
    "max_samples",
    "val_size",
    "mix_strategy",
    "interleave_probs",
    "eval_on_each_dataset",
)
_MISSING = "missing"


def file_state(path: Any) -> str:
    """Size and time of change of an image's file; "" for what is no path."""
    if not isinstance(path, str):
        return ""
    try:
        found = Path(path).stat()
    except OSError:
        return _MISSING
    return f"{found.st_size}:{found.st_mtime_ns}"


def picture_state(example: dict[str, Any]) -> str:
    """State of the image of an aligned record, with a digest of its content."""
    state, images = example[f"_{PICTURE}"], example["_images"]
    return f"{state}:{sha256_file(images[0])}" if ":" in state else state


def check_image_files(dataset: Dataset, place: str) -> None:
    """Raise `UserError` where images are not those that `dataset`, read from `place`, was made from.

    A file with another time of change is read: copied data is as good.
    """
    if PICTURE not in dataset.column_names:
        return  # made by a version that did not keep it
    problems = []
    for name, saved, images in zip(*(dataset[key] for key in ("sample_id", PICTURE, "images")), strict=True):
        if saved in ("", _MISSING):
            continue
        state, _, digest = saved.rpartition(":")
        now = file_state(images[0])
        if now == _MISSING or (now != state and sha256_file(images[0]) != digest):
            problems.append(f"record {name}: {images[0]} {'is gone' if now == _MISSING else 'has changed'}")
    raise_all(problems, f"{place} was made with other images; remove it, and it is made anew")


def tokenized_origin(
    data_args: "DataArguments",
    training_args: "TrainingArguments",
    finetuning_args: "ClassifierFinetuningArguments",
    tokenizer_module: dict[str, Any],
    settings: InputSettings,
) -> dict[str, Any]:
    """Settings that tokenised data depend on, apart from the images."""
    tokenizer, processor = tokenizer_module["tokenizer"], tokenizer_module["processor"]
    names = [*(data_args.dataset or []), *(data_args.eval_dataset or [])]
    sources = zip(names, get_dataset_list(names, data_args.dataset_dir), strict=True)
    described = {name: plain(vars(attributes)) for name, attributes in sources}
    for attributes in described.values():
        attributes["content"] = _content(data_args.dataset_dir, attributes)
    drawn = data_args.val_size > 0 or len(names) > 1 or any(each["num_samples"] for each in described.values())
    return {
        "inputs": plain(settings.to_dict()),
        "overlong_caption": finetuning_args.overlong_caption,
        "general_dataset": finetuning_args.general_names or None,
        "tokenizer": _digest(tokenizer.get_vocab()),
        "image_processor": _digest(plain(processor.image_processor.to_dict())),
        "data": plain({name: getattr(data_args, name) for name in _DATA}),
        "seed": training_args.seed if drawn else None,
        "sources": described,
    }


def _digest(value: Any) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())[:16]


def _content(dataset_dir: Any, attributes: dict[str, Any]) -> str | None:
    """Digest of a local data file, or of all files of a folder; None for what is elsewhere."""
    if attributes["load_from"] != "file" or not isinstance(dataset_dir, str):
        return None
    path = Path(dataset_dir) / attributes["dataset_name"]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return sha256_bytes(*(sha256_file(file).encode() for file in files))[:16]


def every_rank_has(folder: str) -> bool:
    """Whether there is tokenised data in `folder`, on every rank alike: ranks that read it and ranks that make it would
    wait for each other.

    Raises:
        UserError: on every rank, where some have it and others have not.
    """
    found = of_every_rank(lambda: bool(has_tokenized_data(folder)))
    if len(set(found)) > 1:
        raise UserError(
            f"`tokenized_path` {folder} is there on rank {found.index(True)}, and not on rank {found.index(False)}. "
            "Put it on a file system that all nodes share, or copy the folder to every node."
        )
    return found[0]


def check_tokenized(folder: Path, origin: dict[str, Any]) -> None:
    """Raise `UserError`, with both values, where `folder` was made from something else than `origin`."""
    path = folder / _ORIGIN
    if not path.is_file():
        raise UserError(f"`tokenized_path` {folder} was not made by this stage (no class labels); remove it.")
    saved, now = dict(read_json(path)), origin
    if "inputs" not in saved:  # as it was before the data was recorded
        logger.warning_rank0(f"{path} does not say which data it was made from: that is not compared. Remove {folder} "
                             "to have it made anew.")  # fmt: skip
        saved, now = {"inputs": saved}, {"inputs": origin["inputs"]}
    # Read as settings: what was saved before a setting existed has its default.
    saved["inputs"] = plain(load_settings(InputSettings, saved["inputs"], str(path)).to_dict())
    raise_all(
        differences(saved, now),
        f"`tokenized_path` {folder} was made with other settings or data; remove it or set them back",
    )


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """One line, with both values, for each leaf in which two tables differ; keys that one of them lacks are None."""
    lines = []
    for key in dict.fromkeys([*here, *there]):
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            lines += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            lines.append(f"{prefix}{key}: {one!r} there, {other!r} here")
    return lines


def save_tokenized(module: "DatasetModule", folder: Path, origin: dict[str, Any]) -> None:
    """Write checked data as the host would, whole or not at all, and beside it what it was made from."""
    parts = {"train": module.get("train_dataset")} if "train_dataset" in module else {}
    evaluated = module.get("eval_dataset")
    if isinstance(evaluated, dict):
        parts |= {f"validation_{name}": dataset for name, dataset in evaluated.items()}
    elif evaluated is not None:
        parts["validation"] = evaluated
    with new_folder(folder) as temporary:
        DatasetDict(parts).save_to_disk(str(temporary))
        write_json(temporary / _ORIGIN, origin)
    logger.info_rank0(f"Tokenised data is saved in {folder}; the next run with `tokenized_path` reads it.")
