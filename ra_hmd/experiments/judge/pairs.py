"""Rationales and references, matched by id."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.rows import rows_of
from ra_hmd.data.text import well_formed

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """A rationale with its human references.

    Attributes:
        id: Id of the meme.
        rationale: Text of the model.
        references: One or more texts written by people.
        verdict: Verdict of the model: 1 hateful, 0 not hateful, None if unknown.
        label: Class that the references explain: 1 hateful, 0 not hateful, None if unknown.
    """

    id: str
    rationale: str
    references: tuple[str, ...]
    verdict: int | None = None
    label: int | None = None


@dataclass(frozen=True)
class Matched:
    """Pairs in the order of the rationales, and the numbers of ids that only one of the files has."""

    pairs: list[Pair]
    only_rationales: int = 0
    only_references: int = 0


def read_pairs(rationales: str | Path, references: str | Path, *, partial: bool = False) -> Matched:
    """Match two files (.jsonl, .json, .csv, .tsv, .parquet) by id.

    Args:
        rationales: Rows with `id`, `rationale` and optionally `verdict` (0, 1, null), as `ra-hmd explain` writes them.
        references: Rows with `id`, `reference` (a text or a list of texts) and optionally `label` (0, 1, null).
        partial: Leave out ids that only one file has.

    Raises:
        UserError: rows that cannot be read, duplicate ids, or ids that do not match.
    """
    graded = _read(rationales, _rationale)
    known = _read(references, _reference)
    here = [name for name in graded if name not in known]
    there = [name for name in known if name not in graded]
    if not partial:
        problems = [f"id {name!r} has no reference in {references}" for name in here]
        problems += [f"id {name!r} has no rationale in {rationales}" for name in there]
        raise_all(problems, "Rationales and references do not match; mend the ids, or judge what both have (--partial)")
    pairs = [Pair(name, graded[name][0], known[name][0], graded[name][1], known[name][1]) for name in graded
             if name in known]  # fmt: skip
    if not pairs:
        raise UserError(f"{rationales} and {references} have no id in common.")
    return Matched(pairs, len(here), len(there))


def _read(path: str | Path, parse: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file with one row per meme.")
    found: list[tuple[str, T]] = []
    problems = []
    for row in rows_of(path):
        try:
            if row.problem:
                raise ValueError(row.problem)
            found.append((_id(row.values), parse(row.values)))
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
    raise_all(problems, f"{path}: rows that cannot be graded")
    twice = [f"id {name!r} occurs {count} times" for name, count in Counter(name for name, _ in found).items()
             if count > 1]  # fmt: skip
    raise_all(twice, f"{path}: ids must be unique; several references of a meme are a list in one row")
    if not found:
        raise UserError(f"{path} has no rows.")
    return dict(found)


def _id(values: dict[str, Any]) -> str:
    name = values.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise ValueError(f"its id is {name!r}, a text or a whole number is needed")
    return well_formed(str(name))


def _rationale(values: dict[str, Any]) -> tuple[str, int | None]:
    if not isinstance(values.get("rationale"), str):
        raise ValueError(f"its `rationale` is {values.get('rationale')!r:.60}, a text is needed")
    return well_formed(values["rationale"]), _binary(values, "verdict")


def _reference(values: dict[str, Any]) -> tuple[tuple[str, ...], int | None]:
    given = values.get("reference")
    texts: Iterable[Any] = given if isinstance(given, list) else [given]
    kept = tuple(well_formed(text).strip() for text in texts if isinstance(text, str))
    if not kept or not all(kept) or (isinstance(given, list) and len(kept) < len(given)):
        raise ValueError(f"its `reference` is {given!r:.60}, a text or a list of texts is needed")
    return kept, _binary(values, "label")


def _binary(values: dict[str, Any], name: str) -> int | None:
    value = values.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, list) or str(value).lower() not in ("0", "1", "true", "false"):
        raise ValueError(f"its `{name}` is {value!r:.60}; 0, 1 or null is needed: leave other ones out of the file")
    return int(str(value).lower() in ("1", "true"))
