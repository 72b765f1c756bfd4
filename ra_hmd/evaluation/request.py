"""Settings of an evaluation."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import as_path
from ra_hmd.retrieval.embeddings import EMBEDDING
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.calibration import CalibrationKind
from ra_hmd.scoring.thresholds import Criterion

UPDATE_KEY = "bank_update"
"""The one key of metrics.json that is not a query set."""


class OperatingPointSettings(Settings):
    """Source of the thresholds and the calibration."""

    TITLE: ClassVar[str] = "operating point"
    URLS: ClassVar[frozenset[str]] = frozenset({"dev"})

    dev: Path | None = Field(
        default=None,
        description="Feature store to choose thresholds and calibration on; the result is stored beside the head.",
    )
    thresholds: Literal["stored", "official"] = Field(
        default="stored",
        description="stored: those stored beside the head, or the official ones where there are none; official: 0.5 "
        "for LMH and LRC, 0 for RKC.",
    )
    criterion: Criterion = Field(default="macro_f1", description="Metric that a chosen threshold maximises on dev.")
    calibration: CalibrationKind = Field(
        default="temperature", description="Map from scores to probabilities that is fitted on dev."
    )

    def _problems(self) -> Iterator[str]:
        if self.dev is not None and self.thresholds == "official":
            yield "`thresholds: official` and a dev store contradict each other; leave one of them out."


@dataclass(frozen=True)
class EvaluationRequest:
    """The arguments of `evaluate`, checked, with a name for each head and each query set.

    Attributes:
        checkpoints: Name → folder of each head.
        bank: Feature store of the labelled examples, or an example bank.
        queries: Name → feature store of each query set.
        output: Output folder.
        voting: Settings of the KNN vote.
        kernel: Settings of the kernel head.
        operating_point: Source of thresholds and calibration.
        update: Feature store whose rows are added to the bank, if any.
        update_sizes: Numbers of rows to add.
        update_draws: Number of samples of each size.
        bootstrap_samples: Resamples behind each interval.
        seed: Seed of the resamples and of the update's samples.
        final: Whether test splits may be scored.
        compare: Earlier evaluations to compare with.
        groups: Fields to break results down by.
        before: Folder with the head of the "before" panel of the bank's projection, if given.
        commands: Commands that the report lists.
    """

    checkpoints: Mapping[str, Path]
    bank: str | Path
    queries: Mapping[str, Path]
    output: Path
    voting: Voting
    kernel: KernelSettings
    operating_point: OperatingPointSettings
    update: Path | None
    update_sizes: Sequence[int]
    update_draws: int
    bootstrap_samples: int
    seed: int
    final: bool
    compare: Sequence[Path]
    groups: Sequence[str]
    before: Path | None
    commands: Sequence[str]

    def __post_init__(self) -> None:
        if self.bootstrap_samples < 0:
            raise UserError(f"bootstrap_samples is {self.bootstrap_samples}, it must not be negative.")
        if self.update_draws < 1:
            raise UserError(f"update_draws is {self.update_draws}, at least one sample of each size is needed.")

    def example_stores(self) -> list[Path]:
        """Feature stores whose rows are labelled examples: the bank, unless it is an example bank, and the update."""
        bank = [] if is_bank(self.bank) else [as_path(self.bank)]
        return [*bank, *([self.update] if self.update is not None else [])]

    def stores(self) -> list[Path]:
        """All feature stores, each once, the bank first."""
        dev = [] if self.operating_point.dev is None else [self.operating_point.dev]
        return list(dict.fromkeys([*self.example_stores(), *self.queries.values(), *dev]))

    def command(self) -> str:
        """The equivalent command line of `ra-hmd evaluate`."""
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
            ("views", () if self.kernel.views == (EMBEDDING,) else self.kernel.views),
        ):
            words += [word for value in values for word in (f"--{option}", value)]
        if self.voting.min_similarity is not None:
            words += ["--min-similarity", self.voting.min_similarity]
        words += ["--prior-correction"] * self.voting.prior_correction + ["--final"] * self.final
        chosen = self.operating_point
        if chosen.dev is not None:
            words += ["--dev", chosen.dev, "--criterion", chosen.criterion, "--calibration", chosen.calibration]
        elif chosen.thresholds == "official":
            words += ["--thresholds", "official"]
        if self.update is not None:
            words += ["--update", self.update, "--update-sizes", ",".join(map(str, self.update_sizes))]
            words += ["--update-draws", self.update_draws] if self.update_draws > 1 else []
        if self.before is not None:
            words += ["--before", self.before]
        words += ["--bootstrap-samples", self.bootstrap_samples, "--seed", self.seed]
        return shlex.join(map(str, words))


def name_queries(queries: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Map the name of each query set, which is its folder's name, to its folder.

    Raises:
        UserError: no query set, two of one name, or a reserved name.
    """
    named: dict[str, Path] = {}
    if not queries:
        raise UserError("No query set is given; name at least one feature store.")
    for folder in map(as_path, [queries] if isinstance(queries, str | Path) else queries):
        name = folder.absolute().name
        if name in named:
            raise UserError(f"Query sets {named[name]} and {folder} are both called {name!r}; rename one folder.")
        if name == UPDATE_KEY:
            raise UserError(f"A query set cannot be called {name!r}, metrics.json uses that name; rename {folder}.")
        named[name] = folder
    return named
