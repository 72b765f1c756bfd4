"""`ra-hmd staleness`: what the KNN vote loses as its bank ages, on memes with an order of time or of domains.

Periods are numbered in their order. A bank frozen at period s holds memes of periods up to s; queries of period t are
judged by banks of every age t − s ≥ 1. The bank of age 1 is the one that is updated in every period.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from matplotlib.figure import Figure

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, run_manifest, sha256_file, write_json, write_text
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import THRESHOLDS
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.core.plotting import BLUE, VERMILION, panels, plain_text, save_figure
from ra_hmd.core.progress import track
from ra_hmd.evaluation.bank_update import nested_order
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE, paired_gain
from ra_hmd.evaluation.metrics.runs import METRIC_TITLES, STUDY_METRICS, Cell, error_bars, estimate
from ra_hmd.evaluation.report.sections import format_estimate
from ra_hmd.experiments.common import require_binary
from ra_hmd.experiments.staleness.periods import DatePart, periods_of
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_output,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import VoteWeights, Voting
from ra_hmd.scoring.knn_classifier import knn_classify


@dataclass(frozen=True)
class StalenessSettings:
    """How periods, banks and votes are made.

    Attributes:
        key: Field of the memes' `extras` that tells the period; None: each store is a period.
        order: The periods' names in order, where they are names; without a key, what to call the stores' periods.
        date_part: Dates are cut to it.
        bins: Make so many periods of about equally many memes of numbers or dates; None: one per value.
        window: A bank holds the memes of the last so many periods; None: of all since the first.
        bank_size: Class-balanced draw of so many memes, so that banks differ in age alone; None: all.
        min_memes: A period with fewer queries is not judged.
        topk: K of the vote.
        weights: Of the vote.
        bootstrap_samples: Resamples of each interval.
        seed: Of resampling and of the draw.
    """

    key: str | None = None
    order: tuple[str, ...] = ()
    date_part: DatePart = "day"
    bins: int | None = None
    window: int | None = None
    bank_size: int | None = None
    min_memes: int = 20
    topk: int = 20
    weights: VoteWeights = "arithmetic"
    bootstrap_samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"bins": 2, "window": 1, "bank_size": 2, "min_memes": 1, "bootstrap_samples": 1}
        problems = [
            f"{name} is {getattr(self, name)}; it must be at least {low}."
            for name, low in least.items()
            if getattr(self, name) is not None and getattr(self, name) < low
        ]
        if self.key is None and self.bins:
            problems.append("`bins` are of a period key; without one each store is a period, as given.")
        if self.order and self.bins:
            problems.append("`order` names the periods, `bins` makes them; give one.")
        raise_all(problems, "The settings of the staleness study do not fit")
        _ = self.voting

    @property
    def voting(self) -> Voting:
        """The KNN vote."""
        return Voting(self.topk, self.weights)


def staleness(
    checkpoint: str | Path,
    banks: Sequence[str | Path],
    output: str | Path,
    *,
    queries: Sequence[str | Path] = (),
    settings: StalenessSettings | None = None,
    final: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Judge the memes of every period by banks of every age; write staleness.json, .md, .png and a manifest.

    Args:
        checkpoint: Folder with a head.
        banks: Feature stores that banks are made of; without `settings.key` one per period, in order.
        output: Folder to write to.
        queries: Feature stores that are judged, in the same number and order without a key; default is `banks`, then
            a meme is judged by older memes.
        settings: All else.
        final: Open test splits among what is judged.
        command: The command line, for the records.

    Returns:
        What staleness.json holds: `periods` (name, queries, bank rows, note), `cells` (period, age, frozen at, bank
        rows, metrics), `updated_gain` (period → accuracy of the updated bank minus that of the first, paired), `notes`.

    Raises:
        UserError: stores and head that do not belong together, periods that cannot be told or ordered, one period, a
            locked split.
    """
    settings = settings or StalenessSettings()
    checkpoint, output = Path(checkpoint), Path(output)
    check_output(output, "staleness")
    head = load_head(checkpoint).to(Accelerator().device)
    require_binary(head.config, checkpoint)
    judged = list(queries) or list(banks)
    twice = [str(place) for place, count in Counter(map(Path, banks)).items() if count > 1]
    raise_all(twice, "Bank stores that are given twice would vote twice; give each once")
    stores = {Path(place): read_features(place) for place in dict.fromkeys([*banks, *judged])}
    _check(stores, head, checkpoint)
    names, bank_periods, query_periods = _periods(stores, [Path(p) for p in banks], [Path(p) for p in judged], settings)
    opened = open_labels(
        {place: stores[place] for place in map(Path, judged)},
        [checkpoint],
        final=final,
        command=command,
        examples={place: stores[place] for place in map(Path, banks)},
    )
    bank, asked = (_embedded([stores[Path(place)] for place in places], head) for places in (banks, judged))
    study = _Study(names, bank, bank_periods, asked, query_periods, settings)
    result = study.run()
    manifest = run_manifest(
        "staleness",
        command=command,
        arguments=plain(vars(settings) | {"checkpoint": checkpoint, "banks": list(banks), "queries": list(judged)}),
        seed=settings.seed,
        test=opened,
        head_sha256=sha256_file(checkpoint / HEAD_WEIGHTS),
        features={str(place): plain(store_fingerprint(features)) for place, features in stores.items()},
    )
    write_json(output / "staleness.json", result)
    save_figure(_figure(result), output / "staleness.png")
    write_text(output / "staleness.md", _markdown(result, settings, command))
    write_json(output / MANIFEST_NAME, manifest)
    return result


def _check(stores: Mapping[Path, Features], head: MemeHead, checkpoint: Path) -> None:
    for place, features in stores.items():
        check_store(features, place)
        check_head_fits(head.config, checkpoint, features, place)
    fingerprints = {str(place): store_fingerprint(features) for place, features in stores.items()}
    check_same_origin(fingerprints)
    check_same_origin({str(checkpoint): head_fingerprint(checkpoint), **fingerprints})


def _periods(
    stores: Mapping[Path, Features], banks: Sequence[Path], judged: Sequence[Path], settings: StalenessSettings
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the periods in order, and the period of each bank row and of each query."""
    if settings.key is None:
        if len(banks) != len(judged):
            raise UserError(
                f"{len(banks)} bank stores and {len(judged)} query stores: without a period key each pair is a period; "
                "give as many of both, in order."
            )
        names = list(settings.order) or [place.absolute().name for place in banks]
        if len(names) != len(banks):
            raise UserError(f"--order names {len(names)} periods, there are {len(banks)} bank stores; name each once.")
        doubled = [f"{name} ({count} times)" for name, count in Counter(names).items() if count > 1]
        raise_all(doubled, "Two periods would have one name; name them with --order")
        numbers = [np.repeat(np.arange(len(names)), [len(stores[place]) for place in side]) for side in (banks, judged)]
    else:
        values = [
            (place, meme, features.extras[row].get(settings.key) if features.extras is not None else None)
            for place in dict.fromkeys([*banks, *judged])
            for features in (stores[place],)
            for row, meme in enumerate(features.ids)
        ]
        names, found = periods_of(values, settings.key, settings.order, settings.date_part, settings.bins)
        starts = dict(zip(stores, np.cumsum([0, *(len(features) for features in stores.values())]), strict=False))
        numbers = [
            np.concatenate([found[starts[place] : starts[place] + len(stores[place])] for place in side])
            for side in (banks, judged)
        ]
    if len(names) < 2:
        raise UserError(f"There is one period ({names[0]}); a bank can only age over two or more.")
    return names, numbers[0], numbers[1]


def _embedded(stores: Sequence[Features], head: MemeHead) -> Embeddings:
    first, *others = (Embeddings.of(features, head) for features in stores)
    for other in others:
        first = first.plus(other)
    return first


@dataclass(frozen=True)
class _Study:
    """Periods, bank rows and queries, all numbered."""

    names: list[str]
    bank: Embeddings
    bank_periods: np.ndarray
    queries: Embeddings
    query_periods: np.ndarray
    settings: StalenessSettings

    def run(self) -> dict[str, Any]:
        """Every cell of the matrix."""
        periods = [self._period(number) for number in range(len(self.names))]
        cells: list[dict[str, Any]] = []
        gains: dict[str, Any] = {}
        ready = [number for number, period in enumerate(periods) if number > 0 and period["judged"]]
        for number in track(((1, one) for one in ready), "Periods", len(ready), "periods"):
            asked = self.queries.select(np.flatnonzero(self.query_periods == number))
            correct: dict[int, np.ndarray] = {}
            for age in range(1, number + 1):
                bank = self.frozen(number - age)
                cell = {"period": self.names[number], "age": age, "frozen_at": self.names[number - age]}
                problem = self._unusable(bank)
                if problem:
                    cells.append({**cell, "bank_rows": len(bank), "why": problem})
                    continue
                predicted = knn_classify(asked, bank, self.settings.voting)
                correct[age] = predicted.verdicts == asked.labels
                estimated = self._estimate(predicted.scores[:, 0], asked.labels)
                cells.append({**cell, "bank_rows": len(bank), **estimated})
            if 1 in correct and number in correct and number > 1:
                gain = paired_gain(
                    correct[number], correct[1], samples=self.settings.bootstrap_samples, seed=self.settings.seed
                )
                gains[self.names[number]] = gain.as_dict()
        notes = [f"{period['name']}: {period['note']}" for period in periods if period["note"]]
        return {"periods": periods, "cells": cells, "updated_gain": gains, "notes": notes}

    def frozen(self, last: int) -> Embeddings:
        """The bank as it was after period `last`."""
        first = 0 if self.settings.window is None else last - self.settings.window + 1
        rows = np.flatnonzero((self.bank_periods >= first) & (self.bank_periods <= last))
        if self.settings.bank_size is not None and len(rows):
            rows = rows[nested_order(self.bank.labels[rows], self.settings.seed)[: self.settings.bank_size]]
        return self.bank.select(rows)

    def _unusable(self, bank: Embeddings) -> str:
        """Why a bank cannot vote; empty where it can."""
        if len(np.unique(bank.labels)) < 2:
            return "the bank has no memes" if not len(bank) else f"the bank holds class {bank.labels[0]} alone"
        if self.settings.bank_size is not None and len(bank) < self.settings.bank_size:
            return f"the bank has no {self.settings.bank_size} memes in equal parts of both classes"
        return ""

    def _period(self, number: int) -> dict[str, Any]:
        labels = self.queries.labels[self.query_periods == number]
        judged, note = len(labels) >= self.settings.min_memes, ""
        if not judged:
            note = f"not judged, {len(labels)} memes are fewer than {self.settings.min_memes}"
        elif len(np.unique(labels)) < 2:
            note = f"all memes are of class {labels[0]}, so the AUROC is undefined"
        return {
            "name": self.names[number],
            "queries": len(labels),
            "positives": int(labels.sum()),
            "bank_rows": int((self.bank_periods == number).sum()),
            "judged": judged,
            "note": note,
        }

    def _estimate(self, scores: np.ndarray, labels: np.ndarray) -> Cell:
        return estimate(
            [scores], labels, THRESHOLDS["rkc"], samples=self.settings.bootstrap_samples, seed=self.settings.seed
        )


def _markdown(result: Mapping[str, Any], settings: StalenessSettings, command: str) -> str:
    window = "all earlier periods" if settings.window is None else f"the last {settings.window} periods of its time"
    size = "" if settings.bank_size is None else f", {settings.bank_size} of them, half of each class"
    text = (
        "# Staleness of the bank\n\nRows: the period of the judged memes. Columns: how many periods old the bank is; "
        f"age 1 is the bank that is updated in every period. A bank holds memes of {window}{size}. K = "
        f"{settings.topk}, {settings.weights} weights; in brackets the {CONFIDENCE:.0%} interval over memes "
        f"(seed {settings.seed}).\n"
    )
    cells = {(cell["period"], cell["age"]): cell for cell in result["cells"]}
    ages = range(1, max((cell["age"] for cell in result["cells"]), default=0) + 1)
    judged = [period["name"] for period in result["periods"] if (period["name"], 1) in cells]
    for metric in STUDY_METRICS:
        rows = [[escape(name), *(_shown(cells.get((name, age)), metric) for age in ages)] for name in judged]
        header = ["period", *(f"age {age}" for age in ages)]
        text += f"\n## {METRIC_TITLES[metric]} by age\n\n{markdown_table(header, rows)}"
    if result["updated_gain"]:
        rows = [[escape(name), format_estimate(gain, signed=True)] for name, gain in result["updated_gain"].items()]
        header = ["period", "accuracy gained"]
        text += f"\n## Updated bank against the bank of the first period, paired\n\n{markdown_table(header, rows)}"
    rows = [
        [escape(one["name"]), str(one["queries"]), str(one["positives"]), str(one["bank_rows"]), escape(one["note"])]
        for one in result["periods"]
    ]
    header = ["period", "judged memes", "of class 1", "bank memes", "note"]
    text += f"\n## Periods\n\n{markdown_table(header, rows)}\n![Frozen against updated](staleness.png)\n"
    gaps = [f"- {escape(c['period'])}, age {c['age']}: {escape(c['why'])}.\n" for c in result["cells"] if "why" in c]
    text += f"\nCells without a value:\n\n{''.join(gaps)}" if gaps else ""
    return text + (f"\n## How this was made\n\n```sh\n{command}\n```\n" if command else "")


def _shown(cell: Mapping[str, Any] | None, metric: str) -> str:
    if cell is None:
        return ""
    return "–" if "why" in cell else format_estimate(cell[metric])


def _figure(result: Mapping[str, Any]) -> Figure:
    """One panel per metric: over the periods, the bank that was frozen at the first period and the updated one."""
    names = [period["name"] for period in result["periods"]]
    figure, axes = panels(len(STUDY_METRICS), width=max(4.6, 0.7 * len(names)))
    first = names[0]
    for axis, metric in zip(axes[0], STUDY_METRICS, strict=True):
        lines = (
            (f"frozen at {first}", lambda cell: cell["frozen_at"] == first, VERMILION, "s", "--", 0.05),
            ("updated every period", lambda cell: cell["age"] == 1, BLUE, "o", "-", -0.05),
        )
        for label, chosen, colour, marker, style, shift in lines:
            known = [
                (names.index(cell["period"]) + shift, cell[metric])
                for cell in result["cells"]
                if chosen(cell) and "why" not in cell and cell[metric]["value"] is not None
            ]
            items = [item for _, item in known]
            axis.errorbar(
                [x for x, _ in known],
                [item["value"] for item in items],
                yerr=error_bars(items),
                color=colour,
                marker=marker,
                linestyle=style,
                capsize=3,
                label=plain_text(label),
            )
        axis.set_xticks(range(1, len(names)), [plain_text(name) for name in names[1:]], rotation=30, ha="right")
        axis.set(xlabel="period of the judged memes", ylabel=f"RKC {METRIC_TITLES[metric]}")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, frameon=False)
    return figure
