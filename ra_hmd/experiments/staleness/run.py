"""Staleness study (`ra-hmd staleness`): accuracy of the KNN vote and of kernel ridge regression as the
bank ages.

Memes are ordered in numbered periods of time, or of domains. A bank frozen at period s holds memes of periods up to s.
Queries of period t are classified with banks of every age t − s ≥ 1; the bank of age 1 is updated in every period.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, sha256_file, write_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import THRESHOLDS, Head
from ra_hmd.core.manifests import StalenessManifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.evaluation.bank_update import nested_order
from ra_hmd.evaluation.metrics.intervals import paired_gain
from ra_hmd.evaluation.metrics.runs import estimate
from ra_hmd.experiments.common import regress, require_binary
from ra_hmd.experiments.staleness.config import StalenessSettings
from ra_hmd.experiments.staleness.periods import periods_of
from ra_hmd.experiments.staleness.report import write_staleness_report
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_output,
    check_same_origin,
    check_same_views,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.scoring.knn_classifier import knn_classify


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
    """Classify the memes of every period with banks of every age; write staleness.json, .md, .png and a manifest.

    Args:
        checkpoint: Folder with a head.
        banks: Feature stores that banks are made of; without `settings.key` one per period, in order.
        output: Output folder.
        queries: Feature stores to classify, without a key as many as `banks`, in the same order. Default: `banks`, so
            that each meme is classified by older memes.
        settings: Settings of periods, banks and vote.
        final: Score test splits too.
        command: Command line for the records.

    Returns:
        Content of staleness.json: `periods` (name, queries, bank rows, note), `cells` (period, age, frozen at, bank
        rows, metrics of the RKC, and those of the KRR under `krr`), `updated_gain` (period → paired accuracy gain of
        the updated bank over the first, by the RKC), `updated_gain_krr` (the same by the KRR), `notes`.

    Raises:
        UserError: incompatible stores and head, periods that are unknown or without an order, a single period, a test
            split without `final`.
    """
    settings = settings or StalenessSettings()
    checkpoint, output = Path(checkpoint), Path(output)
    bank_places = [Path(place) for place in banks]
    query_places = [Path(place) for place in queries] or bank_places
    check_output(output, "staleness")
    head = load_head(checkpoint).to(Accelerator().device)
    require_binary(head.config, checkpoint)
    stores = {place: read_features(place) for place in dict.fromkeys([*bank_places, *query_places])}
    _check(stores, head, checkpoint)
    names, bank_periods, query_periods = _periods(stores, bank_places, query_places, settings)
    opened = open_labels(
        {place: stores[place] for place in query_places}, [checkpoint], final=final, command=command,
        examples={place: stores[place] for place in bank_places},
    )  # fmt: skip
    bank, query_rows = (_embed([stores[place] for place in places], head) for places in (bank_places, query_places))
    result = _Study(names, bank, bank_periods, query_rows, query_periods, settings).run()
    places = {"checkpoint": checkpoint, "banks": list(banks), "queries": list(queries) or list(banks)}
    manifest = StalenessManifest.new(
        command=command,
        arguments=plain(settings.model_dump() | places),
        seed=settings.seed,
        test=opened,
        head_sha256=sha256_file(checkpoint / HEAD_WEIGHTS),
        features={str(place): plain(store_fingerprint(features)) for place, features in stores.items()},
    )
    write_json(output / "staleness.json", result)
    write_staleness_report(result, settings, command, output)
    write_manifest(output / MANIFEST_NAME, manifest)
    return result


def _check(stores: Mapping[Path, Features], head: MemeHead, checkpoint: Path) -> None:
    for place, features in stores.items():
        check_store(features, place)
        check_head_fits(head.config, checkpoint, features, place)
    fingerprints = {str(place): store_fingerprint(features) for place, features in stores.items()}
    check_same_origin(fingerprints)
    check_same_origin({str(checkpoint): head_fingerprint(checkpoint), **fingerprints})
    check_same_views({str(place): features.manifest.views for place, features in stores.items()})


def _periods(
    stores: Mapping[Path, Features], banks: Sequence[Path], queries: Sequence[Path], settings: StalenessSettings
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the periods in order, and the period of each bank row and of each query."""
    twice = [str(place) for place, count in Counter(banks).items() if count > 1]
    raise_all(twice, "Bank stores that are given twice would vote twice; give each once")
    if settings.key is None:
        if len(banks) != len(queries):
            raise UserError(
                f"{len(banks)} bank stores and {len(queries)} query stores: without a period key each pair is a "
                "period; give as many of both, in order."
            )
        names = list(settings.order) or [place.absolute().name for place in banks]
        if len(names) != len(banks):
            raise UserError(f"--order names {len(names)} periods, there are {len(banks)} bank stores; name each once.")
        doubled = [f"{name} ({count} times)" for name, count in Counter(names).items() if count > 1]
        raise_all(doubled, "Two periods would have one name; name them with --order")
        numbers = [
            np.repeat(np.arange(len(names)), [len(stores[place]) for place in side]) for side in (banks, queries)
        ]
    else:
        values = [
            (place, meme, features.extras[row].get(settings.key) if features.extras is not None else None)
            for place in dict.fromkeys([*banks, *queries])
            for features in (stores[place],)
            for row, meme in enumerate(features.ids)
        ]
        names, found = periods_of(values, settings.key, settings.order, settings.date_part, settings.bins)
        starts = dict(zip(stores, np.cumsum([0, *(len(features) for features in stores.values())]), strict=False))
        numbers = [
            np.concatenate([found[starts[place] : starts[place] + len(stores[place])] for place in side])
            for side in (banks, queries)
        ]
    if len(names) < 2:
        raise UserError(f"There is one period ({names[0]}); a bank can only age over two or more.")
    return names, numbers[0], numbers[1]


def _embed(stores: Sequence[Features], head: MemeHead) -> Embeddings:
    """Embed stores one after the other."""
    first, *others = (Embeddings.of(features, head) for features in stores)
    for other in others:
        first = first.plus(other)
    return first


@dataclass(frozen=True)
class _Study:
    """Periods, bank rows and queries with their period numbers."""

    names: list[str]
    bank: Embeddings
    bank_periods: np.ndarray
    queries: Embeddings
    query_periods: np.ndarray
    settings: StalenessSettings

    def run(self) -> dict[str, Any]:
        """Compute every cell of the matrix."""
        periods = [self._period(number) for number in range(len(self.names))]
        cells: list[dict[str, Any]] = []
        gains: dict[Head, dict[str, Any]] = {"rkc": {}, "krr": {}}
        ready = [number for number, period in enumerate(periods) if number > 0 and period["judged"]]
        for number in track(((1, one) for one in ready), "Periods", len(ready), "periods"):
            queries = self.queries.select(np.flatnonzero(self.query_periods == number))
            correct: dict[Head, dict[int, np.ndarray]] = {"rkc": {}, "krr": {}}
            for age in range(1, number + 1):
                bank = self.frozen(number - age)
                cell = {"period": self.names[number], "age": age, "frozen_at": self.names[number - age]}
                problem = self._unusable(bank)
                if problem:
                    cells.append({**cell, "bank_rows": len(bank), "why": problem})
                    continue
                scores: dict[Head, np.ndarray] = {
                    "rkc": knn_classify(queries, bank, self.settings.voting).scores[:, 0],
                    "krr": regress(queries, bank, self.settings.kernel),
                }
                for head, found in scores.items():
                    correct[head][age] = (found >= THRESHOLDS[head]) == queries.labels
                estimated = {head: self._estimate(found, queries.labels, head) for head, found in scores.items()}
                cells.append({**cell, "bank_rows": len(bank), **estimated["rkc"], "krr": estimated["krr"]})
            for head, right in correct.items():
                if 1 in right and number in right and number > 1:
                    gain = paired_gain(
                        right[number], right[1], samples=self.settings.bootstrap_samples, seed=self.settings.seed
                    )
                    gains[head][self.names[number]] = gain.as_dict()
        notes = [f"{period['name']}: {period['note']}" for period in periods if period["note"]]
        return {
            "periods": periods,
            "cells": cells,
            "updated_gain": gains["rkc"],
            "updated_gain_krr": gains["krr"],
            "notes": notes,
        }

    def frozen(self, last: int) -> Embeddings:
        """The bank as it was after period `last`."""
        first = 0 if self.settings.window is None else last - self.settings.window + 1
        rows = np.flatnonzero((self.bank_periods >= first) & (self.bank_periods <= last))
        if self.settings.bank_size is not None and len(rows):
            rows = rows[nested_order(self.bank.labels[rows], self.settings.seed)[: self.settings.bank_size]]
        return self.bank.select(rows)

    def _unusable(self, bank: Embeddings) -> str:
        """Reason why a bank cannot vote, or an empty string."""
        if len(np.unique(bank.labels)) < 2:
            return "the bank has no memes" if not len(bank) else f"the bank holds class {bank.labels[0]} alone"
        if self.settings.bank_size is not None and len(bank) < self.settings.bank_size:
            return f"the bank has no {self.settings.bank_size} memes in equal parts of both classes"
        return ""

    def _period(self, number: int) -> dict[str, Any]:
        labels = self.queries.labels[self.query_periods == number]
        judged, note = len(labels) >= self.settings.min_memes, ""
        if not judged:
            note = f"not evaluated, {len(labels)} memes are fewer than {self.settings.min_memes}"
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

    def _estimate(self, scores: np.ndarray, labels: np.ndarray, head: Head) -> dict[str, dict[str, Any]]:
        return estimate(
            [scores], labels, THRESHOLDS[head], samples=self.settings.bootstrap_samples, seed=self.settings.seed
        )
