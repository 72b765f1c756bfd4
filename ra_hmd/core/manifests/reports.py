"""Manifests of evaluations, predictions and experiments."""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest, Section
from ra_hmd.core.manifests.stores import BankReference, SetDescription


class SystemDescription(Section):
    """The system that was evaluated.

    Attributes:
        name: Kind of system and model.
        kind: Kind of the head's manifest.
        trained_on: Data set of the training rows, None where it is not stated; see also `trained`.
        shots: K of the K-shot list that the head was trained on.
    """

    name: str
    kind: str | None = None
    trained_on: str | None = None
    shots: int | None = None

    @property
    def trained(self) -> bool:
        """Whether the head was trained at all: a zero-shot head was not."""
        return "trained_on" in self.model_fields_set


class RuleDescription(Section):
    """Decision rule of a head.

    Attributes:
        thresholds: Thresholds [C].
        chosen: Whether they were chosen on dev.
    """

    thresholds: list[float]
    chosen: bool = False


class TestRecord(Section):
    """Test splits that a run opened.

    Attributes:
        final: Whether `--final` was given.
        test_sets: Place to split.
        opened_before: Head to the number of earlier evaluations that opened a test split.
    """

    final: bool | None = None
    test_sets: dict[str, str] = Field(default_factory=dict)
    opened_before: dict[str, int] = Field(default_factory=dict)


class EvaluationManifest(TestRecord, Manifest):
    """Manifest of an evaluation of one head, of several seeds, or of in-context learning.

    Attributes:
        arguments: Arguments; empty for several heads.
        runs: Head to its arguments, for several heads.
        seed: Seed of the resampling.
        system: The system; None for several heads, and in evaluations of earlier versions.
        systems: Head to its system, for several heads.
        sets: Query set to its description; empty in evaluations of earlier versions.
        head_sha256: Digest of the head's weights.
        bank: The labelled examples.
        decisions: Query set to head to rule; for several heads one level below the head's name.
        kernel: Description of the kernel head, and what each view gives; for several heads below the head's name.
        features: Store to its fingerprint.
        commands: Command lines.
        in_context: Settings that the scores of `ra-hmd in-context` depend on.
        examples: Source of the demonstrations of `ra-hmd in-context`.
        demonstrations: Statistics of the demonstrations of `ra-hmd in-context`.
        longest_prompt: Tokens of the longest prompt of `ra-hmd in-context`.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("evaluation",)
    REMEDY: ClassVar[str] = "give a folder of `ra-hmd evaluate`"

    arguments: dict[str, Any] = Field(default_factory=dict)
    runs: dict[str, dict[str, Any]] | None = None
    seed: int | None = None
    system: SystemDescription | None = None
    systems: dict[str, SystemDescription] | None = None
    sets: dict[str, SetDescription] = Field(default_factory=dict)
    head_sha256: str | None = None
    bank: BankReference | None = None
    decisions: dict[str, dict[str, RuleDescription | dict[str, RuleDescription]]] = Field(default_factory=dict)
    kernel: dict[str, Any] | None = None
    features: dict[str, dict[str, Any]] = Field(default_factory=dict)
    commands: list[str] = Field(default_factory=list)
    in_context: dict[str, Any] | None = None
    examples: SetDescription | None = None
    demonstrations: dict[str, Any] | None = None
    longest_prompt: int | None = None

    @property
    def all_systems(self) -> list[SystemDescription]:
        """The systems that were evaluated; empty where none is stated."""
        return list(self.systems.values()) if self.systems else [] if self.system is None else [self.system]

    @property
    def all_arguments(self) -> dict[str, Any]:
        """Arguments of the run, or of the first of several."""
        return next(iter(self.runs.values())) if self.runs else self.arguments

    def rules(self, label: str, head: str) -> Iterator[RuleDescription]:
        """Decision rules of a head on a query set, one per run; none where the file states none."""
        for name in self.runs if self.runs is not None else [None]:
            by_set: Any = self.decisions if name is None else self.decisions.get(name, {})
            rule = by_set.get(label, {}).get(head)
            if isinstance(rule, RuleDescription):
                yield rule


class CrossEvalManifest(Manifest):
    """Manifest of a cross-evaluation.

    Attributes:
        command: The command line.
        arguments: Arguments.
        seed: Seed of the resampling.
        final: Whether `--final` was given.
        test: Test splits that were opened.
        systems: System to its description; None in cross-evaluations of earlier versions.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("cross_eval",)

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    final: bool | None = None
    test: Any = None
    systems: dict[str, SystemDescription] | None = None


class StalenessManifest(Manifest):
    """Manifest of a staleness study.

    Attributes:
        command: The command line.
        arguments: Arguments.
        seed: Seed of the resampling.
        test: Test splits that were opened.
        head_sha256: Digest of the head's weights.
        features: Store to its fingerprint.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("staleness",)

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    test: TestRecord | None = None
    head_sha256: str | None = None
    features: dict[str, dict[str, Any]] = Field(default_factory=dict)


class AblationManifest(Manifest):
    """Manifest of an ablation.

    Attributes:
        command: The command line.
        quick: Whether it was a quick run.
        seeds: Seeds of the runs.
        topk: K.
        bootstrap_samples: Resamples of each interval.
        test: Folder of a head to the test splits that it opened.
        heads: Folder of a head to the digest of its weights.
        commands: Command line to its seconds.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("ablation",)

    command: str = ""
    quick: bool = False
    seeds: list[int] = Field(default_factory=list)
    topk: int | None = None
    bootstrap_samples: int | None = None
    test: dict[str, TestRecord] = Field(default_factory=dict)
    heads: dict[str, str] = Field(default_factory=dict)
    commands: dict[str, float] = Field(default_factory=dict)


class FewShotManifest(Manifest):
    """Manifest of a few-shot study.

    Attributes:
        command: The command line.
        arguments: Settings.
        seed: Seed of the resampling.
        final: Whether `--final` was given.
        test: Run folder, or arm without training, to the test splits that were opened.
        study: What every run depends on: data, splits, recipe, model, clusters and guidance.
        parameters: Arm to its number of trainable parameters.
        commands: Command line to its seconds.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("few_shot",)

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    final: bool | None = None
    test: dict[str, TestRecord] = Field(default_factory=dict)
    study: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, int] = Field(default_factory=dict)
    commands: dict[str, float] = Field(default_factory=dict)


class PipelineManifest(Manifest):
    """Record of the finished steps of `demo`, `ablate` or `few-shot`.

    Attributes:
        quick: Whether it is a quick run.
        study: What all steps of a few-shot study depend on.
        seconds: Command line to its seconds.
        files: Command line to a digest of the files that it names; empty in records of earlier versions.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("demo", "ablate", "few_shot_steps")
    REMEDY: ClassVar[str] = "give another --output"

    quick: bool = False
    study: dict[str, Any] | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


class ScoreSummary(Section):
    """Scores of a judge.

    Attributes:
        mean: `value`, `low`, `high`.
        median: Median.
        counts: Number of rationales with each of the scores 0 to 10.
    """

    mean: dict[str, Any]
    median: float
    counts: list[int]


class JudgeManifest(Manifest):
    """Manifest of a judged set of rationales.

    Attributes:
        command: The command line.
        arguments: Arguments.
        judge: Model, host and settings of the judge.
        rubric_sha256: Digest of the rubric.
        rationales_sha256: Digest of the rationales' file.
        references_sha256: Digest of the references' file.
        items: Number of rationales.
        graded: Number of them with a score.
        capped: Number of scores that were capped.
        verdicts_unknown: Number of rationales whose verdict is unknown.
        failures: Kind of failure to its number.
        score: Scores after the cap.
        raw_score: Scores as the judge gave them.
        usage: Tokens and cost.
        agreement: Agreement with another judge.
        notes: Remarks.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("judge",)

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    judge: dict[str, Any] = Field(default_factory=dict)
    rubric_sha256: str = ""
    rationales_sha256: str = ""
    references_sha256: str = ""
    items: int = 0
    graded: int = 0
    capped: int = 0
    verdicts_unknown: int = 0
    failures: dict[str, int] = Field(default_factory=dict)
    score: ScoreSummary
    raw_score: ScoreSummary
    usage: dict[str, Any] = Field(default_factory=dict)
    agreement: dict[str, Any] | None = None
    notes: list[str] = Field(default_factory=list)


class LeaderboardManifest(Manifest):
    """Data of a results page (`ra-hmd results`).

    Attributes:
        command: The command line.
        arguments: Arguments.
        columns: The data sets.
        results: The results.
        notes: Remarks.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("results",)

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    columns: list[dict[str, Any]] = Field(default_factory=list)
    results: list[dict[str, Any]] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class BankSearchManifest(TestRecord, Manifest):
    """Evidence of a bank for a query set (`ra-hmd bank search`).

    Attributes:
        arguments: Arguments.
        bank_version: Version of the bank.
        thresholds: Thresholds [C] of the vote.
        fingerprint: What the bank's embeddings depend on.
        queries: The queries with their neighbours.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("bank_search",)

    arguments: dict[str, Any] = Field(default_factory=dict)
    bank_version: int | None = None
    thresholds: list[float] = Field(default_factory=list)
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    queries: list[dict[str, Any]] = Field(default_factory=list)


class PredictionsManifest(Manifest):
    """Manifest of a predictions file (`<output>.manifest.json`).

    In the JSON file the key `format` is the file format, which was there first, and `manifest_format` the version of
    the manifest.

    Attributes:
        command: The command line.
        arguments: Arguments.
        style: File format of predictions on memes.
        rows: Number of rows.
        verdicts: Verdict to its number.
        output_sha256: Digest of the file.
        fingerprint: What the file depends on, for predictions on memes.
        notes: Remarks.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("predictions",)
    REMEDY: ClassVar[str] = "remove it, and run `ra-hmd predict` again"

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    style: str | None = None
    rows: int = 0
    verdicts: dict[str, int] = Field(default_factory=dict)
    output_sha256: str = ""
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        version = values.pop("format", self.FORMAT)
        style = {"format": values.pop("style")} if "style" in values else {}
        return {**values, **style, "manifest_format": version}


class TinyEncoderManifest(Manifest):
    """Manifest of a tiny encoder that `ra-hmd tiny-encoder --train-on` trained.

    Attributes:
        arguments: Arguments.
        data: Training data.
        history: Losses.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("tiny_encoder",)

    arguments: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    history: Any = None
