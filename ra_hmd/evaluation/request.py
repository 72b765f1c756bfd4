"""What an evaluation is asked for."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.calibration import CalibrationKind
from ra_hmd.scoring.thresholds import CRITERIA, Criterion


@dataclass(frozen=True)
class Choice:
    """Where thresholds and calibration come from.

    Attributes:
        dev: Feature store to choose on now; what it gives is stored beside the head.
        thresholds: `stored` takes what is stored beside the head, or the official ones; `official` takes those.
        criterion: What a threshold must be best at on dev.
        calibration: Map from scores to probabilities.
    """

    dev: str | Path | None = None
    thresholds: Literal["stored", "official"] = "stored"
    criterion: Criterion = "macro_f1"
    calibration: CalibrationKind = "temperature"

    def __post_init__(self) -> None:
        choose("thresholds", self.thresholds, ("stored", "official"))
        choose("criterion", self.criterion, CRITERIA)
        choose("calibration", self.calibration, get_args(CalibrationKind))
        if self.dev is not None and self.thresholds == "official":
            raise UserError("`thresholds: official` and a dev store contradict each other; leave one of them out.")


@dataclass(frozen=True)
class Plan:
    """What `evaluate` was asked for; see there."""

    checkpoints: Mapping[str, Path]
    bank: str | Path
    queries: Mapping[str, Path]
    output: Path
    voting: Voting
    update: Path | None
    update_sizes: Sequence[int]
    samples: int
    seed: int
    final: bool
    choice: Choice
    compare: Sequence[Path]
    groups: Sequence[str]
    before: Path | None
    commands: Sequence[str]

    def labelled(self) -> list[Path]:
        """Folders of the stores whose rows are examples; an example bank is none."""
        bank = [] if is_bank(self.bank) else [Path(self.bank)]
        return [*bank, *([self.update] if self.update is not None else [])]

    def stores(self) -> list[Path]:
        """Folders of all stores, each once, the bank first."""
        dev = [Path(self.choice.dev)] if self.choice.dev is not None else []
        return list(dict.fromkeys([*self.labelled(), *self.queries.values(), *dev]))

    def command(self) -> str:
        """The command line of `ra-hmd evaluate` that does the same."""
        words: list[Any] = ["ra-hmd", "evaluate"]
        for option, values in (
            ("checkpoint", self.checkpoints.values()),
            ("bank", [self.bank]),
            ("queries", self.queries.values()),
            ("output", [self.output]),
            ("topk", [self.voting.topk]),
            ("weights", [self.voting.weights]),
            ("compare", self.compare),
            ("groups", self.groups),
        ):
            words += [word for value in values for word in (f"--{option}", value)]
        if self.voting.min_similarity is not None:
            words += ["--min-similarity", self.voting.min_similarity]
        words += ["--prior-correction"] * self.voting.prior_correction + ["--final"] * self.final
        if self.choice.dev is not None:
            words += ["--dev", self.choice.dev, "--criterion", self.choice.criterion]
            words += ["--calibration", self.choice.calibration]
        elif self.choice.thresholds == "official":
            words += ["--thresholds", "official"]
        if self.update is not None:
            words += ["--update", self.update, "--update-sizes", ",".join(map(str, self.update_sizes))]
        if self.before is not None:
            words += ["--before", self.before]
        words += ["--bootstrap-samples", self.samples, "--seed", self.seed]
        return shlex.join(map(str, words))
