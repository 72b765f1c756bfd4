"""Findings of a check, collected in one pass over the records with a few bytes per row."""

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.data.checks.scan import HUGE_PIXELS, RowFacts
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, MemeData
from ra_hmd.data.readers.tasks import Expected, Task
from ra_hmd.data.text import well_formed

Severity = Literal["error", "warning", "info"]
MOST_EXAMPLES = 20
# Of 64. An image that is stored again, smaller or in another format, differs in fewer; one with new words in more.
SAME_IMAGE_BITS = 4
_BLOCK = 4096
_MOST_TWINS = 4  # rows of one hash, caption and split that take part in comparisons
_BANDS = SAME_IMAGE_BITS + 1  # two hashes that close agree in at least one of this many pieces


@dataclass
class Finding:
    """All occurrences of one kind of fault or peculiarity.

    Attributes:
        kind: Name of the kind.
        severity: error: training or evaluation would fail or give wrong results; warning: results may mislead; info:
            worth knowing.
        meaning: What the kind is, and what to do about it.
        count: Number of rows, pairs or splits.
        examples: The first occurrences.
    """

    kind: str
    severity: Severity
    meaning: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count an occurrence, and keep the first ones as examples."""
        self.count += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(well_formed(example))


_KINDS: dict[str, tuple[Severity, str]] = {
    "unreadable_row": ("error", "rows that are no record; --fix takes them out"),
    "missing_image": ("error", "images that are not there; --fix takes their rows out"),
    "corrupt_image": ("error", "images that cannot be decoded in full; get them again, or --fix takes their rows out"),
    "duplicate_row": ("error", "rows that are there twice, equal in every field; --fix keeps the first"),
    "duplicate_id": ("error", "different rows with one id in a split; predictions and bank rows are keyed by it"),
    "parquet_differs": ("error", "the .parquet file is missing or not the .jsonl file; --fix writes it anew"),
    "huge_image": ("warning", f"images of more than {HUGE_PIXELS // 10**6} million pixels: not decoded here"),
    "animated_image": ("warning", "animated images: models see the first frame alone"),
    "transparent_image": ("info", "images with transparent parts, which models see as white"),
    "deep_image": ("info", "images of more than 8 bits per grey value, which are scaled to 8"),
    "turned_image": ("info", "images whose EXIF data turn them: everyone sees them upright"),
    "wrong_suffix": ("info", "images of another format than their suffix says; they are opened by content"),
    "rows": ("warning", "splits with another number of rows than a whole copy of this release has"),
    "classes": ("warning", "splits with other class counts than a whole copy of this release has"),
    "shared_count": ("warning", "splits that share another number of memes than in a whole copy of this release"),
    "missing_split": ("info", "splits of this release that are not in this copy"),
    "unlabelled": ("info", "splits with rows without a label; they serve neither training nor evaluation"),
    "rejected_row": ("warning", "rows that the import left out; rejected.jsonl has the reasons"),
    "id_across_splits": ("warning", "ids that occur in two splits"),
    "shared_by_design": ("info", "memes that two splits share by design; do not join these splits"),
    "image_across_splits": ("warning", "images that look the same in two splits, with the same caption: a leak"),
    "image_across_splits_other_caption": ("info", "images that look the same in two splits, with other captions"),
    "repeated_image": ("info", "images that look the same within a split: confounders, or files that went astray"),
    "caption_across_splits": ("info", "captions that occur in two splits; confounders repeat them by design"),
    "image_of_two_memes": (
        "warning",
        "image files that two splits name for different ids; where folders were merged, files "
        "of one name overwrote each other",
    ),
    "unknown_class": ("error", "labels that are no class of the data set's task"),
    "contradicting_label": ("warning", "same image and same caption, other labels"),
    "over_budget": ("warning", "captions that the given configuration would shorten"),
    "special_string": ("info", "captions with strings that a chat template reads as markup; prompts space them out"),
    "empty_caption": ("info", "memes without a caption; `ra-hmd data ocr` can read it from the image"),
}


class Findings:
    """Collector of facts about rows that `finish` turns into findings.

    Args:
        data: Data set that is checked.
        tasks: Tasks of `RowFacts.values`, in their order.
    """

    def __init__(self, data: MemeData, tasks: tuple[Task, ...]) -> None:
        self.data, self.tasks = data, tasks
        self.found = {kind: Finding(kind, severity, meaning) for kind, (severity, meaning) in _KINDS.items()}
        self.rows: Counter[str] = Counter()
        self.labels: dict[str, dict[str, Counter[int | None]]] = defaultdict(lambda: defaultdict(Counter))
        self.characters, self.widths, self.heights = array("I"), array("I"), array("I")
        self.ids: list[str] = []
        self._splits, self._captions, self._hashes = array("H"), array("Q"), array("Q")
        self._contents, self._decoded, self._label = array("Q"), array("B"), array("b")
        self._ordinals, self._paths = array("I"), array("Q")
        self.bad: dict[tuple[str, int], str] = {}  # (split, row number) → why the row should be removed

    def add(self, split: str, rows: list[RowFacts]) -> None:
        """Add the facts of the next rows of a split."""
        for row in rows:
            self.rows[split] += 1
            place = f"{split}: {row.id or row.place}"
            if row.problem:
                self._broken("unreadable_row", split, row, f"{row.place}: {row.problem}")
                continue
            self._image(split, row, place)
            for task, value in zip(self.tasks, row.values, strict=True):
                indices = value if isinstance(value, list) else [value]
                self.labels[split][task.name].update(indices)
                if any(index is not None and index not in range(len(task.classes)) for index in indices):
                    self.found["unknown_class"].add(f"{place}: {task.name} {value}")
            if row.special:
                self.found["special_string"].add(f"{place}: {row.special}")
            if not row.characters:
                self.found["empty_caption"].add(place)
            self.ids.append(row.id)
            self._ordinals.append(self.rows[split] - 1)
            self._splits.append(self.data.splits.index(split))
            self._captions.append(row.caption if row.characters else 0)
            self._contents.append(row.content)
            self._paths.append(row.path_hash)
            self._hashes.append(row.image.hash or 0)
            self._decoded.append(row.image.hash is not None)
            self._label.append(-1 if not isinstance(row.values[0], int) else row.values[0])
            self.characters.append(row.characters)
            self.widths.append(row.image.width)
            self.heights.append(row.image.height)

    def _broken(self, kind: str, split: str, row: RowFacts, example: str) -> None:
        self.found[kind].add(example)
        self.bad[split, self.rows[split] - 1] = f"{kind}: {row.problem or row.image.problem}"

    def _image(self, split: str, row: RowFacts, place: str) -> None:
        image = row.image
        if image.problem == "missing":
            self._broken("missing_image", split, row, f"{place}: {row.path}")
        elif image.problem == "huge":
            self.found["huge_image"].add(f"{place}: {row.path} ({image.width} x {image.height})")
        elif image.problem:
            self._broken("corrupt_image", split, row, f"{place}: {row.path} ({image.problem})")
        if image.animated:
            self.found["animated_image"].add(f"{place}: {row.path}")
        if image.transparent:
            self.found["transparent_image"].add(f"{place}: {row.path}")
        if image.depth:
            self.found["deep_image"].add(f"{place}: {row.path} (mode {image.depth})")
        if image.turned:
            self.found["turned_image"].add(f"{place}: {row.path}")
        if image.kind:
            self.found["wrong_suffix"].add(f"{place}: {row.path} is {image.kind}")

    def finish(self, excess: Callable[[str, int, int], int] | None = None) -> list[Finding]:
        """Compare rows with each other, counts with those of a whole copy, and captions with the token budget.

        Args:
            excess: Function of caption, width and height that returns the tokens over budget; None skips the budget.

        Returns:
            The findings, worst first.
        """
        self._duplicates()
        self._one_image()
        self._repeated()
        self._across_splits()
        self._contradictions()
        self._counts()
        self._files()
        if excess is not None:
            self._over_budget(excess)
        order = ("error", "warning", "info")
        return sorted((one for one in self.found.values() if one.count), key=lambda one: order.index(one.severity))

    def _name(self, row: int) -> str:
        return f"{self.data.splits[self._splits[row]]}: {self.ids[row]}"

    def _duplicates(self) -> None:
        first: dict[tuple[int, str], int] = {}
        elsewhere: dict[str, int] = {}
        for row, (split, name) in enumerate(zip(self._splits, self.ids, strict=True)):
            before = first.setdefault((split, name), row)
            if before != row:
                same = self._contents[before] == self._contents[row]
                self.found["duplicate_row" if same else "duplicate_id"].add(self._name(row))
                if same:
                    self.bad[self.data.splits[split], self._ordinals[row]] = "duplicate_row: equal to an earlier one"
            other = elsewhere.setdefault(name, row)
            if self._splits[other] != split and before == row:
                kind = "shared_by_design" if self._shared(other, row) else "id_across_splits"
                self.found[kind].add(f"{self._name(other)} and {self._name(row)}")

    def _one_image(self) -> None:
        for rows in _groups(np.frombuffer(self._paths, np.uint64), np.frombuffer(self._splits, np.uint16)):
            apart = (row for row in rows if self._splits[row] != self._splits[rows[0]])
            other = next((row for row in apart if self.ids[row] != self.ids[rows[0]]), None)
            if other is not None:
                self.found["image_of_two_memes"].add(f"{self._name(int(rows[0]))} and {self._name(int(other))}")

    def _repeated(self) -> None:
        seen = np.flatnonzero(np.frombuffer(self._decoded, np.uint8))
        hashes = np.frombuffer(self._hashes, np.uint64)[seen]
        splits = np.frombuffer(self._splits, np.uint16)[seen]
        order = np.lexsort((splits, hashes))
        same = (np.diff(hashes[order]) == 0) & (np.diff(splits[order]) == 0)
        for one, other in zip(order[:-1][same], order[1:][same], strict=True):
            row, twin = int(seen[one]), int(seen[other])
            if self._paths[row] != self._paths[twin]:
                self.found["repeated_image"].add(f"{self._name(row)} and {self._name(twin)}")

    def _shared(self, row: int, other: int) -> bool:
        """Return whether two rows are one meme in two splits that share memes by design."""
        pair = {self.data.splits[self._splits[row]], self.data.splits[self._splits[other]]}
        return self.ids[row] == self.ids[other] and any(set(known) == pair for known in self.data.reader.shared)

    def _across_splits(self) -> None:
        splits = np.frombuffer(self._splits, np.uint16)
        for rows in _groups(np.frombuffer(self._captions, np.uint64), splits):
            row = int(rows[0])
            others = (int(other) for other in rows[1:] if splits[other] != splits[row])
            other = next((other for other in others if not self._shared(row, other)), None)
            if self._captions[row] and other is not None:
                self.found["caption_across_splits"].add(f"{self._name(row)} and {self._name(other)}")
        seen = np.flatnonzero(np.frombuffer(self._decoded, np.uint8))
        hashes, captions = (np.frombuffer(one, np.uint64)[seen] for one in (self._hashes, self._captions))

        def shared(one: int, other: int) -> bool:
            return self._shared(int(seen[one]), int(seen[other]))

        for one, other, same in similar_images(hashes, captions, splits[seen], shared):
            kind = "image_across_splits" if same else "image_across_splits_other_caption"
            self.found[kind].add(f"{self._name(int(seen[one]))} and {self._name(int(seen[other]))}")

    def _contradictions(self) -> None:
        labels = np.frombuffer(self._label, np.int8)
        captions = np.frombuffer(self._captions, np.uint64)
        usable = np.flatnonzero((labels >= 0) & (np.frombuffer(self._decoded, np.uint8) > 0) & (captions > 0))
        if not len(usable):
            return
        pairs = np.stack([np.frombuffer(array, np.uint64)[usable] for array in (self._captions, self._hashes)], axis=1)
        _, group = np.unique(pairs, axis=0, return_inverse=True)
        for rows in _groups(group.reshape(-1), labels[usable]):
            row, other = usable[rows[0]], usable[rows[np.argmax(labels[usable[rows]] != labels[usable[rows[0]]])]]
            self.found["contradicting_label"].add(f"{self._name(int(row))} and {self._name(int(other))}")

    def _counts(self) -> None:
        expected = self.data.expected
        if self.data.manifest.options.get("val_fraction"):
            expected.pop("train", None)  # a part of it is val now
        for split, whole in expected.items():
            if split not in self.rows:
                self.found["missing_split"].add(f"{split}, {whole.rows} rows")
            else:
                self._compare(split, whole)
        complete = {split for split, counts in expected.items() if self.rows[split] == counts.rows}
        for pair, count in self.data.reader.shared.items():
            here = self.found["shared_by_design"].count
            if complete.issuperset(pair) and here != count:
                self.found["shared_count"].add(f"{' and '.join(pair)}: {here} memes, expected {count}")
        for split in self.rows:
            missing = self.labels[split][self.tasks[0].name][None]
            if missing:
                self.found["unlabelled"].add(f"{split}: {missing} of {self.rows[split]} rows")
        for row in self.data.rejected():
            self.found["rejected_row"].add(f"{row['split']}: {row['id'] or row['place']}: {row['reason']}")

    def _compare(self, split: str, whole: Expected) -> None:
        if self.rows[split] != whole.rows:
            self.found["rows"].add(f"{split}: {self.rows[split]} rows, expected {whole.rows}")
        for name, counts in whole.tasks.items():
            here = self.labels[split][name]
            ours = tuple(here[index] for index in range(len(counts)))
            if any(ours) and ours != counts:
                self.found["classes"].add(f"{split}, {name}: {ours}, expected {counts}")

    def _files(self) -> None:
        for split in self.data.splits:
            path = self.data.folder / f"{split}.parquet"
            wanted = path.is_file() or (self.data.folder / DATASET_MANIFEST).is_file()
            if wanted and not _same_rows(path, self.data, split):
                self.found["parquet_differs"].add(path.name)

    def _over_budget(self, excess: Callable[[str, int, int], int]) -> None:
        sizes = zip(self.ids, self.widths, self.heights, strict=True)
        for split in self.data.splits:
            memes = (meme for _, meme in self.data.rows(split) if not isinstance(meme, str))
            for meme, (_, width, height) in zip(memes, sizes, strict=False):
                over = excess(meme.caption, width, height) if width and height else 0
                if over > 0:
                    self.found["over_budget"].add(f"{split}: {meme.id}, {over} tokens over")


def _groups(keys: np.ndarray, kinds: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows [M] of each key that occurs with two kinds or more; `keys` and `kinds` are [N]."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    for rows in np.split(order, starts):
        if len(rows) > 1 and len(np.unique(kinds[rows])) > 1:
            yield rows


def similar_images(
    hashes: np.ndarray, captions: np.ndarray, splits: np.ndarray, skip: Callable[[int, int], bool]
) -> Iterator[tuple[int, int, bool]]:
    """Yield pairs of rows of different splits whose images look alike: (row, other row, whether captions are equal).

    For two hashes that differ in at most `SAME_IMAGE_BITS` bits, one pair of rows is given, with equal captions if
    there is such a pair. For each hash, at most one pair with equal and one with different captions is given.

    Args:
        hashes: Perceptual hashes, uint64 [N].
        captions: uint64 [N], equal for equal captions; 0 for no caption.
        splits: Split numbers [N].
        skip: Function that tells whether two rows are one meme, in two splits by design.
    """
    if not len(hashes):
        return
    unique, group = np.unique(hashes, return_inverse=True)
    order = np.argsort(group, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(group))[:-1])
    codes = unique.view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryMultiHash(64, _BANDS, 64 // _BANDS)
    index.add(codes)
    for start in range(0, len(unique), _BLOCK):
        limits, _, near = index.range_search(codes[start : start + _BLOCK], SAME_IMAGE_BITS + 1)  # below the radius
        for number, (first, last) in enumerate(pairwise(limits)):
            one = start + number
            pairs: dict[bool, tuple[int, int]] = {}
            for other in sorted(int(other) for other in near[first:last] if other >= one):
                pair = _across(rows_of[one], rows_of[other], captions, splits, skip)
                if pair is not None:
                    pairs.setdefault(pair[2], pair[:2])
                if len(pairs) == 2:
                    break
            for same, rows in pairs.items():
                yield min(rows), max(rows), same


def _across(
    rows: np.ndarray,
    others: np.ndarray,
    captions: np.ndarray,
    splits: np.ndarray,
    skip: Callable[[int, int], bool],
) -> tuple[int, int, bool] | None:
    """Return a row of each set, in different splits and with equal captions if possible; None if there is no pair."""
    by_caption: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    by_split: dict[int, list[int]] = defaultdict(list)
    for row in map(int, rows):
        for place in (by_caption[int(captions[row])], by_split):
            if len(place[int(splits[row])]) < _MOST_TWINS:
                place[int(splits[row])].append(row)
    found = None
    for other in map(int, others):
        caption, split = int(captions[other]), int(splits[other])
        if caption:
            same = by_caption.get(caption, {})
            for row in (row for key, group in same.items() if key != split for row in group):
                if not skip(row, other):
                    return row, other, True
        if found is None:
            apart = (row for key, group in by_split.items() if key != split for row in group)
            found = next(((row, other, False) for row in apart if not skip(row, other)), None)
    return found


def _same_rows(path: Path, data: MemeData, split: str) -> bool:
    """Return whether a Parquet file equals the rows of a split in every field."""
    try:
        with pq.ParquetFile(path) as file:
            table = (row for batch in file.iter_batches(4096) for row in batch.to_pylist())
            for _, meme in data.rows(split):
                row = next(table, None)
                if isinstance(meme, str) or row is None:
                    return False
                if meme.to_row() != {**row, "extras": json.loads(row["extras"])}:
                    return False
            return next(table, None) is None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return False
