"""Non-inferiority gate: is a tuned model worse than its base model by more than a stated margin?

Shapes: N items of a task, K groups of items, R draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE, Estimate, cells_interval, mean_estimate

GateVerdict = Literal["pass", "fail", "undecided"]
EXIT_CODES: dict[GateVerdict, int] = {"pass": 0, "fail": 1, "undecided": 2}
"""Exit code of a command that ends in a gate, for continuous integration."""
POOLED = "pooled"
"""Name of the row that holds the items of all tasks."""


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of one task, tuned model minus base model, on the same items; positive: the tuned model is better.

    Attributes:
        values: Difference of each item [N].
        bounds: Smallest and largest difference that an item can have, by which the interval of a few equal items has a
            width. None where there are none: those that occur, and 0, are taken.
        groups: Group of each item [N], such as its picture: items of a group are not independent, and are resampled
            together. None: each item is a group.
        unit: What the differences are measured in, for reports.
    """

    values: Sequence[float]
    bounds: tuple[float, float] | None = (-1.0, 1.0)
    groups: Sequence[str] | None = None
    unit: str = ""


class Margins(Settings):
    """How much worse a tuned model may be, in the unit of the differences (0.01 is a point of accuracy)."""

    TITLE: ClassVar[str] = "margins"

    each: float = Field(default=0.03, gt=0, description="Margin of each task.")
    pooled: float | None = Field(default=0.01, gt=0, description="Margin of all items together; null: not pooled.")
    tasks: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Margins of single tasks in place of `each`."
    )

    def of(self, task: str) -> float:
        """The margin of a task."""
        return self.tasks.get(task, self.each)


@dataclass(frozen=True)
class GateRow:
    """Result of one task, or of all of them pooled.

    Attributes:
        task: Name of the task.
        items: N.
        groups: K.
        margin: How much worse the tuned model may be.
        difference: Mean difference with its interval.
        verdict: `pass`: the interval lies above -margin; `fail`: it lies below; else `undecided`.
        unit: Unit of margin and difference.
    """

    task: str
    items: int
    groups: int
    margin: float
    difference: Estimate
    verdict: GateVerdict
    unit: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        stated = {"task": self.task, "items": self.items, "groups": self.groups, "margin": self.margin}
        return {**stated, "unit": self.unit, "difference": self.difference.as_dict(), "verdict": self.verdict}


@dataclass(frozen=True)
class GateResult:
    """Result of a gate.

    Attributes:
        rows: The tasks in their order, and the pooled row at the end where there is one.
    """

    rows: list[GateRow] = field(default_factory=list)

    @property
    def verdict(self) -> GateVerdict:
        """`fail` where one row fails, else `undecided` where one is undecided, else `pass`."""
        found = {row.verdict for row in self.rows}
        return "fail" if "fail" in found else "undecided" if "undecided" in found else "pass"

    @property
    def exit_code(self) -> int:
        """0, 1 or 2; see `EXIT_CODES`."""
        return EXIT_CODES[self.verdict]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"verdict": self.verdict, "confidence": CONFIDENCE, "rows": [row.as_dict() for row in self.rows]}

    def table(self) -> str:
        """Markdown table of the rows."""
        return gate_table(self.as_dict())

    def summary(self) -> str:
        """One line: the verdict, and the rows that are responsible for it."""
        return gate_summary(self.as_dict())


def gate_table(gate: Mapping[str, Any]) -> str:
    """Markdown table of the rows of a gate in its JSON form."""
    cells = [
        [
            escape(row["task"]),
            str(row["items"]),
            str(row["groups"]),
            "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**row["difference"]),
            f"{row['margin']:g}",
            escape(row["unit"]),
            row["verdict"],
        ]
        for row in gate["rows"]
    ]
    header = ["task", "items", "groups", f"difference [{CONFIDENCE:.0%} interval]", "margin", "unit", "verdict"]
    return markdown_table(header, cells)


def gate_summary(gate: Mapping[str, Any]) -> str:
    """One line of a gate in its JSON form: the verdict, and the rows that are responsible for it."""
    deciding = [row for row in gate["rows"] if row["verdict"] == gate["verdict"]]
    named = ", ".join(f"{row['task']} {row['difference']['value']:+.3f} (margin {row['margin']:g})" for row in deciding)
    return f"Retention: {gate['verdict']}: {named}."


def non_inferiority(
    differences: Mapping[str, PairedDifferences | Sequence[float]],
    margins: Margins | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> GateResult:
    """Decide for each task, and for all items together, whether the tuned model lost less than the margin.

    A row passes where the whole 95 % interval of its mean difference lies above -margin, fails where it lies below, and
    is undecided where -margin is inside. The interval is that of a paired bootstrap over items, or groups of items. All
    rows have to pass, so that a pass needs no correction for the number of tasks. In the pooled row each item weighs
    the same; differences that are pooled must have one unit.

    Args:
        differences: Task to its differences, tuned minus base.
        margins: Margins; default 0.03 for each task and 0.01 pooled.
        samples: Resamples of each interval.
        seed: Seed of the resamples.

    Raises:
        UserError: no task, a task without items, values that are not finite, other numbers of groups than of values,
            margins of a task that is not there, pooled differences of several units.
    """
    margins = margins or Margins()
    tasks = {
        name: given if isinstance(given, PairedDifferences) else PairedDifferences(given)
        for name, given in differences.items()
    }
    _check(tasks, margins)
    rows = [_row(name, task, margins.of(name), samples=samples, seed=seed) for name, task in tasks.items()]
    if margins.pooled is not None and len(tasks) > 1:
        rows.append(_row(POOLED, _pool(tasks), margins.pooled, samples=samples, seed=seed))
    return GateResult(rows)


def _check(tasks: Mapping[str, PairedDifferences], margins: Margins) -> None:
    problems = [] if tasks else ["there is no task; give the differences of one or more."]
    for name, task in tasks.items():
        values = np.asarray(task.values, dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values.ravel()))
        if values.ndim != 1 or not len(values):
            problems.append(f"task {name!r} has no items (shape {values.shape}); leave it out, or measure some.")
        elif len(bad):
            problems.append(f"task {name!r}, item {bad[0]}: {values[bad[0]]} is not a difference; measure it again.")
        elif task.bounds is not None and not (task.bounds[0] <= values.min() and values.max() <= task.bounds[1]):
            problems.append(
                f"task {name!r} has differences from {values.min()} to {values.max()}, outside its bounds "
                f"{task.bounds}; state the bounds of its score, or None."
            )
        if task.groups is not None and len(task.groups) != len(values):
            problems.append(f"task {name!r} has {len(values)} items and {len(task.groups)} groups; give one for each.")
    unknown = ", ".join(sorted(margins.tasks.keys() - tasks.keys()))
    if unknown:
        problems.append(f"there are margins for {unknown}, and the tasks are {', '.join(tasks)}; correct the names.")
    units = {task.unit for task in tasks.values()}
    if margins.pooled is not None and len(units) > 1:
        problems.append(f"differences in {' and '.join(sorted(map(repr, units)))} cannot be pooled; set pooled: null.")
    raise_all(problems, "The gate cannot be decided")


def _row(name: str, task: PairedDifferences, margin: float, *, samples: int, seed: int) -> GateRow:
    difference, groups = mean_difference(task, samples=samples, seed=seed)
    if difference.low is None or difference.high is None:
        raise UserError(f"The gate needs an interval, and {samples} resamples give none; ask for 100 or more.")
    verdict: GateVerdict = "undecided"
    if difference.low > -margin:
        verdict = "pass"
    elif difference.high < -margin:
        verdict = "fail"
    return GateRow(name, len(task.values), groups, margin, difference, verdict, task.unit)


def mean_difference(task: PairedDifferences, *, samples: int, seed: int) -> tuple[Estimate, int]:
    """Mean difference with its interval, for which groups of items are resampled; and K."""
    values = np.asarray(task.values, dtype=np.float64)
    names, group = (None, None) if task.groups is None else np.unique(np.asarray(task.groups), return_inverse=True)
    if names is None or group is None or len(names) == len(values):
        return mean_estimate(values, task.bounds, samples=samples, seed=seed), len(values)
    if samples < 1:
        return Estimate(float(values.mean())), len(names)
    low, high = task.bounds or (min(0.0, float(values.min())), max(0.0, float(values.max())))
    typical = len(values) / len(names)  # size of the groups that are added at the ends
    sums = np.array([low * typical, *np.bincount(group, weights=values), high * typical])
    sizes = np.array([typical, *np.bincount(group), typical])
    counts, worst, best = np.ones(len(sums)), np.zeros(len(sums)), np.zeros(len(sums))
    counts[0] = counts[-1] = 0
    worst[0], best[-1] = 1, 1
    ends = cells_interval(lambda w: (w @ sums) / (w @ sizes), counts, worst, best, samples=samples, seed=seed)
    mean = float(values.mean())
    return Estimate(mean, max(low, min(ends[0], mean)), min(high, max(ends[1], mean))), len(names)


def _pool(tasks: Mapping[str, PairedDifferences]) -> PairedDifferences:
    """The items of all tasks; groups of two tasks are different ones."""
    bounds = [task.bounds for task in tasks.values()]
    known = [bound for bound in bounds if bound is not None]
    widest = (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(bounds) else None
    groups = [
        f"{name}/{group}"
        for name, task in tasks.items()
        for group in (task.groups if task.groups is not None else range(len(task.values)))
    ]
    values = [float(value) for task in tasks.values() for value in task.values]
    return PairedDifferences(values, widest, groups, next(iter(tasks.values())).unit)
