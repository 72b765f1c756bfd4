"""Manifests of trained models: Stage 1 runs, heads on features, their decisions, and example banks."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ra_hmd.core.heads import Head
from ra_hmd.core.manifests.base import Manifest, Section
from ra_hmd.core.manifests.stores import BankReference, EncoderReference, StoreReference, ViewDescription
from ra_hmd.core.problem import ProblemType


class BaseModelReference(Section):
    """The LMM that a Stage 1 run adapts.

    Attributes:
        path: Folder or hub name.
        fingerprint: See `fingerprint_model`.
        loading: Options of LLaMA-Factory that decide how the model is loaded.
        adapters: Adapters that were merged into it before training.
        adapter_digests: Their digests; None in runs of earlier versions.
    """

    path: str = ""
    fingerprint: str = ""
    loading: dict[str, Any] = Field(default_factory=dict)
    adapters: list[str] = Field(default_factory=list)
    adapter_digests: list[str] | None = None


class DataDescription(Section):
    """A data file of a Stage 1 run.

    Attributes:
        rows: Number of memes.
        rows_per_class: Class to number of memes.
        fingerprint: Digest of the memes.
    """

    rows: int | None = None
    rows_per_class: dict[Any, int] = Field(default_factory=dict)
    fingerprint: str | None = None


class BestCheckpoint(Section):
    """The checkpoint of a Stage 1 run that was best on the evaluation set.

    Attributes:
        checkpoint: Its folder.
        value: Its metric.
    """

    checkpoint: str | None = None
    value: float | None = None


class OfficialOrigin(Section):
    """The official RA-HMD checkpoint that a run was converted from.

    Attributes:
        folder: Its folder.
        classifier_sha256: Digest of its classifier.
        adapter_sha256: Digest of its adapter.
        assumed: Settings that it does not state, in sentences.
    """

    folder: str = ""
    classifier_sha256: str = ""
    adapter_sha256: str = ""
    assumed: list[str] = Field(default_factory=list)


class HeadReference(Section):
    """The head that a training began with.

    Attributes:
        path: Its folder.
        sha256: Digest of its weights.
        kind: Kind of its manifest, None without one.
    """

    path: str
    sha256: str = ""
    kind: str | None = None


class HeadRunManifest(Manifest):
    """Base of the manifests of folders with a head.

    Attributes:
        arguments: Arguments of the run.
        seed: Its seed.
        base_model: The LMM, of Stage 1 runs and of heads that began with one's.
        inputs: How memes become tokens (`InputSettings`).
        encoder: The encoder, of a head on an encoder's features.
        features: Role (`train`, `dev`) to the feature store.
        init_head: The head that training began with.
        head_sha256: Digest of the weights.
        best_epoch: Epoch that was kept.
        notes: Remarks on the run.
    """

    arguments: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    best_epoch: int | None = None
    head_sha256: str | None = None
    features: dict[str, StoreReference] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    init_head: HeadReference | None = None
    base_model: BaseModelReference | None = None
    inputs: dict[str, Any] | None = None
    encoder: EncoderReference | None = None

    @property
    def train_store(self) -> StoreReference:
        """The feature store that the head was trained on; one that states nothing where there is none."""
        return self.features.get("train", StoreReference())

    @property
    def model_name(self) -> str:
        """Last part of `model_path`."""
        return Path(self.model_path).name

    @property
    def model_path(self) -> str:
        """Path or hub name of the encoder, else of the LMM; empty where neither is stated."""
        model = self.encoder or self.base_model
        return "" if model is None else model.path

    @property
    def model_fingerprint(self) -> str | None:
        """Fingerprint of the encoder or the LMM."""
        stated = self.base_model.fingerprint if self.encoder is None and self.base_model is not None else ""
        return stated or self.train_store.fingerprint.get("model")

    @property
    def shots(self) -> int | None:
        """K of the K-shot list that the head was trained on."""
        return self.arguments.get("shots") if self.arguments.get("k_shot") else None


class Stage1Manifest(HeadRunManifest):
    """Manifest of a Stage 1 run, of its checkpoints and of its merged export.

    Attributes:
        command: Command line of a conversion.
        finetuning_type: `lora`, `freeze` or `full`.
        world_size: Number of processes.
        head: Settings of the head (`HeadConfig`).
        experts: Settings of the experts (`ExpertSettings`); None for a run without.
        data: Role (`train`, `eval`) to the data file.
        step: Training step of the weights.
        best: The best checkpoint so far.
        official: Origin of a run that was converted from an official checkpoint.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("stage1",)
    REMEDY: ClassVar[str] = "give the output_dir of a Stage 1 run"

    base_model: BaseModelReference = Field(default_factory=BaseModelReference)
    command: str = ""
    finetuning_type: str | None = None
    world_size: int | None = None
    head: dict[str, Any] = Field(default_factory=dict)
    experts: dict[str, Any] | None = None
    data: dict[str, DataDescription] = Field(default_factory=dict)
    step: int | None = None
    best: BestCheckpoint | None = None
    official: OfficialOrigin | None = None

    @property
    def assumptions(self) -> list[str]:
        """Settings that an official checkpoint does not state, in sentences; empty for other runs."""
        return [] if self.official is None else self.official.assumed

    def argument(self, group: str, name: str) -> Any:
        """An argument of the host, None where the run did not record it.

        Args:
            group: `model`, `data`, `training` or `finetuning`.
            name: Name of the argument.
        """
        return (self.arguments.get(group) or {}).get(name)


class TrainedHeadManifest(HeadRunManifest):
    """Manifest of a head that Stage 2 or `train-head` trained on features."""

    KINDS: ClassVar[tuple[str, ...]] = ("stage2", "head")


class LinearProbeManifest(HeadRunManifest):
    """Manifest of a linear probe.

    Attributes:
        command: The command line.
        c: Inverse strength of the penalty.
        dev: Score on dev of each value of C that was tried.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("linear_probe",)

    command: str = ""
    c: float | None = None
    dev: list[Any] = Field(default_factory=list)


class ZeroShotManifest(HeadRunManifest):
    """Manifest of a zero-shot head.

    Attributes:
        command: The command line.
        prompts: The sentences of each output.
        logit_scale: Logit scale of the encoder.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("zero_shot",)

    command: str = ""
    prompts: dict[str, Any] = Field(default_factory=dict)
    logit_scale: float | None = None


class SeedsManifest(Manifest):
    """Manifest of a folder of runs over seeds.

    Attributes:
        arguments: Arguments of the runs.
        seeds: The seeds.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("stage2_seeds", "head_seeds")

    arguments: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int] = Field(default_factory=list)


class SweepManifest(Manifest):
    """Manifest of a folder of runs over settings.

    Attributes:
        arguments: Arguments of the runs.
        best: Number of the best trial.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("stage2_sweep", "head_sweep")

    arguments: dict[str, Any] = Field(default_factory=dict)
    best: int | None = None


class ProblemDescription(Section):
    """Labels of a head or a bank.

    Attributes:
        kind: `binary`, `single_label` or `multi_label`.
        outputs: Number of outputs.
    """

    kind: ProblemType
    outputs: int = 1


class HeadDecision(Section):
    """Thresholds and calibration of one head.

    Attributes:
        thresholds: Thresholds [C].
        calibration: `kind`, and the parameters of the map.
        dev: The criterion on dev, `official` and `chosen`.
        uncalibrated: Why there is no calibration.
    """

    thresholds: list[float]
    calibration: dict[str, Any]
    dev: dict[str, Any]
    uncalibrated: str | None = None


class DevReference(Section):
    """The dev set that thresholds were chosen on.

    Attributes:
        place: Folder of the store.
        split: Split.
        rows: Number of memes that were used.
        sha256: Digest of the store.
        ids: The memes that were used.
        left_out: Memes of the store that were not used, because they are judged.
    """

    place: str
    split: str = ""
    rows: int
    sha256: str = ""
    ids: list[str]
    left_out: list[str] = Field(default_factory=list)


class DecisionManifest(Manifest):
    """Thresholds and calibrations that were chosen on dev (`decision.json`).

    Attributes:
        criterion: What the thresholds are best at.
        problem: Labels of the head.
        head_sha256: Digest of the head's weights.
        heads: Head to its decision.
        bank: The bank that voted.
        voting: Settings of the vote.
        dev: The dev set.
        kernel: Settings of the kernel head; None where none was chosen for.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("decision",)
    REMEDY: ClassVar[str] = "remove it and run with `--dev` again"

    criterion: str
    problem: ProblemDescription
    head_sha256: str
    heads: dict[Head, HeadDecision]
    bank: BankReference
    voting: dict[str, Any]
    dev: DevReference
    kernel: dict[str, Any] | None = None


class BankManifest(Manifest):
    """Settings of an example bank that never change.

    Attributes:
        backend: `faiss` or `milvus`.
        dimension: D.
        problem: Labels of the rows.
        fingerprint: What the embeddings depend on.
        index: Kind of index.
        recall_target: Least recall@20 of an approximate search.
        seed: Seed of the index.
        views: Further views of the rows that the bank keeps.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("bank",)
    FORMAT: ClassVar[int] = 2  # that of banks with further views; others have 1
    REMEDY: ClassVar[str] = "give an example bank (`ra-hmd bank create`)"

    backend: str = "faiss"
    dimension: int
    problem: ProblemDescription
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    index: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    recall_target: float = 0.99
    seed: int = 0
    views: dict[str, ViewDescription] = Field(default_factory=dict)
