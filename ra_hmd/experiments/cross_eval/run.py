"""Cross-evaluation (`ra-hmd cross-eval`): systems trained on one data set, tested on others, by head and bank.

This is the low-resource protocol: nothing is trained, and RKC and KRR may use labelled memes of the target.

Source: RA-HMD's low-resource setting (K-shot examples come from the training split of the target).
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, read_json, sha256_bytes, sha256_file, write_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import BANK_HEADS, THRESHOLDS
from ra_hmd.core.manifests import CrossEvalManifest, ViewDescription, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.data.k_shot import check_same_data, read_shot_lists, shot_rows
from ra_hmd.evaluation.metrics.runs import estimate
from ra_hmd.evaluation.provenance import describe_head, describe_store
from ra_hmd.experiments.common import HeadView, require_binary
from ra_hmd.experiments.cross_eval.config import CROSS_METRICS, CrossEvalArguments, HeadAndBank, System, Target
from ra_hmd.experiments.cross_eval.report import write_cross_report
from ra_hmd.experiments.pipeline import ra_hmd
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_output,
    check_same_origin,
    check_same_views,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import STORE_MANIFEST, Features, read_features
from ra_hmd.features.test_lock import open_labels, split_name, store_digest
from ra_hmd.features.views import OWN_VIEWS, UNTUNED
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead, load_head, read_head_config
from ra_hmd.retrieval.embeddings import Embeddings

_CELL_FORMAT = 2


class _MissingError(Exception):
    """A cell cannot be computed, for a reason, and with the command that provides what it lacks."""

    def __init__(self, reason: str, command: str = "") -> None:
        super().__init__(reason)
        self.reason, self.command = reason, command


@dataclass(frozen=True)
class _Store:
    """A checked feature store, with a digest of its content."""

    place: Path
    features: Features
    digest: str


def cross_eval(args: CrossEvalArguments, *, final: bool = False, command: str = "") -> dict[str, Any]:
    """Compute the matrix of systems, targets, heads and banks.

    Each finished cell is kept in the folder `cells` under a key of everything that it depends on, so that a later run
    computes only new or changed cells. Missing cells are listed with the command that provides what they lack.

    Args:
        args: Settings.
        final: Score test splits too; each time is recorded beside the head.
        command: Command line for the records.

    Returns:
        Content of cross_eval.json: `cells` and `missing`.

    Raises:
        UserError: a test split without `final`; incompatible stores and heads; K-shot lists with memes of the query
            split or memes that the train store lacks; nothing to compute.
    """
    check_output(args.output_dir, "cross_eval")
    for system in args.systems.values():
        require_binary(read_head_config(system.head), system.head)
    shots = {
        name: {} if target.k_shot is None else read_shot_lists(target.k_shot, target.train_split, args.shots)
        for name, target in args.targets.items()
    }
    pairs = [(system, target) for system in args.systems for target in args.targets]
    _check_open(args, pairs, final=final)
    cells: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    openings: list[dict[str, Any]] = []
    total = sum(len(list(_kinds(args, system, shots[target]))) for system, target in pairs)
    for entry in track(
        ((1, one) for one in _compute(args, shots, openings, final, command)), "Cross-evaluation", total, "cells"
    ):
        (missing if "reason" in entry else cells).append(entry)
    if not cells:
        reasons = [f"{one['reason']} {one['command']}".strip() for one in missing]
        reasons = reasons or [f"heads: {list(args.heads)}: features of an encoder have no LMH; add lrc or rkc."]
        raise_all(list(dict.fromkeys(reasons)), "Nothing can be evaluated yet")
    result = {"cells": cells, "missing": missing}
    arguments = plain(args.model_dump())
    manifest = CrossEvalManifest.new(
        command=command,
        arguments=arguments,
        seed=args.seed,
        final=final,
        test=openings,
        systems={name: describe_head(system.head) for name, system in args.systems.items()},
    )
    write_json(args.output_dir / "cross_eval.json", result)
    write_cross_report(args, result, command, args.output_dir)
    write_manifest(args.output_dir / MANIFEST_NAME, manifest)
    return result


def _kinds(args: CrossEvalArguments, system: str, shots: Iterable[int]) -> Iterator[HeadAndBank]:
    return args.kinds(encoder=args.systems[system].of_encoder(), shots=shots)


def _check_open(args: CrossEvalArguments, pairs: Sequence[tuple[str, str]], *, final: bool) -> None:
    """Check that no test split would be opened without `final`, before anything is computed."""
    if final:
        return
    for system, target in pairs:
        place = args.systems[system].store(target, args.targets[target].split)
        if (place / STORE_MANIFEST).is_file():
            open_labels({place: read_features(place)}, [], final=False, command="")


def _compute(
    args: CrossEvalArguments,
    shots: Mapping[str, Mapping[int, Mapping[int, list[str]]]],
    openings: list[dict[str, Any]],
    final: bool,
    command: str,
) -> Iterator[dict[str, Any]]:
    """Yield cells as they are finished, in the order of systems and targets."""
    for name, system in args.systems.items():
        judge = _SystemJudge(args, name, system)
        for target_name in args.targets:
            pair = _Pair(judge, target_name, shots[target_name], final=final, command=command)
            for kind in _kinds(args, name, shots[target_name]):
                where = {"system": name, "trained_on": judge.trained_on, "target": target_name, **kind.to_dict()}
                try:
                    yield {**where, **pair.cell(kind)}
                except _MissingError as gap:
                    yield {**where, "reason": gap.reason, "command": gap.command}
            openings += pair.openings


class _SystemJudge:
    """One system: its head and its training bank."""

    def __init__(self, args: CrossEvalArguments, name: str, system: System) -> None:
        self.args, self.name, self.system = args, name, system
        self.trained_on = system.trained_on or name
        self.head: MemeHead = load_head(system.head).to(Accelerator().device)
        self.head_sha256 = sha256_file(system.head / HEAD_WEIGHTS)
        self._origins = {str(system.head): head_fingerprint(system.head)}
        self._views: dict[str, Mapping[str, ViewDescription]] = {}
        self._bank: tuple[_Store, Embeddings] | None = None

    def read(self, target: str, split: str) -> _Store:
        """Read a store of this system's features.

        Raises:
            _MissingError: the store does not exist.
            UserError: the store does not fit the head.
        """
        place = self.system.store(target, split)
        if not (place / STORE_MANIFEST).is_file():
            raise _MissingError(f"{place} does not exist.", self._features_command(target, split, place))
        features = read_features(place)
        check_store(features, place)
        check_head_fits(self.head.config, self.system.head, features, place)
        stated = store_fingerprint(features)
        for known, fingerprint in self._origins.items():
            check_same_origin({known: fingerprint, str(place): stated})
        if len(self._origins) == 1:  # in case the head records no origin: later stores are compared with the first
            self._origins[str(place)] = stated
        self._views[str(place)] = features.manifest.views
        check_same_views(self._views)
        digest = sha256_bytes(store_digest(features).encode(), features.content.encode())
        return _Store(place, features, digest)

    def check_views(self, store: _Store, target: str, split: str, names: Sequence[str]) -> None:
        """Raise `_MissingError` where a store lacks a view that is to be compared."""
        lacking = [name for name in names if name not in (*OWN_VIEWS, *store.features.views)]
        if UNTUNED in lacking and store.features.manifest.fingerprint.get("adapter", UNTUNED) is None:
            raise _MissingError(f"{store.place}: its model has no adapter, so that `hidden` is its view `{UNTUNED}`.")
        if lacking:
            views = " ".join(f"--views {name if name == UNTUNED else f'{name}=ENCODER'}" for name in lacking)
            command = self._features_command(target, split, store.place)
            raise _MissingError(f"{store.place} has no view {', '.join(map(repr, lacking))}.", f"{command} {views}")

    def embedded(self, store: _Store, target: str) -> Embeddings:
        """Embed the store's rows, with ids that are unique over data sets."""
        return _qualified(Embeddings.of(store.features, self.head), target)

    def training_bank(self) -> tuple[_Store, Embeddings]:
        """The system's training split, read once."""
        if self._bank is None:
            target = self.args.targets.get(self.trained_on, Target())
            store = self.read(self.trained_on, target.train_split)
            self._bank = store, self.embedded(store, self.trained_on)
        return self._bank

    def _features_command(self, target: str, split: str, place: Path) -> str:
        """Command that creates a missing store with the encoder or LMM of the head's features."""
        known = self.args.targets.get(target, Target())
        options = {"data": known.data or target, "split": split, "output": place}
        encoder = self.system.encoder_options()
        if encoder:
            return shlex.join(ra_hmd("encode", **encoder, **options))
        return shlex.join(ra_hmd("extract", checkpoint=self.system.checkpoint or self.system.head, **options))


class _Pair:
    """One system on one target; stores are read when they are first needed."""

    def __init__(
        self,
        judge: _SystemJudge,
        target: str,
        shots: Mapping[int, Mapping[int, list[str]]],
        *,
        final: bool,
        command: str,
    ) -> None:
        self.judge, self.target, self.shots = judge, target, shots
        self.openings: list[dict[str, Any]] = []
        self._final, self._command = final, command
        self._kept: dict[str, Any] = {}

    def cell(self, kind: HeadAndBank) -> dict[str, Any]:
        """Compute the cell of a head and bank, or read it from an earlier run.

        Raises:
            _MissingError: a store that it needs does not exist.
        """
        args = self.judge.args
        queries = self._once("queries", self._read_queries)
        if kind.head == "lmh" and queries.features.lmh_score is None:
            raise _MissingError(f"{queries.place} has no LMH scores.")
        if kind.head == "krr":
            self._check_views(kind)
        banks = self._banks(kind)
        key = {
            "format": _CELL_FORMAT,
            "head": self.judge.head_sha256,
            "queries": queries.digest,
            "kind": kind.to_dict(),
            "banks": [name for name, _ in banks],
            "vote": [args.topk, args.weights] if kind.head == "rkc" else None,
            "bootstrap": [args.bootstrap_samples, args.seed],
            "metrics": CROSS_METRICS,
        }
        if kind.head == "krr":
            key["kernel"] = kind.kernel.model_dump()
        digest = sha256_bytes(json.dumps(key, sort_keys=True).encode())
        path = args.output_dir / "cells" / f"{digest}.json"
        described = {
            "store": str(queries.place),
            "split": split_name(queries.features, queries.place),
            "judged": describe_store(queries.place, queries.features.manifest),
        }
        if path.is_file():
            return {**described, **read_json(path)}
        self._once("opened", self._open)
        seen: HeadView = self._once("seen", self._see)
        if kind.head in BANK_HEADS:
            embedded = [build() for _, build in banks]
            runs = [
                seen.vote(bank, args.voting) if kind.head == "rkc" else seen.regress(bank, kind.kernel)
                for bank in embedded
            ]
            sizes = sorted({len(bank) for bank in embedded})
        else:
            runs, sizes = [seen.scores[kind.head]], [0]
        cell: dict[str, Any] = {"rows": len(queries.features), "bank_rows": sizes[0] if len(sizes) == 1 else sizes}
        cell |= estimate(
            runs,
            queries.features.labels,
            THRESHOLDS[kind.head],
            samples=args.bootstrap_samples,
            seed=args.seed,
            names=CROSS_METRICS,
        )
        write_json(path, cell)
        return {**described, **cell}

    def _check_views(self, kind: HeadAndBank) -> None:
        """Raise `_MissingError` where queries or bank lack a view that the KRR compares."""
        judge, names = self.judge, kind.kernel.views
        queries: _Store = self._once("queries", self._read_queries)
        target = judge.args.targets[self.target]
        judge.check_views(queries, self.target, target.split, names)
        if kind.bank == "train":
            store, _ = judge.training_bank()
            split = judge.args.targets.get(judge.trained_on, Target()).train_split
            judge.check_views(store, judge.trained_on, split, names)
        else:
            judge.check_views(self._once("train", self._read_train), self.target, target.train_split, names)

    def _banks(self, kind: HeadAndBank) -> list[tuple[str, Callable[[], Embeddings]]]:
        """Digest and loader of the bank of each run: one, or one per seed of a K-shot bank."""
        if kind.bank is None:
            return []
        if kind.bank == "train":
            store, bank = self.judge.training_bank()
            self._refuse_leak(bank.ids, f"the training bank {store.place}")
            return [(store.digest, lambda: bank)]
        store = self._once("train", self._read_train)
        if kind.bank == "target":
            self._refuse_leak(_qualify(store.features.ids, self.target), f"the bank {store.place}")
            return [(store.digest, self._target_bank)]
        banks: list[tuple[str, Callable[[], Embeddings]]] = []
        lists = self.judge.args.targets[self.target].k_shot
        check_same_data(lists or "", store.place, store.features.manifest.dataset)
        for seed, ids in self.shots[kind.shots or 0].items():
            place = f"the {kind.shots}-shot list of seed {seed} in {lists}"
            self._refuse_leak(_qualify(ids, self.target), place)
            rows = np.array(shot_rows(ids, store.features.ids, place, store.place))
            self._check_classes(store.features.labels[rows], store, place)
            digest = sha256_bytes(store.digest.encode(), *(name.encode() for name in ids))
            banks.append((digest, partial(self._select_target, rows)))
        return banks

    def _check_classes(self, labels: np.ndarray, store: _Store, place: str) -> None:
        present = np.unique(labels)
        if len(present) < 2:
            raise UserError(
                f"{place} holds memes of class {present[0]} alone, by the labels in {store.place}: it was sampled by "
                "another task's classes, or without --per-class; sample it again."
            )

    def _refuse_leak(self, ids: Sequence[str], place: str) -> None:
        queries: _Store = self._once("queries", self._read_queries)
        shared = sorted(set(ids) & set(_qualify(queries.features.ids, self.target)))
        if shared:
            names = [name.partition("\0")[2] for name in shared[:3]]
            raise UserError(
                f"{len(shared)} memes of {place} are among the queries, {queries.place}, for example "
                f"{names}: a leak. Take the examples from the training split."
            )

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def _read_queries(self) -> _Store:
        return self.judge.read(self.target, self.judge.args.targets[self.target].split)

    def _read_train(self) -> _Store:
        return self.judge.read(self.target, self.judge.args.targets[self.target].train_split)

    def _target_bank(self) -> Embeddings:
        store: _Store = self._once("train", self._read_train)
        return self._once("bank", lambda: self.judge.embedded(store, self.target))

    def _select_target(self, rows: np.ndarray) -> Embeddings:
        return self._target_bank().select(rows)

    def _see(self) -> HeadView:
        store: _Store = self._once("queries", self._read_queries)
        seen = HeadView.of(store.features, store.place, self.judge.head)
        return replace(seen, rows=_qualified(seen.rows, self.target))

    def _open(self) -> bool:
        store: _Store = self._once("queries", self._read_queries)
        opened = open_labels(
            {store.place: store.features}, [self.judge.system.head], final=self._final, command=self._command
        )
        self.openings.append(opened)
        return True


def _qualify(ids: Sequence[str], target: str) -> list[str]:
    """Make ids unique over data sets, which may all have a meme `0001`."""
    return [f"{target}\0{name}" for name in ids]


def _qualified(rows: Embeddings, target: str) -> Embeddings:
    return replace(rows, ids=_qualify(rows.ids, target))
