"""Records with ids and class labels through LLaMA-Factory's data path, checked before any training.

The host drops every column that it does not know, twice: when it aligns a file, and when it tokenises. Both functions
are exchanged while our stage loads its data, and put back.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Value
from datasets.exceptions import DatasetGenerationError
from llamafactory.data import get_dataset, loader
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.extras import logging
from llamafactory.extras.misc import has_tokenized_data

from ra_hmd.config import load_dataclass
from ra_hmd.data.images import load_image
from ra_hmd.data.record import class_set
from ra_hmd.data.sharegpt import Answers
from ra_hmd.errors import UserError, raise_all
from ra_hmd.manifest import plain, read_json, write_json
from ra_hmd.models.classifier import IGNORE
from ra_hmd.models.inputs import InputSettings, MemeEncoder
from ra_hmd.problem import UNLABELLED

if TYPE_CHECKING:
    from llamafactory.data.data_utils import DatasetModule

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it
_SETTINGS = "ra_hmd_inputs.json"
_MEDIA = ("images", "videos", "audios")
_ALIGN, _PROCESSOR = loader.align_dataset, loader._get_dataset_processor


def align_with_extras(dataset: Dataset, attributes: Any, data_args: Any, training_args: Any) -> Dataset:
    """The host's `align_dataset`, with the columns `_sample_id` and `_label` kept beside its own.

    Raises:
        UserError: the data set has no rows.
    """
    if len(dataset) == 0:
        raise UserError(f"Data set {attributes.dataset_name} has no rows; give one with rows or leave it out.")
    aligned = _ALIGN(dataset, attributes, data_args, training_args)
    images = dataset[attributes.images or "images"] if (attributes.images or "images") in dataset.column_names else None
    names = dataset["id"] if "id" in dataset.column_names else images
    if names is None:
        raise UserError(f"Data set {attributes.dataset_name} has neither an `id` nor an image column.")
    ids = [str(name[0]) if isinstance(name, list) and name else str(name) for name in names]
    labels = dataset["label"] if "label" in dataset.column_names else [None] * len(ids)
    aligned = aligned.add_column("_sample_id", ids, feature=Value("string"))
    return aligned.add_column("_label", list(map(_label_text, labels)), feature=Value("string"))


def _label_text(label: Any) -> str:
    """A label as text, which every kind of label has in common; "" where there is none."""
    if label is None:
        return ""
    if isinstance(label, list):
        return json.dumps(label)
    return f"{label:g}" if isinstance(label, float) else str(label)


class ClassifierDatasetProcessor(SupervisedDatasetProcessor):
    """Tokenises one-turn records; a bad record becomes a row with its `problem` in words instead of an exception."""

    finetuning_args: "ClassifierFinetuningArguments"

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Rows of input_ids, attention_mask, labels, media paths, sample_id, class_label, shortened, problem."""
        args = self.finetuning_args
        encoder = MemeEncoder(
            self.template, self.tokenizer, self.processor, args.prompt, self.data_args.cutoff_len, args.expected_answers
        )
        no_label = [UNLABELLED] * args.output_dim if args.problem_type == "multi_label" else UNLABELLED
        rows = defaultdict(list)
        for index in range(len(examples["_prompt"])):
            example = {key: column[index] for key, column in examples.items()}
            # A bad row needs values too: a shard of empty lists would have no type, and could not join the others.
            row = {"input_ids": [0], "labels": [IGNORE], "class_label": no_label, "shortened": False, "problem": ""}
            try:
                row |= self._encode_row(example, encoder)
            except ValueError as error:  # a UserError, or what the host's plugin says of the record
                row["problem"] = f"record {example['_sample_id']}: {error}"
            row |= {name: example[f"_{name}"] for name in _MEDIA}
            row["attention_mask"] = [1] * len(row["input_ids"])
            row["sample_id"] = example["_sample_id"]
            for key, value in row.items():
                rows[key].append(value)
        return rows

    def _encode_row(self, example: dict[str, Any], encoder: MemeEncoder) -> dict[str, Any]:
        question, answer = _single_turn(example)
        args = self.finetuning_args
        caption = args.prompt.caption_of(question)
        if caption is None:
            raise UserError(
                f"its question {question[:100]!r} was not made by `prompt_template` {args.prompt_template!r}; "
                "set `prompt_template` to the question of this data"
            )
        class_label = _class_label(example["_label"], answer, args.expected_answers)
        prompt = encoder.encode(caption, load_image(example["_images"][0]))
        if prompt.shortened and args.overlong_caption == "error":
            raise UserError(f"its caption of {len(caption)} characters does not fit in cutoff_len {encoder.cutoff_len}")
        target = encoder.encode_answer(answer)
        if len(prompt.ids) + len(target) > encoder.cutoff_len:
            raise UserError(f"its answer of {len(target)} tokens does not fit; raise cutoff_len {encoder.cutoff_len}")
        return {
            "input_ids": prompt.ids + target,
            "labels": [IGNORE] * len(prompt.ids) + target,
            "class_label": class_label,
            "shortened": prompt.shortened,
        }


def _single_turn(example: dict[str, Any]) -> tuple[str, str]:
    messages = (example["_prompt"] or []) + (example["_response"] or [])
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise UserError(
            f"it has {len(messages)} valid messages; a classifier record is one question and one answer "
            "(roles or turns that the data set's `tags` do not describe are dropped by the host)"
        )
    if example["_system"]:
        raise UserError("it has a system message of its own; use `default_system` in the YAML for all records")
    images = example["_images"] or []
    if len(images) != 1 or example["_videos"] or example["_audios"]:
        raise UserError(f"it has {len(images)} images; a meme is exactly one image, and no video or audio")
    return messages[0]["content"], messages[1]["content"]


def _class_label(column: str, answer: str, answers: Answers) -> int | list[int]:
    """The class index of a record, or for several classes 0 and 1 of each.

    Raises:
        ValueError: the answer is none of `answers` (of several classes: and there is no label), or the label is not
            what the answer says.
    """
    if answers.several:
        chosen = _label_set(column, answer, answers)
        return [int(index in chosen) for index in range(len(answers.words))]
    by_answer = answers.label_of(answer)
    if column and column != str(by_answer):
        raise UserError(f"its `label` is {column}, but its answer {answer[:60]!r} means {by_answer}; mend one of them")
    return by_answer


def _label_set(column: str, answer: str, answers: Answers) -> tuple[int, ...]:
    if not column:
        return answers.label_of(answer)
    chosen = class_set(json.loads(column) if column.startswith("[") else column, len(answers.words))
    try:
        by_answer = answers.label_of(answer)
    except ValueError:  # an answer in other words says nothing against the label
        return chosen
    if chosen != by_answer:
        raise UserError(
            f"its `label` is {column}, but its answer {answer[:60]!r} means {list(by_answer)}; mend one of them"
        )
    return chosen


@contextmanager
def _our_data_path(finetuning_args: "ClassifierFinetuningArguments") -> Iterator[None]:
    def get_processor(
        data_args: Any, stage: str, template: Any, tokenizer: Any, processor: Any, do_generate: bool = False
    ) -> ClassifierDatasetProcessor:
        built = ClassifierDatasetProcessor(template, tokenizer, processor, data_args)
        built.finetuning_args = finetuning_args
        return built

    loader.align_dataset, loader._get_dataset_processor = align_with_extras, get_processor
    try:
        yield
    finally:
        loader.align_dataset, loader._get_dataset_processor = _ALIGN, _PROCESSOR


def load_records(
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: "ClassifierFinetuningArguments",
    tokenizer_module: dict[str, Any],
    settings: InputSettings,
) -> "DatasetModule":
    """The host's `get_dataset` with ids and class labels, every record checked.

    A `tokenized_path` remembers the input settings that it was made with; others are refused.

    Raises:
        UserError: settings that this stage cannot honour, and every record that cannot be trained on, together.
    """
    tokenized = Path(data_args.tokenized_path) / _SETTINGS if data_args.tokenized_path else None
    if tokenized is not None and has_tokenized_data(data_args.tokenized_path):
        _check_tokenized(tokenized, settings)
    _check_files([*(data_args.dataset or []), *(data_args.eval_dataset or [])], data_args.dataset_dir)
    try:
        with _our_data_path(finetuning_args):
            module = get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
    except DatasetGenerationError as error:
        raise UserError(
            f"A data file cannot be read: {error.__cause__ or error}. A column must have one type in all rows: "
            "write every `id` as text and every `label` as an integer (of a multi-label task as a list of integers)."
        ) from error
    if tokenized is not None and training_args.should_save:
        write_json(tokenized, plain(settings.to_dict()))
    return {name: _each(part, _checked, name) for name, part in module.items()}


def _check_files(names: list[str], dataset_dir: Any) -> None:
    """Say which data file is missing or empty, before the host fails on it with less to say."""
    if not isinstance(dataset_dir, str):
        return
    problems = []
    for name, attributes in zip(names, get_dataset_list(names, dataset_dir), strict=True):
        path = Path(dataset_dir) / attributes.dataset_name
        if attributes.load_from != "file" or path.is_dir():
            continue
        if not path.is_file():
            problems.append(f"data set {name}: its file {path} does not exist; put it there (see data/README.md).")
        elif path.stat().st_size < 16 and path.read_text(encoding="utf-8-sig").strip() in ("", "[]"):
            problems.append(f"data set {name}: {path} has no rows; give one with rows or leave it out.")
    raise_all(problems, "Data sets that cannot be loaded")


def _each(part: Any, function: Any, name: str) -> Any:
    if isinstance(part, dict):
        return {key: function(value, f"{name} {key}") for key, value in part.items()}
    return function(part, name)


def _check_tokenized(path: Path, settings: InputSettings) -> None:
    if not path.is_file():
        raise UserError(f"`tokenized_path` {path.parent} was not made by this stage (no class labels); remove it.")
    # Read as settings: what was saved before a setting existed has its default.
    saved, ours = (
        plain(one.to_dict()) for one in (load_dataclass(InputSettings, read_json(path), str(path)), settings)
    )
    differing = [f"{key}: {saved[key]!r} there, {ours[key]!r} here" for key in ours if saved[key] != ours[key]]
    raise_all(differing, f"`tokenized_path` {path.parent} was made with other settings; remove it or set them back")


def _checked(dataset: Dataset, name: str) -> Dataset:
    raise_all([text for text in dataset["problem"] if text], f"{name}: records that cannot be used")
    if name != "train_dataset":  # training may see a record twice; predictions are keyed by id
        counts = Counter(dataset["sample_id"]).items()
        twice = [f"id {key!r} occurs {count} times" for key, count in counts if count > 1]
        raise_all(twice, f"{name}: ids must be unique (`eval_on_each_dataset: true` keeps several sets apart)")
    shortened = sum(dataset["shortened"])
    if shortened:
        logger.warning_rank0(f"{name}: {shortened} of {len(dataset)} captions were shortened to fit in cutoff_len.")
    dataset = dataset.remove_columns(["problem", "shortened"])
    return dataset.add_column("sample_index", np.arange(len(dataset)))


def describe(dataset: Dataset) -> dict[str, Any]:
    """Row count, rows per class (of a multi-label task: with it) and a fingerprint of ids, labels and tokens."""
    digest = hashlib.sha256()
    for row in dataset.select_columns(["sample_id", "class_label", "input_ids"]):
        digest.update(f"{row['sample_id']}\0{row['class_label']}\0{len(row['input_ids'])}\0".encode())
        digest.update(np.asarray(row["input_ids"], dtype=np.int32).tobytes())
    labels = np.asarray(dataset["class_label"])
    if labels.ndim == 1:
        counts = {str(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    else:
        counts = {str(index): int(count) for index, count in enumerate(labels.sum(axis=0))}
    return {"rows": len(dataset), "rows_per_class": counts, "fingerprint": digest.hexdigest()}
