"""Records with ids and class labels through LLaMA-Factory's data path, checked before any training.

The host drops every column that it does not know, twice: when it aligns a file, and when it tokenises. Both functions
are exchanged while our stage loads its data, and put back.
"""

import codecs
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from datasets import Dataset, Image, List, Value
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError
from llamafactory.data import get_dataset, loader
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.extras import logging

from llamafactory_ext.sft_classifier.general import GENERAL, encode_general, general_sources, labelled
from llamafactory_ext.sft_classifier.guides import CLUSTER, PROBLEM, Guides
from llamafactory_ext.sft_classifier.tokenized import (
    PICTURE,
    check_image_files,
    check_tokenized,
    every_rank_has,
    file_state,
    picture_state,
    save_tokenized,
    tokenized_origin,
)
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.image_files import locate_image
from ra_hmd.data.images import load_image
from ra_hmd.data.meme import class_set
from ra_hmd.data.prompt import Answers
from ra_hmd.data.training_records import image_name
from ra_hmd.models.classifier import IGNORE
from ra_hmd.models.tokenization import InputSettings, MemeEncoder

if TYPE_CHECKING:
    from llamafactory.data.data_utils import DatasetModule

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it
_CHECKED = ("problem", "shortened", PICTURE)
_MEDIA = ("images", "videos", "audios")
_ALIGN, _PROCESSOR = loader.align_dataset, loader._get_dataset_processor


def align_with_extras(
    dataset: Dataset, attributes: Any, data_args: Any, training_args: Any, general: bool = False
) -> Dataset:
    """The host's `align_dataset`, with the columns `_sample_id`, `_label` and `_picture` beside its own.

    Not from the cache: whether an image is found under `media_dir` is decided here. `_picture` is the state of its
    file, and part of the key under which `datasets` keeps the tokenised rows.

    Raises:
        UserError: the data set has no rows.
    """
    if len(dataset) == 0:
        raise UserError(f"Data set {attributes.dataset_name} has no rows; give one with rows or leave it out.")
    fresh = copy(data_args)
    fresh.overwrite_cache = True
    dataset = _undecoded(dataset)
    aligned = _with_paths(_ALIGN(dataset, attributes, fresh, training_args), data_args.media_dir)
    names = next((name for name in ("id", attributes.images or "images") if name in dataset.column_names), None)
    if names is None and not general:
        raise UserError(f"Data set {attributes.dataset_name} has neither an `id` nor an image column.")
    # General data: a text may have no image, and a picture several questions.
    given = [f"{attributes.dataset_name} {row}" for row in range(len(dataset))] if general else dataset[names]
    ids = [image_name(name[0] if isinstance(name, list) and name else name) for name in given]
    labels = dataset["label"] if "label" in dataset.column_names and not general else [None] * len(ids)
    aligned = aligned.add_column("_sample_id", ids, feature=Value("string"))
    aligned = aligned.add_column("_label", list(map(_label_text, labels)), feature=Value("string"))
    states = [file_state(images[0]) if images else "" for images in aligned["_images"]]
    return aligned.add_column(f"_{PICTURE}", states, feature=Value("string"))


def _undecoded(dataset: Dataset) -> Dataset:
    """`dataset` with embedded images as their files' bytes, which `datasets` would decode in its own way."""
    features = dataset.features.copy()
    for name, feature in features.items():
        if isinstance(feature, Image):
            features[name] = Image(decode=False)
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            features[name] = List(Image(decode=False))
    return dataset if features == dataset.features else dataset.cast(features)


def _with_paths(aligned: Dataset, media_dir: str) -> Dataset:
    """`aligned` with the paths of all images: embedded ones are written into the cache of `datasets`, once for all
    runs, and names whose letters are composed otherwise on disk are those on disk.
    """
    folders, cache = [Path(media_dir), Path()], Path(HF_DATASETS_CACHE) / "ra_hmd_pictures"
    changed, rows = False, []
    for images in aligned["_images"]:
        rows.append(None if images is None else [_path(image, folders, cache) for image in images])
        changed = changed or rows[-1] != images
    if not changed:
        return aligned
    return aligned.remove_columns("_images").add_column("_images", rows, feature=List(Value("string")))


def _path(image: Any, folders: list[Path], cache: Path) -> str:
    if isinstance(image, str) and (image.isascii() or Path(image).is_file()):
        return image
    try:
        return str(locate_image(image, folders, Path(), cache))
    except ValueError:  # reported later, with all records that cannot be used
        return str(image)[:60]


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
    guidance: Guidance | None = None

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Rows of input_ids, attention_mask, labels, media paths, sample_id, image (the state of its file),
        class_label, shortened, problem; with clusters also cluster_id.
        """
        args = self.finetuning_args
        encoder = MemeEncoder(
            self.template,
            self.tokenizer,
            self.processor,
            args.prompt,
            self.data_args.cutoff_len,
            args.expected_answers,
            fold_captions=args.fold_captions,
        )
        no_label = [UNLABELLED] * args.output_dim if args.problem_type == "multi_label" else UNLABELLED
        rows = defaultdict(list)
        for index in range(len(examples["_prompt"])):
            example = {key: column[index] for key, column in examples.items()}
            # A bad row needs values too: a shard of empty lists would have no type, and could not join the others.
            row: dict[str, Any] = {
                "input_ids": [0],
                "labels": [IGNORE],
                "class_label": no_label,
                "shortened": False,
                "problem": "",
            }
            try:
                row |= self._encode_row(example, encoder)
            except ValueError as error:  # a UserError, or what the host's plugin says of the record
                row["problem"] = f"record {example['_sample_id']}: {error}"
            row |= {name: example[f"_{name}"] for name in _MEDIA}
            row["attention_mask"] = [1] * len(row["input_ids"])
            row["sample_id"] = example["_sample_id"]
            if CLUSTER in example:
                row["cluster_id"] = example[CLUSTER]
            row[PICTURE] = picture_state(example)
            for key, value in row.items():
                rows[key].append(value)
        return rows

    def _encode_row(self, example: dict[str, Any], encoder: MemeEncoder) -> dict[str, Any]:
        if example.get(GENERAL):
            return encode_general(example, self.template, self.tokenizer, self.processor, encoder.cutoff_len)
        question, answer = _single_turn(example)
        args = self.finetuning_args
        caption = args.prompt.caption_of(question)
        class_label = _class_label(example["_label"], answer, args.expected_answers)
        image = load_image(example["_images"][0])
        if example.get(PROBLEM):
            raise UserError(f"its cluster cannot be found: {example[PROBLEM]}")
        guidance = "" if self.guidance is None else self.guidance.text_of(example[CLUSTER])
        prompt = encoder.encode(caption, image, guidance)
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
    by_answer = cast(int, answers.label_of(answer))
    if column and column != str(by_answer):
        raise UserError(f"its `label` is {column}, but its answer {answer[:60]!r} means {by_answer}; mend one of them")
    return by_answer


def _label_set(column: str, answer: str, answers: Answers) -> tuple[int, ...]:
    if not column:
        return cast(tuple[int, ...], answers.label_of(answer))
    chosen = class_set(json.loads(column) if column.startswith("[") else column, len(answers.words))
    assert chosen is not None
    try:
        by_answer = cast(tuple[int, ...], answers.label_of(answer))
    except ValueError:  # an answer in other words says nothing against the label
        return chosen
    if chosen != by_answer:
        raise UserError(
            f"its `label` is {column}, but its answer {answer[:60]!r} means {list(by_answer)}; mend one of them"
        )
    return chosen


@contextmanager
def _our_data_path(
    finetuning_args: "ClassifierFinetuningArguments", guides: Guides, sources: list[dict[str, Any]]
) -> Iterator[None]:
    def align(dataset: Dataset, attributes: Any, data_args: Any, training_args: Any) -> Dataset:
        general = vars(attributes) in sources
        aligned = align_with_extras(dataset, attributes, data_args, training_args, general)
        if sources:
            aligned = aligned.add_column(GENERAL, [general] * len(aligned), feature=Value("bool"))
        return guides.with_clusters(aligned, finetuning_args.prompt, training_args)

    def get_processor(
        data_args: Any, stage: str, template: Any, tokenizer: Any, processor: Any, do_generate: bool = False
    ) -> ClassifierDatasetProcessor:
        built = ClassifierDatasetProcessor(template, tokenizer, processor, data_args)
        built.finetuning_args, built.guidance = finetuning_args, guides.texts
        return built

    loader.align_dataset, loader._get_dataset_processor = align, get_processor
    try:
        yield
    finally:
        guides.release()
        loader.align_dataset, loader._get_dataset_processor = _ALIGN, _PROCESSOR


def load_records(
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: "ClassifierFinetuningArguments",
    tokenizer_module: dict[str, Any],
    settings: InputSettings,
    guides: Guides,
) -> "DatasetModule":
    """The host's `get_dataset` with ids, class labels and clusters, every record checked.

    What is written to `tokenized_path`, or kept in the cache of `datasets`, are good rows alone; both are used again
    only while data files, images and settings are what they were made from.

    Raises:
        UserError: tokenised data of other settings or data, and every record that cannot be trained on, together.
    """
    _check_files([*(data_args.dataset or []), *(data_args.eval_dataset or [])], data_args.dataset_dir)
    sources = general_sources(data_args, finetuning_args)
    tokenized, loading = data_args.tokenized_path, copy(data_args)
    reused = tokenized is not None and every_rank_has(tokenized)
    if tokenized is not None:
        origin = tokenized_origin(data_args, training_args, finetuning_args, tokenizer_module, settings)
    if reused:
        check_tokenized(Path(tokenized), origin)
    else:
        loading.tokenized_path = None  # the host would write it before the rows are checked
    try:
        with _our_data_path(finetuning_args, guides, sources):
            module = get_dataset(template, model_args, loading, training_args, stage="sft", **tokenizer_module)
    except DatasetGenerationError as error:
        raise UserError(
            f"A data file cannot be read: {error.__cause__ or error}. A column must have one type in all rows: "
            "write every `id` as text and every `label` as an integer (of a multi-label task as a list of integers)."
        ) from error
    try:
        if reused:
            _each(module, lambda dataset, name: check_image_files(dataset, f"`tokenized_path` {tokenized}, {name}"))
        checked = _each(module, _checked)
    except UserError:
        if not reused:
            _each(module, _forget)
        raise
    if tokenized is not None and not reused and training_args.should_save:
        save_tokenized(module, Path(tokenized), origin)
    return checked


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
        elif mark := _byte_order_mark(path):
            problems.append(
                f"data set {name}: {path} begins with a {mark} byte order mark, with which LLaMA-Factory cannot read "
                "it; save it as UTF-8 without one (in a Windows editor `UTF-8`, not `UTF-8 with BOM` or `Unicode`)."
            )
        elif path.stat().st_size < 16 and path.read_text(encoding="utf-8-sig").strip() in ("", "[]"):
            problems.append(f"data set {name}: {path} has no rows; give one with rows or leave it out.")
    raise_all(problems, "Data sets that cannot be loaded")


def _byte_order_mark(path: Path) -> str:
    """Encoding whose byte order mark begins a text file and which the host cannot read; "" where there is none."""
    marks = [(codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16")]
    marks += [(codecs.BOM_UTF8, "UTF-8")] if path.suffix in (".json", ".jsonl") else []
    if path.suffix not in (".json", ".jsonl", ".csv", ".txt"):
        return ""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in marks if start.startswith(mark)), "")


def _each(module: Any, function: Callable[[Dataset, str], Any]) -> Any:
    """`function` of every data set of what `get_dataset` gives, and of its name."""

    def apply(part: Any, name: str) -> Any:
        if isinstance(part, dict):
            return {key: apply(value, f"{name} {key}".strip()) for key, value in part.items()}
        return function(part, name)

    return apply(module, "")


def _forget(dataset: Dataset, name: str) -> None:
    """Remove the cache of a data set with bad rows: what was wrong with them may be mended without a trace in it."""
    if any(dataset["problem"]):
        for file in dataset.cache_files:
            Path(file["filename"]).unlink(missing_ok=True)


def _checked(dataset: Dataset, name: str) -> Dataset:
    raise_all([text for text in dataset["problem"] if text], f"{name}: records that cannot be used")
    if name != "train_dataset":  # training may see a record twice; predictions are keyed by id
        counts = Counter(dataset["sample_id"]).items()
        twice = [f"id {key!r} occurs {count} times" for key, count in counts if count > 1]
        raise_all(twice, f"{name}: ids must be unique (`eval_on_each_dataset: true` keeps several sets apart)")
    shortened = sum(dataset["shortened"])
    if shortened:
        logger.warning_rank0(f"{name}: {shortened} of {len(dataset)} captions were shortened to fit in cutoff_len.")
    dataset = dataset.remove_columns([key for key in _CHECKED if key in dataset.column_names])
    return dataset.add_column("sample_index", np.arange(len(dataset)))


def describe(dataset: Dataset) -> dict[str, Any]:
    """Row count, rows per class (of a multi-label task: with it) and a fingerprint of ids, labels and tokens."""
    digest = hashlib.sha256()
    for row in dataset.select_columns(["sample_id", "class_label", "input_ids"]):
        digest.update(f"{row['sample_id']}\0{row['class_label']}\0{len(row['input_ids'])}\0".encode())
        digest.update(np.asarray(row["input_ids"], dtype=np.int32).tobytes())
    labels = labelled(dataset["class_label"])
    if labels.ndim == 1:
        counts = {str(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    else:
        counts = {str(index): int(count) for index, count in enumerate(labels.sum(axis=0))}
    return {"rows": len(dataset), "rows_per_class": counts, "fingerprint": digest.hexdigest()}
