"""Reader of Memotion 7k (Sharma et al., SemEval-2020 task 8): humour, sarcasm, offence, motivation, sentiment."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import AnnotationFile, LocatedCopy, Reader, graded, register_reader, sharegpt_names
from ra_hmd.data.readers.tasks import CHOICE_PROMPT, Expected, Task, choice_task, yes_no_task
from ra_hmd.data.readers.tree import Tree, only
from ra_hmd.data.rows import Row, csv_rows

HUMOUR = ("not_funny", "funny", "very_funny", "hilarious")
SARCASM = ("not_sarcastic", "general", "twisted_meaning", "very_twisted")
OFFENSIVE = ("not_offensive", "slight", "very_offensive", "hateful_offensive")
MOTIVATIONAL = ("not_motivational", "motivational")
SENTIMENT = ("negative", "neutral", "positive")
_SENTIMENT = {"very_negative": 0, "negative": 0, "neutral": 1, "positive": 2, "very_positive": 2}
_GRADES = {"humour": HUMOUR, "sarcasm": SARCASM, "offensive": OFFENSIVE, "motivational": MOTIVATIONAL}


def _grade_task(name: str, names: tuple[str, ...], question: str) -> Task:
    words = tuple(name.replace("_", " ") for name in names)
    return Task(f"{name}_grade", words, f"{CHOICE_PROMPT}{question} Answer with one of: {', '.join(words)}.", words)


@register_reader
class Memotion(Reader):
    """Reader of Memotion 7k.

    A binary label is 1 for anything but `not_…`; the first task is offence. There is no official dev split, and test is
    never read as one: cut one from train. Ids carry their split and keep the suffix of the image file.
    """

    name = "memotion"
    title = "Memotion 7k (SemEval-2020 task 8)"
    licence = "seen as: non-commercial, citation required"
    owner = "the task's organisers; a copy of the training part is on Kaggle"
    looked_for = "labels.csv (train), 2000_testdata.csv and Meme_groundTruth.csv (test)"
    tasks = (
        Task("offensive", ("not offensive", "offensive")),
        yes_no_task("humour", "funny"),
        yes_no_task("sarcasm", "sarcastic"),
        yes_no_task("motivational", "motivational"),
        choice_task("sentiment", SENTIMENT, "What is its sentiment?"),
        _grade_task("humour", HUMOUR, "How funny is it?"),
        _grade_task("sarcasm", SARCASM, "How sarcastic is it?"),
        _grade_task("offensive", OFFENSIVE, "How offensive is it?"),
    )
    expected: Mapping[str, Mapping[str, Expected]] = {
        "official": {
            "train": Expected(
                6992,
                {
                    "offensive": (2713, 4279),
                    "humour": (1651, 5341),
                    "sarcasm": (1544, 5448),
                    "motivational": (4525, 2467),
                    "sentiment": (631, 2201, 4160),
                    "humour_grade": (1651, 2452, 2238, 651),
                    "sarcasm_grade": (1544, 3507, 1547, 394),
                    "offensive_grade": (2713, 2592, 1466, 221),
                },
            ),
            "test": Expected(1878),
        },
    }
    sharegpt = sharegpt_names(
        "memotion", "Memotion/sharegpt_Memotion_{}_instructblip.json", {"train": "", "val": "_dev", "test": "_test"}
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        train = [path for path in tree.named(r"labels\.csv") if "overall_sentiment" in tree.first(path)]
        test = [path for path in tree.named(r"2000_testdata\.csv") if "Image_name" in tree.first(path)]
        tables = {"train": only(train, f"{self.title}, train"), "test": only(test, f"{self.title}, test")}
        truth = only(tree.named(r"meme_groundtruth\s*\.csv"), f"{self.title}, test labels", copies=True)
        parts = [AnnotationFile(path, split) for split, path in tables.items() if path]
        if not parts:
            return []
        notes = ["no official dev split: cut one from train with --val-fraction"] if train else []
        if test and not truth:
            notes.append("no Meme_groundTruth.csv: the test split has no labels")
        others = {"truth": truth} if truth else {}
        return [LocatedCopy("official tables", tuple(parts), "official", others, notes=tuple(notes))]

    def rows(self, part: AnnotationFile, copy: LocatedCopy) -> Iterator[Row]:
        truth = _truth(copy.others.get("truth")) if part.split == "test" else {}
        for row in csv_rows(part.path):
            label = truth.get(row.values.get("Image_name", "").strip())
            yield replace(row, values={**row.values, "Labels": label}) if label else row

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        test = part.split == "test"
        image = Path(values["Image_name" if test else "image_name"].strip())
        corrected, ocr = ("corrected_text", "OCR_extracted_text") if test else ("text_corrected", "text_ocr")
        tasks = _test_tasks(values.get("Labels")) if test else _train_tasks(values)
        return Meme(
            id=f"{part.split}_{image.name}",
            image=image,
            text=values[corrected] if values[corrected].strip() else values[ocr],
            label=tasks.get("offensive"),
            split=part.split,
            extras={key: value for key, value in values.items() if key and key not in _GRADES} | tasks,
        )


def _train_tasks(values: Mapping[str, Any]) -> dict[str, int]:
    grades = {name: graded(values[name], names, name) for name, names in _GRADES.items()}
    sentiment = values["overall_sentiment"].strip()
    if sentiment not in _SENTIMENT:
        raise ValueError(f"overall_sentiment is {sentiment!r}; known are {', '.join(_SENTIMENT)}")
    return _tasks({name: int(grade > 0) for name, grade in grades.items()}, grades, _SENTIMENT[sentiment])


def _test_tasks(label: str | None) -> dict[str, int]:
    """Parse a test label such as `-1_0110_0230`: sentiment, four binary digits, four grades.

    It is split at `_`, because its length varies with the sign.

    Raises:
        ValueError: The label has another form, or a digit is out of range.
    """
    if label is None:
        return {}
    fields = label.strip().split("_")
    if len(fields) != 3 or fields[0] not in ("-1", "0", "1") or any(
        len(digits) != 4 or not digits.isdecimal() for digits in fields[1:]
    ):  # fmt: skip
        raise ValueError(f"Labels is {label!r}; it should look like 1_1100_1100 or -1_1100_1100")
    binaries, grades = (dict(zip(_GRADES, map(int, digits), strict=True)) for digits in fields[1:])
    too_high = [name for name, grade in grades.items() if grade >= len(_GRADES[name])]
    if too_high or any(value > 1 for value in binaries.values()):
        raise ValueError(f"Labels is {label!r}: a digit is out of range")
    return _tasks(binaries, grades, int(fields[0]) + 1)


def _tasks(binaries: dict[str, int], grades: dict[str, int], sentiment: int) -> dict[str, int]:
    named = {f"{name}_grade": grade for name, grade in grades.items() if len(_GRADES[name]) > 2}
    return {**binaries, **named, "sentiment": sentiment}


def _truth(path: Path | None) -> dict[str, str]:
    """Read image name → label string. The two test files differ in order and length, so they are joined by name.

    Raises:
        UserError: The file lacks a column, or contradicts itself.
    """
    if path is None:
        return {}
    truth: dict[str, str] = {}
    for row in csv_rows(path):
        if row.problem or not {"Image_name", "Labels"} <= row.values.keys():
            raise UserError(f"{path}: {row.place}: {row.problem or 'columns Image_name and Labels are needed'}.")
        name, label = row.values["Image_name"].strip(), row.values["Labels"]
        if truth.setdefault(name, label) != label:
            raise UserError(f"{path}: {row.place}: another label for {name!r} than before; get an intact copy.")
    return truth
