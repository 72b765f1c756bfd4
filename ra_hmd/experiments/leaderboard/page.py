"""Markdown page and figure of the leaderboard."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ra_hmd.core.heads import THRESHOLDS
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.core.plotting import BLUE, GREY, plain_text
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE
from ra_hmd.evaluation.metrics.runs import error_bars
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate
from ra_hmd.experiments.leaderboard.sources import Column, SystemResult

TITLES = METRIC_NAMES | {
    "f1_unstated": "F1 of a kind that is not stated",
    "micro_f1_doubtful": "“micro-F1”, of which kind is doubtful (see source)",
}
SHOWN_METRICS = ("auroc", "accuracy", "macro_f1", "micro_f1", "pair_accuracy", "f1_unstated", "micro_f1_doubtful")
"""Metrics of the page; the JSON and CSV files contain all metrics."""

_LINE = 0.15
"""Height of a line of text in the figure, in inches."""

_INTRODUCTION = f"""# Results

Each column is one split of one data set. **Measured** cells come from the runs in the searched folders: the value, in
brackets the {CONFIDENCE:.0%} interval over the query memes, and for several runs ± their standard deviation.
*Published* cells quote the named source, which has its own protocol and prints no intervals. Splits other than test
splits are marked: results are too optimistic on a split that anything was chosen on.
"""
_LEGEND = """
System names are taken from the manifests of their runs. A system was trained on the column's data set unless its row
names another. `RKC` votes with a bank of the system's own training data, K = 20 and arithmetic weights, and `KRR` is
kernel ridge regression on that bank by the head's embedding, unless stated otherwise; a meme on which it abstains
counts with the verdict of score 0. Verdicts use the official thresholds (0.5; RKC and KRR 0) unless the cell states a
threshold from dev; AUROC needs no threshold. C: command of a cell; P: source of a cell. Published numbers without a
mark are from the system's own paper, or a third party compared them with the PDF.
*Second-hand* numbers are quoted by others: check them before quoting them.
"""


@dataclass(frozen=True)
class Page:
    """Content of the page.

    Attributes:
        measured: Measured results, in order of place.
        published: Published results on the same data sets.
        notes: Sentences that a reader must know.
        command: Command line of the page.
        picture: File name of the figure.
    """

    measured: Sequence[SystemResult]
    published: Sequence[SystemResult]
    notes: Sequence[str]
    command: str
    picture: str

    @cached_property
    def columns(self) -> list[Column]:
        """Columns of the measured results, by data set, test splits first."""
        order = ("test", "dev", "train")
        return sorted({one.column for one in self.measured},
                      key=lambda one: (one.dataset, one.task, order.index(one.role), one.split))  # fmt: skip

    @cached_property
    def beside(self) -> list[SystemResult]:
        """Published results on the measured splits."""
        return [one for one in self.published if one.column in self.columns]

    @cached_property
    def elsewhere(self) -> list[SystemResult]:
        """Published results on other splits of these data sets."""
        return [one for one in self.published if one.column not in self.columns]

    @cached_property
    def commands(self) -> list[str]:
        """Commands of the measured results, in order of appearance."""
        return list(dict.fromkeys(one.source for one in self.measured))

    @cached_property
    def sources(self) -> list[str]:
        """Sources of the published results, in order of appearance."""
        return list(dict.fromkeys(one.source for one in (*self.beside, *self.elsewhere)))


def table_rows(results: Sequence[SystemResult]) -> dict[tuple[str, str], dict[Column, SystemResult]]:
    """Group results by (system, head), sorted by system name and by the usual order of heads."""

    def order(key: tuple[str, str]) -> tuple[str, int, str]:
        place = next((number for number, name in enumerate(THRESHOLDS) if key[1].startswith(name.upper())),
                     len(THRESHOLDS))  # fmt: skip
        return key[0].lower(), place, key[1]

    rows: dict[tuple[str, str], dict[Column, SystemResult]] = {}
    for one in results:
        rows.setdefault((one.system, one.head), {})[one.column] = one
    return {key: rows[key] for key in sorted(rows, key=order)}


def markdown(page: Page) -> str:
    """Render the page as Markdown."""
    header = ["origin", "system", "head", *(escape(column.title) for column in page.columns)]
    lines = [
        [origin, escape(system), escape(head) or "–", *(_cell(page, cells.get(column)) for column in page.columns)]
        for origin, results in (("measured", page.measured), ("*published*", page.beside))
        for (system, head), cells in table_rows(results).items()
    ]
    text = f"{_INTRODUCTION}\n{markdown_table(header, lines)}{_LEGEND}"
    text += "".join(f"\n- {escape(note)}" for note in page.notes) + ("\n" if page.notes else "")
    text += f"\n![Systems by data set, by one metric each; filled: measured, open: published]({page.picture})\n"
    if page.elsewhere:
        header = ["origin", "system", "data set and split", "published"]
        lines = [["*published*", escape(one.system), escape(one.column.title), _cell(page, one)]
                 for one in sorted(page.elsewhere, key=lambda one: (one.column, one.system.lower()))]  # fmt: skip
        text += "\n## Published on other splits of these data sets\n\nNot to be compared with the columns above.\n\n"
        text += markdown_table(header, lines)
    text += "\n## Commands\n"
    for number, source in enumerate(page.commands, 1):
        text += f"\n**C{number}**\n\n{fenced(source.splitlines())}"
    if page.sources:
        text += "\n## Sources of the published numbers\n\n"
        text += "".join(f"- **P{number}** {escape(source)}\n" for number, source in enumerate(page.sources, 1))
    return text + (f"\n## How this page was made\n\n{fenced([page.command])}" if page.command else "")


def _cell(page: Page, one: SystemResult | None) -> str:
    """Cell text: each metric on its own line, then its origin."""
    if one is None:
        return "–"
    shown = [name for name in SHOWN_METRICS if name in one.metrics]
    if one.origin == "published":
        lines = [f"*{TITLES[name]} {one.metrics[name]['shown']}*" for name in shown]
        trust = {"checked": "", "paper": "", "readme": ", README", "second-hand": ", *second-hand*"}[one.evidence]
        return "<br>".join([*lines, f"*published*{trust}, P{page.sources.index(one.source) + 1}"])
    lines = [f"{TITLES[name]} {format_estimate(one.metrics[name])}" for name in shown]
    number = page.commands.index(one.source) + 1
    rule = f", {one.rule}" if one.rule else ""
    return "<br>".join([*lines, f"measured, {one.runs}, {one.memes} memes{rule}, C{number}"])


def figure(page: Page) -> Figure:
    """One panel per column, one row per system: measured values with intervals (filled), published values (open)."""
    shown = [_panel(page, column) for column in page.columns]
    heights = [1.0 + _LINE * sum(map(_lines, results)) for _, results in shown]  # inches
    canvas = Figure(figsize=(9.0, sum(heights) + 0.4), layout="constrained")
    axes = canvas.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, column, (metric, results) in zip(axes, page.columns, shown, strict=True):
        _draw(axis, metric, results)
        axis.set_title(plain_text(column.title), fontsize=10)
    named = {name: item for axis in axes for item, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    canvas.legend(named.values(), named.keys(), loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return canvas


def _panel(page: Page, column: Column) -> tuple[str, list[SystemResult]]:
    """First metric of the page that was measured in this column, and the results that have it."""
    here = [one for results in (page.measured, page.beside) for cells in table_rows(results).values()
            if (one := cells.get(column)) is not None]  # fmt: skip
    known = [
        name for name in SHOWN_METRICS if any(_value(one, name) is not None for one in here if one.origin == "measured")
    ]
    metric = known[0] if known else SHOWN_METRICS[1]
    return metric, [one for one in here if _value(one, metric) is not None]


def _value(one: SystemResult, metric: str) -> float | None:
    """Value of a metric; None for published ranges, which the figure leaves out."""
    return one.metrics.get(metric, {}).get("value")


def _label(one: SystemResult) -> str:
    name = f"{one.system} · {one.head}" if one.head else one.system
    return "\n".join(textwrap.wrap(name, 60, break_on_hyphens=False))


def _lines(one: SystemResult) -> float:
    """Height of a row of the figure in lines of text: those of its label, and a gap."""
    return 1 + _label(one).count("\n") + 0.7


def _draw(axis: Axes, metric: str, results: Sequence[SystemResult]) -> None:
    ends = np.cumsum([0.0, *map(_lines, results)])
    places = (ends[1:] + ends[:-1]) / 2
    styles = {"measured": (BLUE, BLUE, "o"), "published": (GREY, "white", "D")}
    for origin, (edge, face, marker) in styles.items():
        chosen = [(place, one) for place, one in zip(places, results, strict=True) if one.origin == origin]
        if not chosen:
            continue
        values = [one.metrics[metric] for _, one in chosen]
        axis.errorbar(
            [item["value"] for item in values], [place for place, _ in chosen], xerr=error_bars(values), fmt=marker,
            color=edge, markerfacecolor=face, capsize=2, label=origin,
        )  # fmt: skip
    axis.set_yticks(places, [plain_text(_label(one)) for one in results], fontsize=7)
    axis.set_ylim(max(float(ends[-1]), 1.0), 0.0)
    axis.set_xlabel(TITLES[metric])
    axis.grid(axis="x", alpha=0.3)
