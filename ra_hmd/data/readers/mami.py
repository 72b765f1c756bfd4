"""Reader of MAMI, misogyny in memes (Fersini et al., SemEval-2022 task 5)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import (
    AnnotationFile,
    LocatedCopy,
    Reader,
    binary,
    given,
    register_reader,
    sharegpt_names,
    split_files,
)
from ra_hmd.data.readers.tasks import CHOICE_PROMPT, Expected, Task, choice_task
from ra_hmd.data.readers.tree import Tree, only
from ra_hmd.data.rows import Row, csv_rows, jsonl_rows, read_lines

SUB_LABELS = ("shaming", "stereotype", "objectification", "violence")
_OFFICIAL = {"train": r"train(ing)?\.csv", "trial": r"trial\.csv", "test": r"test\.csv"}


@register_reader
class Mami(Reader):
    """Reader of MAMI.

    Ids carry their split, and each part has its own image folder, because five image numbers stand for different memes
    in training and in test.
    """

    name = "mami"
    title = "MAMI (SemEval-2022 task 5)"
    licence = "academic use only, on request"
    owner = "the task's organisers, through the request form in their repository"
    looked_for = "training.csv, trial.csv, Test.csv and test_labels.txt (or RGCL's gt/MAMI/{train,val,test}.jsonl)"
    tasks = (
        Task("hate", ("not misogynous", "misogynous")),
        choice_task("kind", SUB_LABELS, "What kinds of misogyny does it show?", multi_label=True),
        *(
            Task(
                name,
                (f"no {name}", name),
                f"{CHOICE_PROMPT}Does it show {name} of women?",
                ("No. It does not.", "Yes. It does."),
                member_of=("kind", index),
            )
            for index, name in enumerate(SUB_LABELS)
        ),
    )
    expected: Mapping[str, Mapping[str, Expected]] = {
        "official": {
            "train": Expected(10000, {"hate": (5000, 5000), "kind": (1274, 2810, 2202, 953)}),
            "trial": Expected(100),
            "test": Expected(1000, {"hate": (500, 500), "kind": (146, 350, 348, 153)}),
        },
        "RA-HMD split": {
            "train": Expected(9000, {"hate": (4500, 4500)}),
            "val": Expected(1000, {"hate": (500, 500)}),
            "test": Expected(1000, {"hate": (500, 500)}),
        },
    }
    sharegpt = sharegpt_names(
        "mami",
        "MAMI/sharegpt_MAMI_{}_instructblip.json",
        {"train": "", "val": "_dev", "test": "_test", "trial": "_trial"},
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        tables = {}
        for split, pattern in _OFFICIAL.items():
            ours = [path for path in tree.named(pattern) if _columns(path) >= {"file_name", "Text Transcription"}]
            if (table := only(ours, f"{self.title}, {split}")) is not None:
                tables[split] = table
        found = []
        if tables:
            labels = only(tree.named(r"test_labels\.txt|truth\.txt"), f"{self.title}, test labels", copies=True)
            notes = [f"no {name} among the files" for name in ("train", "test") if name not in tables]
            if "test" in tables and not labels and "misogynous" not in _columns(tables["test"]):
                notes.append("no test_labels.txt: the test split has no labels")
            parts = tuple(AnnotationFile(path, split) for split, path in tables.items())
            others = {"test labels": labels} if labels else {}
            found.append(LocatedCopy("official tables", parts, "official", others, notes=tuple(notes)))
        note = "val was cut from the official training set; no sub-labels in this layout"
        files = split_files(tree, {"img": r"img[\\/]\d+(_test)?\.jpg"})
        return found + [LocatedCopy("RA-HMD's jsonl files", parts, "RA-HMD split", notes=(note,)) for parts in files]

    def rows(self, part: AnnotationFile, copy: LocatedCopy) -> Iterator[Row]:
        if part.path.suffix.lower() == ".jsonl":
            yield from jsonl_rows(part.path)
            return
        labels = _test_labels(copy.others.get("test labels")) if part.split == "test" else {}
        for row in csv_rows(part.path, "\t"):
            added = labels.get(row.values.get("file_name", ""), {})
            yield replace(row, values={**row.values, **added}) if added else row

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        if "img" in values:
            image, text, label = Path(values["img"]), values["text"], values.get("label")
            extras = self.leftovers(values, "id", "img", "text", "label")
        else:
            image, text, label = Path(values["file_name"]), values["Text Transcription"], values.get("misogynous")
            kinds = [i for i, name in enumerate(SUB_LABELS) if binary(values.get(name), name)]
            extras = {"kind": kinds if label is not None else None}
        return Meme(
            id=self.meme_id(values.get("id", image.stem), part.split),
            image=image,
            text=text,
            label=binary(label, "misogynous"),
            split=part.split,
            extras=extras,
        )

    def meme_id(self, value: Any, split: str) -> str:
        return f"{split}_{given(value, 'id').removesuffix('_test')}"


def _columns(path: Path) -> set[str]:
    """Return the column names of a TAB-separated file."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return {name.strip() for name in file.readline(4096).split("\t")}


def _test_labels(path: Path | None) -> dict[str, dict[str, str]]:
    """Read file name → label columns. The file has no header, and is joined by name, never by row order.

    Raises:
        UserError: A line lacks labels, or contradicts an earlier one.
    """
    if path is None:
        return {}
    names = ("misogynous", *SUB_LABELS)
    labels: dict[str, dict[str, str]] = {}
    for number, line in enumerate(read_lines(path), 1):
        file_name, *values = line.strip().split("\t")
        if file_name and len(values) != len(names):
            raise UserError(f"{path}, line {number}: {len(values)} labels after the file name, {len(names)} expected.")
        known = dict(zip(names, values, strict=False))
        if labels.setdefault(file_name, known) != known:
            raise UserError(f"{path}, line {number}: other labels for {file_name!r} than before; get an intact copy.")
    return labels
