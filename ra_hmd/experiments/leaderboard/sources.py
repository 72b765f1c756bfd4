"""Sources of the leaderboard: evaluations, cross-evaluations, and published numbers."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import yaml

from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import BANK_HEADS, THRESHOLDS, Head
from ra_hmd.core.manifests import (
    CrossEvalManifest,
    EvaluationManifest,
    SetDescription,
    SystemDescription,
    read_folder_manifest,
)
from ra_hmd.data.readers import READERS
from ra_hmd.evaluation.report.outputs import METRICS_NAME
from ra_hmd.evaluation.report.sections import vote_text
from ra_hmd.evaluation.request import UPDATE_KEY
from ra_hmd.experiments.cross_eval.config import CROSS_METRICS, HeadAndBank
from ra_hmd.features.test_lock import is_test_split
from ra_hmd.retrieval.embeddings import EMBEDDING
from ra_hmd.retrieval.voting import Voting

PUBLISHED = Path(__file__).with_name("published.yaml")
EVIDENCE = ("checked", "readme", "paper", "second-hand")
CROSS_NAME = "cross_eval.json"


@dataclass(frozen=True, order=True)
class Column:
    """Column of the leaderboard: one split of one task of a data set."""

    dataset: str
    task: str
    split: str

    @property
    def title(self) -> str:
        """Title on the page; splits other than test splits are marked."""
        reader = READERS.get(self.dataset)
        task = self.task
        if reader is not None:  # the first task of a public data set is omitted
            task = "" if task == reader.tasks[0].name else task or "task not stated"
        parts = [self.dataset, *([task] if task else []), self.split]
        return " · ".join(parts) + ("" if self.role == "test" else f" ({self.role})")

    @property
    def role(self) -> Literal["test", "dev", "train"]:
        """Role of the split; a split of unknown kind counts as test data, as in `evaluate`."""
        if is_test_split(self.split):
            return "test"
        return "train" if "train" in self.split.lower() else "dev"


@dataclass(frozen=True)
class SystemResult:
    """Result of one head of a system in one column.

    Attributes:
        origin: Whether the result was measured or published.
        system: Name of the system.
        head: Name of the head, with its bank; empty where the source does not state it.
        column: Split of the query memes.
        metrics: Metric → `value`, `low`, `high`, `std`; for published numbers also `printed`, the text in the source.
        source: Command or publication.
        place: Folder and query set that it was read from, unique for each result.
        evidence: Reliability of published numbers.
        memes: Number of query memes, where known.
        runs: Number of averaged runs and their kind: `1 seed`, `5 lists`.
        rule: Source of the threshold, if it is not the official one.
    """

    origin: Literal["measured", "published"]
    system: str
    head: str
    column: Column
    metrics: Mapping[str, Mapping[str, Any]]
    source: str
    place: str
    evidence: str = ""
    memes: int | None = None
    runs: str = ""
    rule: str = ""


def find_results(folders: Sequence[str]) -> tuple[list[SystemResult], list[str]]:
    """Find the results of all finished evaluations in and below the folders.

    Args:
        folders: Paths, or `NAME=PATH` to name the systems in a folder; of nested names the innermost one counts.

    Returns:
        The results in order of place, and notes on what was left out.

    Raises:
        UserError: a folder that does not exist, that has no finished evaluation, or that is given two names.
    """
    if not folders:
        raise UserError("No folder is given; name one that holds evaluations (`ra-hmd evaluate --output`).")
    given = [_named(text) for text in folders]
    names: dict[Path, str] = {}
    problems = [f"{path} is not a folder." for _, path in given if not path.is_dir()]
    for name, path in given:
        if name is not None and names.setdefault(path.resolve(), name) != name:
            problems.append(f"{path} is called {names[path.resolve()]!r} and {name!r}; give it one name.")
    raise_all(problems, "These cannot be searched")
    runs: dict[Path, tuple[str | None, Path]] = {}
    empty, notes = [], []
    # Named folders first, the innermost before those that contain them, so that the innermost name wins.
    for name, path in sorted(given, key=lambda one: (one[0] is None, -len(one[1].resolve().parts))):
        found = list(_evaluations(path))
        if not found:
            empty.append(f"{path} has no finished evaluation; `ra-hmd evaluate` or `cross-eval` writes one.")
        for folder in found:
            runs.setdefault(folder.resolve(), (name, folder))
    raise_all(empty, "There is nothing to show")
    results: list[SystemResult] = []
    for name, folder in sorted(runs.values(), key=lambda run: str(run[1])):
        manifest = read_folder_manifest(folder)
        if isinstance(manifest, EvaluationManifest) and manifest.all_systems and manifest.decisions:
            results += _evaluation(folder, manifest, name)
        elif isinstance(manifest, CrossEvalManifest) and manifest.systems is not None:
            results += _cross_evaluation(folder, manifest, manifest.systems, name)
        else:
            notes.append(f"{folder} does not say what was evaluated on what; evaluate again to have it here.")
    if not results:
        raise_all(notes, "There is nothing to show")
    return results, notes


def published_results(path: Path = PUBLISHED) -> list[SystemResult]:
    """Read the published numbers in the data file, one result per column.

    Raises:
        UserError: a row without system, source or known evidence; a data set without a reader.
    """
    # BaseLoader keeps numbers as text, so that 85.80 keeps its last digit.
    rows = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    results = []
    for row in rows:
        if row.get("evidence") not in EVIDENCE or not row.get("system") or not row.get("source"):
            raise UserError(f"{path}: {row}: system, source and evidence ({', '.join(EVIDENCE)}) are needed.")
        for dataset, splits in row["cells"].items():
            if dataset not in READERS:
                raise UserError(f"{path}: {row['system']}: there is no data set {dataset!r}.")
            for split, numbers in splits.items():
                column = Column(dataset, READERS[dataset].tasks[0].name, split)
                metrics = {name: _published_number(number) for name, number in numbers.items()}
                place = f"{row['system']}, {column.title}"
                results.append(SystemResult("published", row["system"], "", column, metrics, row["source"], place,
                                      evidence=row["evidence"]))  # fmt: skip
    return results


def _published_number(number: str | list[str]) -> dict[str, Any]:
    """Convert a printed percentage to a fraction; a range has no value."""
    ends = number if isinstance(number, list) else [number]
    shown = [str(Decimal(end).scaleb(-2)) for end in ends]  # keeps the last digit
    value, *rest = map(float, shown)
    # `low` and `high` hold the interval of a measured value, which the ends of a printed range are not.
    return {"value": None if rest else value, "low": None, "high": None, "std": None,
            "printed": " to ".join(ends), "shown": " to ".join(shown)}  # fmt: skip


def _named(text: str) -> tuple[str | None, Path]:
    name, equals, path = text.partition("=")
    if not text or (equals and not path):
        raise UserError(f"{text!r} names no folder; give FOLDER or NAME=FOLDER, and `.` for this one.")
    if equals and name and not Path(text).is_dir():
        return name, Path(path)
    return None, Path(text)


def _evaluations(folder: Path) -> Iterator[Path]:
    """Yield folders of finished evaluations; their subfolders (seeds) belong to them."""
    for place, below, files in os.walk(folder):
        below.sort()
        if MANIFEST_NAME not in files:
            continue
        manifest = read_folder_manifest(place)
        finished = (isinstance(manifest, EvaluationManifest) and METRICS_NAME in files) or (
            isinstance(manifest, CrossEvalManifest) and CROSS_NAME in files
        )
        if finished:
            below.clear()
            yield Path(place)


def _evaluation(folder: Path, manifest: EvaluationManifest, name: str | None) -> Iterator[SystemResult]:
    systems = manifest.all_systems
    commands = "\n".join(manifest.commands)
    count = len(systems)
    noun = "list" if all(system.shots for system in systems) else "seed"
    for label, heads in _read(folder / METRICS_NAME).items():
        if label == UPDATE_KEY:
            continue
        described = manifest.sets[label]
        column = _column(described)
        for head, metrics in heads.items():
            yield SystemResult(
                "measured", name or _joined(systems, column.dataset), _head(head, manifest, systems, column), column,
                metrics, commands, f"{folder} ({label})", memes=described.rows, runs=_counted(count, noun),
                rule=_rule(head, label, manifest),
            )  # fmt: skip


def _rule(head: Head, label: str, manifest: EvaluationManifest) -> str:
    """Source of the threshold; empty for official thresholds."""
    chosen = [any(value != THRESHOLDS[head] for value in rule.thresholds) for rule in manifest.rules(label, head)]
    return "" if not any(chosen) else "threshold from dev" if all(chosen) else "threshold from dev in some runs"


def _vote(arguments: Mapping[str, Any]) -> str:
    """Settings of the vote where they differ from the default."""
    voting = Voting(**{item.name: arguments[item.name] for item in fields(Voting) if item.name in arguments})
    return "" if voting == Voting() else f", {vote_text(voting)}"


def _views(arguments: Mapping[str, Any]) -> str:
    """Settings of the kernel head where they differ from the default."""
    views = arguments.get("views", [EMBEDDING])
    balanced = ", classes of the bank weigh equally" if arguments.get("prior_correction") else ""
    return ("" if views == [EMBEDDING] else f", views {', '.join(views)}") + balanced


def _head(head: Head, manifest: EvaluationManifest, systems: Sequence[SystemDescription], column: Column) -> str:
    """Name of a head; of RKC and KRR with their bank, unless that is the system's training data."""
    bank = None if manifest.bank is None else manifest.bank.data
    if head not in BANK_HEADS or bank is None:
        return head.upper()
    of_train = "train" in bank.split.lower()
    if of_train and all(bank.dataset == system.trained_on for system in systems):
        name = _own_bank(HeadAndBank(head), systems)
    elif of_train and bank.dataset == column.dataset:
        name = HeadAndBank(head, "target").title
    else:
        name = f"{head.upper()}, bank of {bank.dataset} ({bank.split})"
    return name + (_vote if head == "rkc" else _views)(manifest.all_arguments)


def _own_bank(head: HeadAndBank, systems: Iterable[SystemDescription]) -> str:
    """Name of RKC or KRR with the training split, which for a few-shot system exceeds its training data."""
    return head.title + (", whole training split" if any(system.shots for system in systems) else "")


def _cross_evaluation(
    folder: Path, manifest: CrossEvalManifest, systems: Mapping[str, SystemDescription], name: str | None
) -> Iterator[SystemResult]:
    for cell in _read(folder / CROSS_NAME)["cells"]:
        described = systems[cell["system"]]
        column = _column(SetDescription.model_validate(cell["judged"]))
        if described.trained and not {described.trained_on, column.dataset} <= set(READERS):
            # Unnamed data sets are identified by folders; the settings state which one is the training data.
            home = cell["trained_on"] == cell["target"]
            trained_on = column.dataset if home else described.trained_on or cell["trained_on"]
            described = described.model_copy(update={"trained_on": trained_on})
        kind = HeadAndBank.of(cell)
        head = kind.title
        if kind.bank == "train":  # as `evaluate` names the same head and bank
            alone = HeadAndBank(kind.head, views=kind.views)
            own = f"{alone.title}, bank of {cell['trained_on']}"
            head = _own_bank(alone, [described]) if described.trained else own
        if kind.head == "rkc":
            head += _vote(manifest.arguments)
        shown = f"{name}: {cell['system']}" if name else _joined([described], column.dataset)
        lists = len(cell["accuracy"]["runs"])
        yield SystemResult(
            "measured", shown, head, column, {metric: cell[metric] for metric in CROSS_METRICS}, manifest.command,
            f"{folder} ({cell['system']} on {cell['target']})", memes=cell["rows"],
            runs=_counted(lists, "list") if cell["bank"] == "k_shot" else _counted(1, "seed"),
        )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _column(described: SetDescription) -> Column:
    task = described.task or (f"{described.outputs} classes" if described.outputs > 1 else "")
    return Column(described.dataset, task, described.split)


def _joined(systems: Iterable[SystemDescription], dataset: str) -> str:
    """Name of a system, with its training data if that differs from the data set of the column."""
    names = []
    for described in systems:
        if not described.trained or described.trained_on == dataset:
            names.append(described.name)
        else:
            names.append(f"{described.name}, trained on {described.trained_on or 'data that is not stated'}")
    return " / ".join(dict.fromkeys(names))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count > 1 else "")


def without_clashes(results: Sequence[SystemResult]) -> list[SystemResult]:
    """Append the place to system names where two results of one name and head share a column."""
    seen: dict[tuple[str, str, str], list[Column]] = {}
    for one in results:
        seen.setdefault((one.origin, one.system, one.head), []).append(one.column)
    clashing = {key for key, columns in seen.items() if len(set(columns)) < len(columns)}
    return [
        replace(one, system=f"{one.system}, {one.place}") if (one.origin, one.system, one.head) in clashing else one
        for one in results
    ]
