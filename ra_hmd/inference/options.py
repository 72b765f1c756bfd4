"""Options of the commands that open a detector: the fields of these models are the commands' options.

A field's name is the option's (`base_model`: `--base-model`) unless it carries a `Flag`, its description is the
option's help, and its default and range are the option's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ra_hmd.core.choices import DType, EngineKind, Head, VoteWeights
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.inference.defences import Defences
from ra_hmd.models.pooling.settings import BackendSettings

if TYPE_CHECKING:
    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.explainer import Explainer
    from ra_hmd.models.checkpoint import Run
    from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
    from ra_hmd.retrieval.voting import Voting


FileFormat = Literal["jsonl", "csv", "parquet", "hateclipper-csv"]
"""Format of a prediction file."""


@dataclass(frozen=True)
class Flag:
    """Name of a field on the command line: an option such as `--input`, or "" for a positional argument."""

    name: str


class VotingOptions(Settings):
    """Options of the vote (see `Voting`)."""

    TITLE: ClassVar[str] = "vote"

    topk: int = Field(20, ge=1, description="K, number of neighbours that vote.")
    weights: VoteWeights = Field("arithmetic", description="Weights of the vote: arithmetic, mean or similarity.")
    min_similarity: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Neighbours below this cosine similarity do not vote; without any, the vote abstains.",
    )
    prior_correction: bool = Field(False, description="Give the classes of the bank equal weight.")

    @property
    def voting(self) -> "Voting":
        """The settings of the vote."""
        from ra_hmd.retrieval.voting import Voting

        return Voting(self.topk, self.weights, self.min_similarity, self.prior_correction)


class BankHeadOptions(VotingOptions):
    """Options of both heads that read the bank: the vote and the kernel head."""

    views: list[str] = Field(
        default_factory=list,
        description="What the kernel head compares: embedding (the default), hidden, untuned, or a view's NAME "
        "(docs/bank.md); several times.",
    )

    @property
    def kernel(self) -> "KernelSettings":
        """The settings of the kernel head."""
        from ra_hmd.retrieval.kernel_ridge.settings import kernel_settings

        return kernel_settings(self.views, balanced=self.prior_correction)


class ModelOptions(Settings):
    """Options of every command that opens a base model."""

    base_model: str | None = Field(None, description="Where the base model is now, if it was moved.")


class DetectorOptions(Defences, BankHeadOptions, ModelOptions, BackendSettings):
    """Options of `predict`, `explain`, `serve` and `console`: the detector, apart from its run."""

    TITLE: ClassVar[str] = "detector"

    head: Head | None = Field(
        None,
        description="Head that decides: lrc, rkc or krr (with --bank), or lmh; default: rkc with a bank, else lrc.",
    )
    bank: str | None = Field(
        None, description="Labelled memes that vote: a feature store, or an example bank (folder or URI)."
    )
    thresholds: Literal["stored", "official"] = Field(
        "stored", description="stored (beside the head, if there are any) or official."
    )
    abstain: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="Leave memes to a person whose probability is within this of the threshold's; default: 0.",
    )
    backbone: str | None = Field(
        None, description="Stage 1 run or encoder that the head was trained on, if not where the head's run says."
    )
    batch_size: int | None = Field(None, ge=1, description="Memes per forward pass; default: 16.")
    dtype: DType | None = Field(None, description="Precision: auto, float32, bfloat16 or float16.")
    known_memes: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Answer copies of labelled memes by their image hash, without the model, up to this distance of "
        "256 bits (31 is usual); default: off.",
    )
    known_turned: bool = Field(False, description="With --known-memes: rotated and mirrored images are copies too.")
    hash_lists: Annotated[list[Path], Flag("--hash-list")] = Field(
        default_factory=list, description="With --known-memes: file of hashes beside the bank; several times."
    )

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.known_memes is None and (self.known_turned or self.hash_lists):
            yield "--known-turned and --hash-list go with --known-memes DISTANCE; give it, for example 31."

    @property
    def defences(self) -> Defences:
        """The defences."""
        return Defences(**{name: getattr(self, name) for name in Defences.model_fields})

    def open(self, run: str | Path, *, lazy: bool = False) -> "Detector":
        """Open the detector of a run (see `Detector.from_run`).

        Raises:
            UserError: folders that are missing, or do not belong together.
        """
        from ra_hmd.inference.detector import Detector

        return Detector.from_run(
            run,
            self.bank,
            backbone=self.backbone,
            base_model=self.base_model,
            head=self.head,
            voting=self.voting,
            thresholds=self.thresholds,
            abstain=self.abstain or 0.0,
            batch_size=self.batch_size or 16,
            dtype=self.dtype,
            views=self.views,
            defences=self.defences,
            known_memes=self.known_memes,
            known_turned=self.known_turned,
            hash_lists=self.hash_lists,
            lazy=lazy,
            backend=self.backend_settings,
        )


class ServedDetectorOptions(DetectorOptions):
    """Options of the detector of a service."""

    abstain: float = Field(
        0.0, ge=0, lt=0.5, description="Leave memes to a person whose probability is within this of the threshold's."
    )


class LmmOptions(ModelOptions):
    """Options of `in-context`, and of `extract` beside others: the LMM that is run."""

    TITLE: ClassVar[str] = "model"

    checkpoint: str = Field(description="Stage 1 run, checkpoint, merged export, or with --backbone-only a model.")
    backbone_only: bool = Field(False, description="Run the LMM alone, without a Stage 1 run.")
    template: str | None = Field(None, description="With --backbone-only: LLaMA-Factory template.")
    config: Path | None = Field(
        None, description="With --backbone-only: Stage 1 YAML file whose prompt, sizes and precision the model has."
    )
    clusters: Path | None = Field(None, description="With --backbone-only: folder of clusters (docs/clusters.md).")
    guidance: Path | None = Field(
        None, description="With --backbone-only and --clusters: guidance for the prompts of each cluster."
    )
    dtype: DType = Field("auto", description="Precision: auto, float32, bfloat16 or float16.")
    fold_captions: bool = Field(
        False, description="Fold captions: one spelling for look-alikes, nothing invisible (docs/robustness.md)."
    )

    def open(self) -> "Run":
        """Open the run.

        Raises:
            UserError: the extra `lmm` is not installed; a missing folder, or one that is no run; clusters, guidance or
                a YAML file for a run that has its own.
        """
        from ra_hmd.models.meme_model import check_lmm

        check_lmm(self.checkpoint)
        return self._open().folding(self.fold_captions)

    def _open(self) -> "Run":
        from ra_hmd.models.checkpoint import open_backbone, open_run

        guides = {"clusters": self.clusters, "guidance": self.guidance}
        if self.backbone_only:
            return open_backbone(self.checkpoint, self.template, self.base_model, config=self.config, **guides)
        given = [f"--{name} {place}" for name, place in {**guides, "config": self.config}.items() if place is not None]
        if given:
            raise UserError(
                f"{' and '.join(given)}: a Stage 1 run has the clusters, the guidance and the settings that it was "
                "trained with; leave it out, or use --backbone-only."
            )
        return open_run(self.checkpoint, self.base_model)


class ExtractionOptions(LmmOptions, BackendSettings):
    """Options of `extract`: the LMM, and what runs it."""

    TITLE: ClassVar[str] = "model"


class RationaleOptions(Settings):
    """Options of rationales (see `Explainer`)."""

    TITLE: ClassVar[str] = "rationale"

    policy: Path | None = Field(None, description="Text file with your rules, for rationales (docs/explain.md).")
    question: Path | None = Field(None, description="Text file with another question (docs/explain.md).")
    neighbours: int = Field(0, ge=0, description="Number of nearest examples that the question for a rationale shows.")
    memes: list[Path] = Field(
        default_factory=list, description="Data of the bank's memes, for captions and images; several times."
    )
    engine: EngineKind = Field("auto", description="auto, transformers or vllm.")
    without_adapter: bool = Field(
        False, description="Generate with the base model alone; verdicts stay those of the run."
    )
    max_new_tokens: int = Field(256, ge=1, description="Length limit of a rationale, in tokens.")
    tensor_parallel_size: int = Field(1, ge=1, description="Number of GPUs that share the model (vllm).")

    def check(self) -> None:
        """Check everything that can be checked before a model is loaded.

        Raises:
            UserError: an unknown engine, missing files, a question without its slots.
        """
        from ra_hmd.inference.explainer import check_question
        from ra_hmd.models.generation.engines import choose_engine

        choose_engine(self.engine)
        texts = self.texts()
        if "question" in texts:
            check_question(texts["question"], texts["policy"] is not None, self.neighbours)
        if self.memes and not self.neighbours:
            raise UserError("--memes has captions of neighbours; give with --neighbours how many are shown.")
        for place in self.memes:
            if not place.exists():
                raise UserError(f"--memes {place} does not exist; give an imported folder, or a data file.")

    def texts(self) -> dict[str, Any]:
        """Texts of the policy (None without one) and, if there is one, of the question.

        Raises:
            UserError: a file that is missing, empty or not UTF-8.
        """
        from ra_hmd.inference.explainer import read_operator_text

        texts = {"policy": read_operator_text(self.policy), "question": read_operator_text(self.question)}
        return {name: text for name, text in texts.items() if name == "policy" or text is not None}

    def open(self, detector: "Detector") -> "Explainer":
        """Open the explainer of a detector's verdicts.

        Raises:
            UserError: see `Explainer.of`.
        """
        from ra_hmd.inference.explainer import Explainer
        from ra_hmd.inference.meme_lookup import open_meme_lookup

        return Explainer.of(
            detector,
            engine=self.engine,
            adapter=not self.without_adapter,
            lookup=open_meme_lookup(self.memes, detector.model) if self.memes else None,
            neighbours=self.neighbours,
            tensor_parallel_size=self.tensor_parallel_size,
            max_new_tokens=self.max_new_tokens,
            **self.texts(),
        )


class InputOptions(Settings):
    """Options of `predict` and `explain`: the memes, and where verdicts are written."""

    TITLE: ClassVar[str] = "input"
    URLS: ClassVar[frozenset[str]] = frozenset({"images", "source", "queries", "output", "media_dir"})

    images: Annotated[list[Path], Flag("")] = Field(
        default_factory=list, description="Images to classify; their verdicts are printed."
    )
    texts: Annotated[list[str], Flag("--text")] = Field(
        default_factory=list, description="Caption of each IMAGE, in order; default: read from the images."
    )
    source: Annotated[Path | None, Flag("--input")] = Field(
        None, description="Memes: .jsonl, .csv or .parquet file, or folder of images."
    )
    queries: Path | None = Field(None, description="Feature store, in place of memes; labels are ignored.")
    output: Path | None = Field(None, description="File to write; needed by --input and --queries.")
    style: Annotated[FileFormat | None, Flag("--format")] = Field(
        None, description="jsonl, csv, parquet or hateclipper-csv (id, prob_hate, pred_label)."
    )
    media_dir: Path | None = Field(None, description="With --input: folder that relative image paths start from.")
    as_json: Annotated[bool, Flag("--json")] = Field(
        False, description="With IMAGE: print a JSON object per line instead of a table."
    )
