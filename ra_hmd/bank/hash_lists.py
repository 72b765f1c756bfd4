"""Lists of hashes, in the forms in which ThreatExchange's tools exchange them.

    signal_type,signal_str,collab,category,tags             # .csv, as `threatexchange dataset -P --csv` prints
    {"type": "HASH_PDQ", "raw_indicator": …, "tags": […]}   # .jsonl or .json: descriptors of ThreatExchange's API
    pdq f8f8f0cee0f4a84f…                                   # .txt: a signal per line, as its exchange of files reads

A list holds no embedding, so its rows cannot vote: it is a file beside the bank, whose rows may be known memes
(`ra_hmd.bank.known_memes`). What such rows need besides the hash are tags of ours, which other tools keep: the label,
the id, and the digest of the caption. Lists are written as CSV.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.artifacts import atomic_path
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem
from ra_hmd.data.image_hashes import PDQ_BITS
from ra_hmd.data.rows import Row, read_lines, rows_of

COLUMNS = ("signal_type", "signal_str", "collab", "category", "tags")
_LABEL, _ID, _CAPTION = "ra-hmd-label:", "ra-hmd-id:", "ra-hmd-caption:"
_CATEGORIES = ("NEGATIVE_CLASS", "POSITIVE_CLASS")
_PDQ = ("pdq", "hash_pdq")
_NAMES = {  # of our columns, in descriptors of the API and in its updates
    "signal_type": ("signal_type", "type", "indicator_type"),
    "signal_str": ("signal_str", "raw_indicator", "indicator", "signal_value"),
    "category": ("category", "status"),
    "collab": ("collab", "id"),
}


@dataclass(frozen=True)
class Signal:
    """A PDQ hash of a list.

    Attributes:
        place: File and line, for messages.
        pdq: 64 hexadecimal digits.
        tags: Its tags, and its category or status.
    """

    place: str
    pdq: str
    tags: tuple[str, ...]

    def tagged(self, prefix: str) -> str:
        """The rest of the tag with a prefix; "" if there is none."""
        return next((tag.removeprefix(prefix) for tag in self.tags if tag.startswith(prefix)), "")


def read_hash_list(path: str | Path, problem: Problem) -> BankRows:
    """Read a list with labels (`write_hash_list`, `import_hash_list`) as rows that may be known memes.

    Raises:
        UserError: no such file, lines that are no PDQ hashes, or hashes without a label of the problem; each is named
            with its line.
    """
    path = Path(path)
    signals, _ = read_signals(path)
    remedy = "give the list labels with `ra-hmd bank import-hashes`"
    labels = [_label(signal.tagged(_LABEL), problem) for signal in signals]
    raise_all(
        [signal.place for signal, label in zip(signals, labels, strict=True) if label is None],
        f"Hashes of {path} without a label of {problem.outputs} classes; {remedy}",
    )
    rows = BankRows(
        ids=[unquote(signal.tagged(_ID)) or signal.pdq for signal in signals],
        labels=np.array(labels, np.int64),
        sources=[path.name] * len(signals),
        pdqs=[signal.pdq for signal in signals],
        caption_digests=[signal.tagged(_CAPTION) for signal in signals],
    )
    if len(rows):
        problem.check(rows.labels, str(path))
    return rows


def export_hashes(bank: Bank, path: str | Path) -> tuple[int, int]:
    """Write the hashes and labels of a bank's rows as a list.

    Returns:
        Number of hashes written, and of rows that have none.
    """
    state = bank.state_at()
    rows, members = state.rows, state.members.tolist()
    hashed = [row for row in members if rows.pdqs[row]]
    lines = []
    for row in hashed:
        label = np.atleast_1d(rows.labels[row]).tolist()
        tags = [_LABEL + ",".join(map(str, label)), _ID + quote(rows.ids[row], safe="")]
        if rows.caption_digests[row]:
            tags.append(_CAPTION + rows.caption_digests[row])
        category = _CATEGORIES[label[0]] if bank.problem.kind == "binary" else "INVESTIGATION_SEED"
        lines.append(("pdq", rows.pdqs[row], "ra-hmd", category, " ".join(tags)))
    _write(Path(path), lines)
    return len(lines), len(members) - len(hashed)


def import_hash_list(
    source: str | Path,
    output: str | Path,
    labels: Mapping[str, str],
    default: str | None = None,
) -> tuple[int, int]:
    """Write a list of others as one with labels.

    Args:
        source: The list, in one of the forms of this module.
        output: The list to write.
        labels: Label of the hashes that have a tag, a category or a status, by its name; a label that the list states
            (ours do) goes first.
        default: Label of the other hashes.

    Returns:
        Number of hashes written, and of signals of other types, which are left out.

    Raises:
        UserError: see `read_signals`; hashes without a label, or whose tags give several.
    """
    signals, others = read_signals(Path(source))
    lines: dict[tuple[str, str, str], Sequence[str]] = {}
    problems = []
    for signal in signals:
        own = signal.tagged(_LABEL)
        found = {own} if own else {labels[tag] for tag in signal.tags if tag in labels}
        if not found and default is not None:
            found = {default}
        if len(found) != 1:
            tags = ", ".join(signal.tags) or "none"
            problems.append(f"{signal.place}: {'several labels' if found else 'no label'} (tags: {tags})")
            continue
        (label,) = found
        kept = [tag for tag in signal.tags if not tag.startswith(_LABEL) and tag not in _CATEGORIES]
        category = next((tag for tag in signal.tags if tag in _CATEGORIES), "INVESTIGATION_SEED")
        key = signal.pdq, label, signal.tagged(_CAPTION)
        lines.setdefault(key, ("pdq", signal.pdq, Path(source).name, category, " ".join([f"{_LABEL}{label}", *kept])))
    raise_all(problems, f"Hashes of {source} without one label; give --tag NAME=LABEL for their tags, or --label")
    _write(Path(output), list(lines.values()))
    return len(lines), others


def read_signals(path: Path) -> tuple[list[Signal], int]:
    """Read the PDQ hashes of a list, and the number of its signals of other types.

    Raises:
        UserError: no such file, another form, or lines that are no signals; each is named.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a list of hashes (.csv, .jsonl, .json or .txt).")
    signals, problems, others = [], [], 0
    for row in _text_rows(path) if path.suffix.lower() == ".txt" else rows_of(path):
        kind, value = (_field(row.values, name).lower() for name in ("signal_type", "signal_str"))
        if row.problem or not kind or not value:
            problems.append(f"{row.place}: {row.problem or 'no signal_type and signal_str'}")
        elif kind not in _PDQ:
            others += 1
        elif len(value) != PDQ_BITS // 4 or not set(value) <= set("0123456789abcdef"):
            problems.append(f"{row.place}: {value[:80]!r} is not 64 hexadecimal digits")
        else:
            category = _field(row.values, "category")
            signals.append(
                Signal(row.place, value, (*_tags(row.values.get("tags")), *([category] if category else [])))
            )
    raise_all(problems, f"{path} is not a list of hashes (docs/bank.md says which forms are read)")
    return signals, others


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), 1):
        kind, _, value = line.strip().rpartition(" ")
        if value:
            yield Row(f"{path.name}, line {number}", {"signal_type": kind.strip() or "pdq", "signal_str": value})


def _field(values: Mapping[str, Any], name: str) -> str:
    found = next((values[other] for other in _NAMES[name] if values.get(other)), "")
    return str(found).strip()


def _tags(tags: Any) -> list[str]:
    """Tags of a signal: text with blanks between them, a list, or a list within `data`, as the API answers."""
    if isinstance(tags, str):
        return tags.split()
    if isinstance(tags, Mapping):
        tags = [tag.get("text", "") if isinstance(tag, Mapping) else tag for tag in tags.get("data") or []]
    return [quote(str(tag), safe=":,-_.%") for tag in tags or [] if str(tag)]


def _label(text: str, problem: Problem) -> int | list[int] | None:
    parts = text.split(",")
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        return None
    numbers = [int(part) for part in parts]
    if problem.kind == "multi_label":
        return numbers if len(numbers) == problem.outputs else None
    return numbers[0] if len(numbers) == 1 else None


def _write(path: Path, lines: Sequence[Sequence[str]]) -> None:
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path}: lists of hashes are written as CSV; end its name in .csv.")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(lines)
