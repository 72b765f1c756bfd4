"""Settings that every training of a head on stored features shares."""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from ra_hmd.core.config import Rate, Settings, unknown_keys
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem, ProblemType
from ra_hmd.models.losses import ClassWeights
from ra_hmd.retrieval.voting import VoteWeights, Voting
from ra_hmd.training.reporting import ReportTo

SelectBy = Literal[
    "dev_rkc_auroc",
    "dev_lrc_auroc",
    "dev_rkc_accuracy",
    "dev_lrc_accuracy",
    "dev_rkc_macro_f1",
    "dev_lrc_macro_f1",
]
FusionSetting = Literal["none", "align", "concat", "cross", "cross_nd", "align_concat", "image", "text"]

FUSION_SHAPE = ("map_dim", "mapping_layers")
SHAPE = ("num_layers", "proj_dim", "problem_type", "output_dim", "embedding", "fusion", *FUSION_SHAPE)
"""Settings of a fresh head that `init_head` brings with it."""

_NOT_SWEPT = (
    "train",
    "dev",
    "output_dir",
    "init_head",
    "seed",
    "seeds",
    "sweep",
    "select_by",
    "shot_seed",
    "report_to",
)


class HeadArguments(Settings):
    """Settings of a training; the defaults are Hate-CLIPper's. Test data is not among them.

    Attributes:
        KIND: Kind of the manifests of its runs.
        FRESH: Values of a fresh head where the settings are null.

    Raises:
        UserError: values that do not fit or contradict each other, all listed together.
    """

    URLS: ClassVar[frozenset[str]] = frozenset({"train", "dev"})
    KIND: ClassVar[str]
    FRESH: ClassVar[Mapping[str, Any]]

    train: Path = Field(description="Feature store of the training split; also the bank of the KNN vote on dev.")
    output_dir: Path = Field(description="Folder for the trained head, the curves and the manifest.")
    dev: Path | None = Field(
        default=None,
        description="Feature store of the development split, to choose the epoch; null: keep the last epoch.",
    )
    init_head: Path | None = Field(
        default=None, description="Run or folder with a head to start from; null: a fresh head."
    )
    fusion: FusionSetting | None = Field(
        default=None,
        description="How a fresh head joins image and text features: align, concat, cross, cross_nd, align_concat, "
        "image, text; none: the store's vector as it is; null where the store has one vector (docs/stage2.md).",
    )
    map_dim: int | None = Field(
        default=None, ge=1, description="n, width of each modality's projection (1024 if null); with fusion."
    )
    mapping_layers: int | None = Field(
        default=None, ge=0, description="Linear layers of each projection (1 if null; 0: none); with fusion."
    )
    map_dropout: Rate | None = Field(
        default=None, description="Dropout after each of them; null: the default, or init_head's."
    )
    num_layers: int | None = Field(
        default=None,
        ge=1,
        description="Linear layers of a fresh head behind the fusion, the output among them: Hate-CLIPper's m "
        "pre-output layers are num_layers − 1. Null: the command's default; init_head brings its own.",
    )
    proj_dim: int | None = Field(
        default=None, ge=1, description="Width of a fresh head's embedding (1024 if null); init_head brings its own."
    )
    dropout: tuple[Rate, ...] | None = Field(
        default=None,
        description="Dropout after each hidden block, one value for all or one each; null: the default.",
    )
    input_dropout: Rate | None = Field(
        default=None,
        description="Dropout on the features or the fused vector; null: the default, or init_head's.",
    )
    embedding: Literal["relu", "linear"] | None = Field(
        default=None,
        description="Embedding of a fresh head: output of its last block (relu if null), or before the ReLU (RGCL).",
    )
    problem_type: ProblemType | None = Field(
        default=None,
        description="binary, single_label or multi_label, of a fresh head (binary if null).",
    )
    output_dim: int | None = Field(
        default=None, ge=1, description="C, classes of a fresh head (1 if null, which is binary)."
    )
    class_weights: ClassWeights = Field(
        default="none",
        description="balanced: each class weighs the same in the losses; effective_number: between that and none.",
    )
    class_balance_beta: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="β of class_weights effective_number: 0 is none, towards 1 balanced.",
    )
    classification_loss: Literal["cross_entropy", "focal"] = Field(
        default="cross_entropy",
        description="Loss of the logistic head: cross_entropy (BCE where classes are binary) or focal.",
    )
    focal_gamma: float = Field(default=2.0, ge=0, description="γ of classification_loss focal.")
    batch_size: int = Field(default=64, ge=1, description="Memes per step.")
    epochs: int = Field(default=20, ge=1, description="Passes over the training split.")
    lr: float = Field(default=1e-4, gt=0, description="AdamW learning rate, constant.")
    weight_decay: float = Field(default=1e-4, ge=0, description="AdamW weight decay; biases have none.")
    grad_clip: float = Field(
        default=0.1, gt=0, description="Largest gradient norm; longer gradients are scaled down to it."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="no",
        description="Matrix products of training in bf16, or in fp16 with loss scaling; weights, losses and dev scores "
        "stay in float32. Meant for GPUs; a CPU computes the same, and is seldom faster.",
    )
    topk: int = Field(default=20, ge=1, description="K of the KNN vote on dev.")
    weights: VoteWeights = Field(
        default="arithmetic",
        description="Rank weights of the KNN vote on dev: arithmetic (K, K−1, …, 1) or mean.",
    )
    select_by: SelectBy = Field(
        default="dev_lrc_auroc",
        description="Dev score that chooses the epoch: name the head that will be deployed.",
    )
    patience: int | None = Field(
        default=None, ge=1, description="Stop after so many epochs without a better dev score; null: never."
    )
    k_shot: Path | None = Field(
        default=None, description="Lists of `ra-hmd data k-shot`: train, and vote on dev, with one of them only."
    )
    shots: int | None = Field(default=None, ge=1, description="With k_shot: K of the list.")
    shot_seed: int = Field(
        default=0,
        ge=0,
        description="With k_shot: seed of the list; with `seeds`, that of the first run, and the next takes +1.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of a fresh head's weights, of the batches and of dropout.")
    seeds: int = Field(
        default=1, ge=1, description="Runs with seed, seed + 1, …: folders seed-42, … and mean ± std in seeds.json."
    )
    sweep: dict[str, Any] | None = Field(
        default=None,
        description="Setting → list of values: every combination is run; dev chooses (sweep.json).",
    )
    report_to: tuple[ReportTo, ...] = Field(
        default=(),
        exclude=True,  # changes nothing in the head: a finished run is the same run
        description="Where losses and dev scores of each epoch are reported, as in Stage 1: none, tensorboard, wandb, "
        "mlflow, swanlab, or a list of them.",
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        """One name, or `none`, as the host's files have it."""
        return () if value in (None, "none", ["none"]) else (value,) if isinstance(value, str) else value

    @property
    def problem(self) -> Problem:
        """Classification problem of a fresh head."""
        return Problem(self.problem_type or "binary", 1 if self.output_dim is None else self.output_dim)

    @property
    def voting(self) -> Voting:
        """KNN vote on dev."""
        return Voting(self.topk, self.weights)

    @property
    def gamma(self) -> float:
        """γ of the classification loss; 0 is cross-entropy."""
        return self.focal_gamma if self.classification_loss == "focal" else 0.0

    def trials(self) -> Iterator[tuple[dict[str, Any], Self]]:
        """Yield each combination of the sweep with its settings, in the order of the grid; one, {}, without a sweep."""
        grid = self.sweep or {}
        for number, values in enumerate(product(*grid.values())):
            point = dict(zip(grid, values, strict=True))
            folder = self.output_dir / f"trial-{number:03d}" if self.sweep else self.output_dir
            yield point, self.replace(**point, sweep=None, output_dir=folder)

    def runs(self) -> Iterator[Self]:
        """Yield the settings of each seed's run."""
        for number in range(self.seeds):
            seed = self.seed + number
            folder = self.output_dir / f"seed-{seed}" if self.seeds > 1 else self.output_dir
            shot_seed = self.shot_seed + number * (self.k_shot is not None)
            yield self.replace(seed=seed, seeds=1, shot_seed=shot_seed, output_dir=folder)

    def _problems(self) -> Iterator[str]:
        try:
            _ = self.problem
        except UserError as error:
            yield str(error)
        yield from self._initial_head_problems()
        if self.k_shot is not None and self.shots is None:
            yield "`k_shot` is set: choose one of its lists with `shots`."
        if self.k_shot is None:
            for name in ("shots", "shot_seed"):
                if getattr(self, name):
                    yield f"`{name}` is set, but there is no `k_shot` to take a list from."
        if self.patience is not None and self.dev is None:
            yield "`patience` is set, but there is no `dev` to see an improvement on."
        if self.dev is not None and self.dev.absolute() == self.train.absolute():
            yield f"`dev` and `train` are both {self.dev}: the epoch would be chosen on training data."
        for name in ("train", "dev", "init_head"):
            path = getattr(self, name)
            if path is not None and path.absolute() == self.output_dir.absolute():
                yield f"`output_dir` is `{name}` ({path}): choose another folder, it would be overwritten."
        yield from self._sweep_problems()

    def _initial_head_problems(self) -> Iterator[str]:
        if self.init_head is not None:
            for name in SHAPE:
                if getattr(self, name) is not None:
                    yield f"`{name}` is set and so is `init_head`, whose head brings its own; remove one of them."
        if self.fusion == "none":
            for name in (*FUSION_SHAPE, "map_dropout"):
                if getattr(self, name) is not None:
                    yield f"`{name}` is set, and `fusion: none` has no use for it; remove one of them."

    def _sweep_problems(self) -> Iterator[str]:
        if self.sweep is None:
            return
        if not self.sweep:
            yield f"`sweep` is {self.sweep!r}, a mapping from settings to lists of values is needed."
        problems = [f"`sweep`: {text}" for text in unknown_keys(self.sweep, type(self).model_fields)]
        problems += [f"`sweep.{name}` cannot be swept; remove it." for name in self.sweep if name in _NOT_SWEPT]
        problems += [f"`sweep.{name}` is {values!r}, a list of values is needed."
                     for name, values in self.sweep.items() if not isinstance(values, list) or not values]  # fmt: skip
        if self.dev is None:
            problems.append("`sweep` needs `dev`, which chooses among the trials.")
        yield from problems
        for values in product(*self.sweep.values()) if not problems else ():
            point = dict(zip(self.sweep, values, strict=True))
            try:
                self.replace(**point, sweep=None)
            except UserError as error:
                yield f"`sweep` at {point}: {error}"
