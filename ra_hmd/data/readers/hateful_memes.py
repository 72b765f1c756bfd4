"""Reader of Hateful Memes (Kiela et al., NeurIPS 2020).

It reads phase 1, phase 2, later copies with test labels, and the layouts of four projects.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import (
    AnnotationFile,
    LocatedCopy,
    Reader,
    binary,
    given,
    graded,
    register_reader,
    sharegpt_names,
)
from ra_hmd.data.readers.tasks import HATE, Expected, choice_task
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import Row, jsonl_rows

PHASE_1 = ("train", "dev", "test")
PHASE_2 = ("train", "dev_seen", "dev_unseen", "test_seen", "test_unseen")
FINE = {"train": r"train\.jsonl?", "dev_seen": r"dev_seen\.jsonl?", "dev_unseen": r"dev_unseen\.jsonl?",
        "test": r"test\.jsonl?"}  # fmt: skip
CATEGORIES = ("religion", "race", "sex", "nationality", "disability")
ATTACKS = ("dehumanizing", "inferiority", "inciting_violence", "mocking", "contempt", "slurs", "exclusion")
_COLUMNS = {"id", "img", "text", "label", "split"}


@register_reader
class HatefulMemes(Reader):
    """Reader of Hateful Memes. Ids are padded to five digits; images are located by `img`, never by id."""

    name = "hateful_memes"
    title = "Hateful Memes"
    licence = "licence of the Hateful Memes Challenge, accepted by each user; images contain Getty material"
    owner = "Meta AI; the challenge page (drivendata.org) no longer serves it"
    looked_for = "train.jsonl with dev_seen.jsonl (phase 2) or dev.jsonl (phase 1), or hateful_memes_expanded.csv"
    tasks = (
        HATE,
        choice_task("target", CATEGORIES, "Which protected categories does it attack?", multi_label=True),
        choice_task("attack", ATTACKS, "How does it attack?", multi_label=True),
    )
    expected: Mapping[str, Mapping[str, Expected]] = {
        "phase 2": {
            "train": Expected(8500, {"hate": (5481, 3019)}),
            "dev_seen": Expected(500, {"hate": (253, 247)}),
            "dev_unseen": Expected(540, {"hate": (340, 200)}),
            "test_seen": Expected(1000, {"hate": (510, 490)}),
            "test_unseen": Expected(2000, {"hate": (1250, 750)}),
        },
        "phase 1": {"train": Expected(8500), "dev": Expected(500, {"hate": (250, 250)}), "test": Expected(1000)},
    }
    shared: Mapping[tuple[str, str], int] = {("dev_seen", "dev_unseen"): 400}
    sharegpt = sharegpt_names(
        "hatefulmemes",
        "FB/sharegpt_FB_{}_instructblip.json",
        {
            "train": "",
            "dev_seen": "_dev",
            "test_seen": "_test",
            "dev_unseen": "_dev_unseen",
            "test_unseen": "_test_unseen",
            "dev": "_dev_phase1",
            "test": "_test_phase1",
        },
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        found = [self._tables(path) for path in tree.files if self._is_table(tree, path)]
        lines = [path for path in tree.named(r".*\.jsonl") if "set_name" not in tree.first(path)]  # not the add-on's
        for folder in dict.fromkeys(path.parent for path in lines):
            files = {path.name.lower(): path for path in lines if path.parent == folder}
            later = [AnnotationFile(files[f"{split}.jsonl"], split) for split in PHASE_2 if f"{split}.jsonl" in files]
            first = [AnnotationFile(files[f"{split}.jsonl"], split) for split in PHASE_1 if f"{split}.jsonl" in files]
            parts = later if len(later) > 1 or not first[1:] else first
            if parts and _is_ours(tree.first(parts[0].path)):
                rest = [part.path.name for part in first if part not in parts]
                found.append(self._annotations(tree, parts, rest))
        fine = self._fine_grained(tree)
        return [replace(one, others=fine) for one in sorted(found, key=lambda one: one.variant != "phase 2")]

    @staticmethod
    def _annotations(tree: Tree, parts: list[AnnotationFile], rest: list[str]) -> LocatedCopy:
        folder = parts[0].path.parent
        phase = "phase 1" if any(part.split in ("dev", "test") for part in parts) else "phase 2"
        kind = "integer" if isinstance(tree.first(parts[0].path).get("id"), int) else "string"
        place = ", in MMF's folders" if folder.name == "annotations" else ""
        place = ", in RGCL's folders" if folder.parent.name == "gt" else place
        notes = []
        if phase == "phase 1":
            notes.append("phase 1 (as on Kaggle): phase 2 corrected labels, so results are not comparable")
        if rest:
            notes.append(f"not read: {', '.join(rest)}, which belong to phase 1")
        return LocatedCopy(f"{phase}, {kind} ids{place}", tuple(parts), phase, notes=tuple(notes))

    @staticmethod
    def _is_table(tree: Tree, path: Path) -> bool:
        return path.suffix.lower() == ".csv" and tree.first(path).keys() >= _COLUMNS

    @staticmethod
    def _tables(path: Path) -> LocatedCopy:
        return LocatedCopy(f"one table with a split column ({path.name})", (AnnotationFile(path),), "phase 2")

    @staticmethod
    def _fine_grained(tree: Tree) -> dict[str, Path]:
        groups = tree.groups(FINE)
        files = [path for group in groups for path in group.values() if "gold_hate" in tree.first(path)]
        return {f"fine-grained {path.name}": path for path in files}

    def rows(self, part: AnnotationFile, copy: LocatedCopy) -> Iterator[Row]:
        fine: dict[str, Mapping[str, Any]] = {}
        # dev_seen and dev_unseen share memes: the file of the same name comes last, and wins.
        for path in sorted(copy.others.values(), key=lambda path: path.stem == part.path.stem):
            rows = (row.values for row in jsonl_rows(path) if "id" in row.values)
            fine |= {str(values["id"]).zfill(5): values for values in rows}
        for row in super().rows(part, copy):
            extra = fine.get(str(row.values.get("id")).zfill(5))
            yield replace(row, values={**row.values, "fine_grained": extra}) if extra else row

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        split = part.split or values["split"]
        if split not in (*PHASE_1, *PHASE_2):
            raise ValueError(f"split is {split!r}; known are {', '.join(dict.fromkeys((*PHASE_2, *PHASE_1)))}")
        extras = self.leftovers(values, *_COLUMNS)
        return Meme(
            id=self.meme_id(values["id"], split),
            image=Path(values["img"]),
            text=values["text"],
            label=binary(values.get("label"), "label"),
            split=split,
            extras=extras | _fine_labels(values.get("fine_grained")),
        )

    def meme_id(self, value: Any, split: str) -> str:
        text = given(value, "id")
        return text.zfill(5) if text.isdecimal() else text


def _is_ours(values: Mapping[str, Any]) -> bool:
    image = values.get("img")
    return isinstance(image, str) and bool(re.fullmatch(r"img[\\/]\d+\.png", image))


def _fine_labels(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the class indices of the add-on's consensus labels; `pc_empty` and `attack_empty` are no class.

    A task is None where the add-on has unknown labels: an add-on never causes a row to be rejected.
    """
    if not values or "gold_pc" not in values:
        return {}

    def indices(field: str, names: tuple[str, ...]) -> list[int] | None:
        try:
            return sorted(graded(name, names, field) for name in values[field] if not name.endswith("_empty"))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    return {"target": indices("gold_pc", CATEGORIES), "attack": indices("gold_attack", ATTACKS)}
