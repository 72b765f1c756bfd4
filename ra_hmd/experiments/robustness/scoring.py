"""Scores of a system on clean and attacked memes, by rules that were chosen on clean dev memes.

Shapes: Q memes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ra_hmd.attacks.pairing import clean_id
from ra_hmd.bank.backends.base import is_bank
from ra_hmd.core.artifacts import plain, sha256_bytes, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.progress import track
from ra_hmd.evaluation.metrics.selective import confidence
from ra_hmd.experiments.common import require_binary
from ra_hmd.experiments.robustness.config import RobustnessSettings, System
from ra_hmd.experiments.robustness.extraction import FeatureMaker
from ra_hmd.experiments.robustness.scores import CLEAN, DEV, HeadScores, SystemScores, read_scores, write_scores
from ra_hmd.experiments.robustness.suite import Suite
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import open_labels, store_digest
from ra_hmd.inference.defences import mean_over_copies
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.scoring.bank_kernel import kernel_classifier_of
from ra_hmd.scoring.operating_point import OperatingPoint, check_dev, choose_operating_point
from ra_hmd.scoring.reference_set import ReferenceSet, open_reference_set
from ra_hmd.scoring.scores import ScoredSet, score_set

_FORMAT = 1


class SystemScorer:
    """Scores one system; what was scored before is read from `scores/<system>.parquet`.

    Args:
        suite: The attacked sets.
        name: Name of the system.
        maker: What made its features.

    Raises:
        UserError: stores, head and bank that do not fit together; a leak.
    """

    def __init__(self, suite: Suite, name: str, maker: FeatureMaker) -> None:
        self.suite, self.name, self.maker = suite, name, maker
        self.settings: RobustnessSettings = suite.settings
        self.system: System = self.settings.system(name)
        folder = self.system.head or self.system.checkpoint
        if folder is None:
            raise UserError(f"System {name!r} has no head.")
        self.head_folder: Path = folder
        self.head: MemeHead = load_head(folder).to(Accelerator().device)
        require_binary(self.head.config, folder)

    def __call__(self, *, final: bool, command: str) -> SystemScores:
        """Score the system, or read its scores.

        Args:
            final: Whether test data may be scored.
            command: Command line, for the record.
        """
        places = {name: self._read(place) for name, place in self._places.items()}
        copies = {name: [self._read(place) for place in self._copies(name)] for name in places}
        bank_place, bank_stores = self._bank_stores()
        digest = self._digest(places, copies, bank_place, bank_stores)
        path = self.settings.output_dir / "scores" / f"{self.name}.parquet"
        known = read_scores(path, digest)
        if known is not None:
            return replace(known, bank={**known.bank, "place": bank_place})
        evaluated = {self._places[name]: one for name, one in places.items() if name != DEV}
        opened = open_labels(
            evaluated, [self.head_folder], final=final, command=command, examples=bank_stores
        )  # fmt: skip
        examples = self._examples(bank_place, bank_stores, places)
        scored, point = self._score(places, copies, examples)
        found = replace(self._collect(scored, point, examples, digest), opened=opened)
        write_scores(path, found)
        return found

    @cached_property
    def _places(self) -> dict[str, Path]:
        maker, settings = self.maker, self.settings
        names = (CLEAN, *(variant.name for variant in self.suite.variants))
        places = {name: maker.store(self.system, name, settings.split, settings.memes) for name in names}
        return {DEV: maker.store(self.system, CLEAN, settings.dev_split), **places}

    def _copies(self, name: str) -> list[Path]:
        """Stores of a set with changed copies of the pictures."""
        settings = self.settings
        key = (CLEAN, settings.dev_split, None) if name == DEV else (name, settings.split, settings.memes)
        return [self.maker.store(self.system, *key, copy) for copy in range(1, self.system.transforms + 1)]

    def _read(self, place: Path) -> Features:
        features = read_features(place)
        check_store(features, place)
        check_head_fits(self.head.config, self.head_folder, features, place)
        check_same_origin(
            {str(self.head_folder): head_fingerprint(self.head_folder), str(place): store_fingerprint(features)}
        )
        return features

    def _bank_stores(self) -> tuple[str | None, dict[Path, Features]]:
        """Place of the bank, and the feature stores that its rows are from, the attacked ones last."""
        system, maker = self.system, self.maker
        place = system.bank if system.bank_split is None else str(maker.store(system, CLEAN, system.bank_split))
        stores = {} if place is None or is_bank(place) else {Path(place): self._read(Path(place))}
        for variant in self.suite.taught(system.bank_attacks):
            attacked = maker.store(system, variant.name, self.settings.train_split, system.bank_attacked_memes)
            stores[attacked] = self._read(attacked)
        return place, stores

    def _digest(
        self,
        places: Mapping[str, Features],
        copies: Mapping[str, Sequence[Features]],
        bank: str | None,
        stores: Mapping[Path, Features],
    ) -> str:
        settings = self.settings
        stated = {
            "format": _FORMAT,
            "head": sha256_file(self.head_folder / HEAD_WEIGHTS),
            "sets": {name: [store_digest(one), one.content] for name, one in places.items()},
            "copies": {name: [one.content for one in each] for name, each in copies.items()},
            "bank": [store_digest(one) + one.content for one in stores.values()],
            "state": None if bank is None or Path(bank) in stores else dict(self._open_bank(bank, {}).state),
            "voting": asdict(settings.voting),
            "kernel": self.system.kernel.model_dump(),
            "rules": [settings.criterion, settings.calibration],
            "heads": settings.heads,
        }
        return sha256_bytes(json.dumps(plain(stated), sort_keys=True).encode())

    def _open_bank(self, place: str, stores: Mapping[Path, Features]) -> ReferenceSet:
        added = bool(self.system.bank_attacks)
        return open_reference_set(place, stores, self.head, self.head_folder, in_memory=added)

    def _examples(
        self, bank: str | None, stores: Mapping[Path, Features], places: Mapping[str, Features]
    ) -> tuple[ReferenceSet, int] | None:
        """The bank, and how many of its rows are attacked memes."""
        if bank is None:
            return None
        known = {**stores, **{self._places[name]: one for name, one in places.items()}}
        examples = self._open_bank(bank, known)
        attacked = [Embeddings.of(one, self.head) for place, one in stores.items() if str(place) != bank]
        if attacked:
            rows = examples.in_memory().plus(*attacked)
            examples = ReferenceSet(rows, examples.state, views=examples.views)
        shared = {clean_id(name) for name in examples.rows.ids} & set(places[CLEAN].ids)
        if shared:
            raise UserError(
                f"{len(shared)} memes of the bank {bank} are among those that are measured, for example "
                f"{sorted(shared)[:3]}: a leak. Give a bank of training memes."
            )
        return examples, sum(map(len, attacked))

    def _score(
        self,
        places: Mapping[str, Features],
        copies: Mapping[str, Sequence[Features]],
        examples: tuple[ReferenceSet, int] | None,
    ) -> tuple[dict[str, ScoredSet], OperatingPoint]:
        settings, problem = self.settings, self.head.config.problem
        rows = None if examples is None else examples[0].rows
        kernel = None
        if rows is not None and "krr" in settings.heads:
            kernel = kernel_classifier_of(rows, problem, self.system.kernel)
        self._check_dev(places)
        scored = {}
        for name, features in track(
            ((len(one), (name, one)) for name, one in places.items()),
            f"Scoring {self.name}", sum(map(len, places.values())), "memes",
        ):  # fmt: skip
            every = [features, *copies[name]]
            each = [score_set(name, self._places[name], one, self.head, rows, settings.voting, kernel) for one in every]
            found = mean_over_copies(each[0], each[1:]) if len(each) > 1 else each[0]
            found.scores = {head: found.scores[head] for head in settings.heads if head in found.scores}
            scored[name] = found
        state = {"place": "none", "sha256": ""} if examples is None else examples[0].state
        point = choose_operating_point(
            scored[DEV], self._places[DEV], places[DEV], head=self.head_folder, bank=state,
            voting=settings.voting, criterion=settings.criterion, calibration=settings.calibration,
            kernel=self.system.kernel,
        )  # fmt: skip
        for one in scored.values():
            one.rules = dict(point.rules)
        return scored, point

    def _check_dev(self, places: Mapping[str, Features]) -> None:
        """Raise `UserError` where thresholds would be chosen on test data, or on memes that are measured."""
        check_dev(self._places[DEV], places[DEV], self.head.config.problem)
        shared = sorted(set(places[DEV].ids) & set(places[CLEAN].ids))
        if shared:
            raise UserError(
                f"{len(shared)} memes of `dev_split` are measured too, for example {shared[:3]}; thresholds are not "
                "chosen on what they are measured on."
            )

    def _collect(
        self,
        scored: Mapping[str, ScoredSet],
        point: OperatingPoint,
        examples: tuple[ReferenceSet, int] | None,
        digest: str,
    ) -> SystemScores:
        bank: dict[str, Any] = {"place": None, "rows": 0, "attacked": 0}
        if examples is not None:
            bank = {"place": examples[0].state["place"], "rows": len(examples[0].rows.ids), "attacked": examples[1]}
        rules: dict[str, Any] = {
            head: {
                "threshold": float(rule.thresholds[0]),
                "calibration": {"kind": rule.calibration.kind, **rule.calibration.parameters},
                "uncalibrated": point.uncalibrated.get(head),
                "dev": dict(point.values[head]),
            }
            for head, rule in point.rules.items()
        }
        sets = {name: {head: _head_scores(one, head) for head in one.scores} for name, one in scored.items()}
        clean = scored[CLEAN]
        ids = [clean_id(name) for name in clean.queries.ids]
        for name, one in scored.items():
            if name != DEV and [clean_id(found) for found in one.queries.ids] != ids:
                raise UserError(f"{self._places[name]} holds other memes than {self._places[CLEAN]}; remove both.")
        return SystemScores(ids, clean.labels, sets, scored[DEV].labels, rules, bank, digest)


def _head_scores(scored: ScoredSet, head: Head) -> HeadScores:
    verdicts, probabilities = scored.verdicts(head), scored.probabilities(head)
    abstained = scored.abstained if head in BANK_HEADS else None
    certain = confidence(probabilities, verdicts, scored.problem, abstained)
    return HeadScores(scored.scores[head][:, 0], probabilities[:, 0], verdicts, certain)
