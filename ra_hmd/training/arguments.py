"""The settings that every training of a head on stored features shares."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from ra_hmd.core.config import coerce_fields, unknown_keys
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem, ProblemType
from ra_hmd.models.losses import ClassWeights
from ra_hmd.retrieval.voting import VoteWeights, Voting

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

_NOT_SWEPT = ("train", "dev", "output_dir", "init_head", "seed", "seeds", "sweep", "select_by", "shot_seed")
_AT_LEAST_ONE = ("batch_size", "epochs", "topk", "num_layers", "proj_dim", "map_dim", "output_dim", "patience", "seeds")
_AT_LEAST_ONE += ("shots",)


@dataclass
class HeadArguments:
    """Settings of a training; the defaults are Hate-CLIPper's. Test data is not among them.

    Attributes:
        TITLE: What the command is called in messages.
        KIND: Kind of its runs' manifests.
        FRESH: What a fresh head has where the settings say null.
        NON_NEGATIVE: Numbers that must not be below zero.

    Raises:
        UserError: values that do not fit or contradict each other, all listed together.
    """

    TITLE: ClassVar[str]
    KIND: ClassVar[str]
    FRESH: ClassVar[Mapping[str, Any]]
    NON_NEGATIVE: ClassVar[tuple[str, ...]] = ("weight_decay", "seed", "focal_gamma", "mapping_layers", "shot_seed")

    train: Path = field(metadata={"help": "Feature store of the training split; also the bank of the KNN vote on dev."})
    output_dir: Path = field(metadata={"help": "Folder for the trained head, the curves and the manifest."})
    dev: Path | None = field(
        default=None,
        metadata={"help": "Feature store of the development split, to choose the epoch; null: keep the last epoch."},
    )
    init_head: Path | None = field(
        default=None, metadata={"help": "Run or folder with a head to start from; null: a fresh head."}
    )
    fusion: FusionSetting | None = field(
        default=None,
        metadata={
            "help": "How a fresh head joins image and text features: align, concat, cross, cross_nd, align_concat, "
            "image, text; none: the store's vector as it is; null where the store has one vector (docs/stage2.md)."
        },
    )
    map_dim: int | None = field(
        default=None, metadata={"help": "n, width of each modality's projection (1024 if null); with fusion."}
    )
    mapping_layers: int | None = field(
        default=None, metadata={"help": "Linear layers of each projection (1 if null; 0: none); with fusion."}
    )
    map_dropout: float | None = field(
        default=None, metadata={"help": "Dropout after each of them; null: the default, or init_head's."}
    )
    num_layers: int | None = field(
        default=None,
        metadata={
            "help": "Linear layers of a fresh head behind the fusion, the output among them: Hate-CLIPper's m "
            "pre-output layers are num_layers − 1. Null: the command's default; init_head brings its own."
        },
    )
    proj_dim: int | None = field(
        default=None, metadata={"help": "Width of a fresh head's embedding (1024 if null); init_head brings its own."}
    )
    dropout: tuple[float, ...] | None = field(
        default=None,
        metadata={"help": "Dropout after each hidden block, one value for all or one each; null: the default."},
    )
    input_dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout on the features or the fused vector; null: the default, or init_head's."},
    )
    embedding: Literal["relu", "linear"] | None = field(
        default=None,
        metadata={
            "help": "A fresh head's embedding: what its last block gives (relu if null), or before the ReLU (RGCL)."
        },
    )
    problem_type: ProblemType | None = field(
        default=None,
        metadata={"help": "binary, single_label or multi_label, of a fresh head (binary if null)."},
    )
    output_dim: int | None = field(
        default=None, metadata={"help": "C, classes of a fresh head (1 if null, which is binary)."}
    )
    class_weights: ClassWeights = field(
        default="none",
        metadata={
            "help": "balanced: each class weighs the same in the losses; effective_number: between that and none."
        },
    )
    class_balance_beta: float = field(
        default=0.999, metadata={"help": "β of class_weights effective_number: 0 is none, towards 1 balanced."}
    )
    classification_loss: Literal["cross_entropy", "focal"] = field(
        default="cross_entropy",
        metadata={"help": "Loss of the logistic head: cross_entropy (BCE where classes are binary) or focal."},
    )
    focal_gamma: float = field(default=2.0, metadata={"help": "γ of classification_loss focal."})
    batch_size: int = field(default=64, metadata={"help": "Memes per step."})
    epochs: int = field(default=20, metadata={"help": "Passes over the training split."})
    lr: float = field(default=1e-4, metadata={"help": "AdamW learning rate, constant."})
    weight_decay: float = field(default=1e-4, metadata={"help": "AdamW weight decay; biases have none."})
    grad_clip: float = field(
        default=0.1, metadata={"help": "Largest gradient norm; longer gradients are scaled down to it."}
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = field(
        default="no",
        metadata={
            "help": "Matrix products of training in bf16, or in fp16 with loss scaling; weights, losses and dev scores "
            "stay in float32. Meant for GPUs; a CPU computes the same, and is seldom faster."
        },
    )
    topk: int = field(default=20, metadata={"help": "K of the KNN vote on dev."})
    weights: VoteWeights = field(
        default="arithmetic",
        metadata={"help": "Rank weights of the KNN vote on dev: arithmetic (K, K−1, …, 1) or mean."},
    )
    select_by: SelectBy = field(
        default="dev_lrc_auroc",
        metadata={"help": "Which head's dev score chooses the epoch: name the head that will be deployed."},
    )
    patience: int | None = field(
        default=None, metadata={"help": "Stop after so many epochs without a better dev score; null: never."}
    )
    k_shot: Path | None = field(
        default=None, metadata={"help": "Lists of `ra-hmd data k-shot`: train, and vote on dev, with one of them only."}
    )
    shots: int | None = field(default=None, metadata={"help": "With k_shot: K, which lists."})
    shot_seed: int = field(
        default=0, metadata={"help": "With k_shot: the list's seed; with `seeds`, the first run's, the next takes +1."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of a fresh head's weights, of the batches and of dropout."})
    seeds: int = field(
        default=1, metadata={"help": "Runs with seed, seed + 1, …: folders seed-42, … and mean ± std in seeds.json."}
    )
    sweep: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Setting → list of values: every combination is run; dev chooses (sweep.json)."},
    )

    @property
    def problem(self) -> Problem:
        """What a fresh head decides."""
        return Problem(self.problem_type or "binary", 1 if self.output_dim is None else self.output_dim)

    @property
    def voting(self) -> Voting:
        """The KNN vote on dev."""
        return Voting(self.topk, self.weights)

    @property
    def gamma(self) -> float:
        """γ of the classification loss; 0 is cross-entropy."""
        return self.focal_gamma if self.classification_loss == "focal" else 0.0

    def trials(self) -> Iterator[tuple[dict[str, Any], Self]]:
        """Each combination of the sweep and its settings, in the order of the grid; one, {}, without a sweep."""
        grid = self.sweep or {}
        for number, values in enumerate(product(*grid.values())):
            point = dict(zip(grid, values, strict=True))
            folder = self.output_dir / f"trial-{number:03d}" if self.sweep else self.output_dir
            yield point, replace(self, **point, sweep=None, output_dir=folder)

    def runs(self) -> Iterator[Self]:
        """The settings of each seed's run."""
        for number in range(self.seeds):
            seed = self.seed + number
            folder = self.output_dir / f"seed-{seed}" if self.seeds > 1 else self.output_dir
            shot_seed = self.shot_seed + number * (self.k_shot is not None)
            yield replace(self, seed=seed, seeds=1, shot_seed=shot_seed, output_dir=folder)

    def __post_init__(self) -> None:
        problems = coerce_fields(self, [item.name for item in fields(self)], self.TITLE)
        if not problems:
            problems = [*self._range_problems(), *self._cross_problems(), *self._sweep_problems()]
        raise_all(problems, f"The {self.TITLE} configuration does not fit")

    def _range_problems(self) -> list[str]:
        problems = [f"`{name}` is {getattr(self, name)}, it must be at least 1." for name in _AT_LEAST_ONE
                    if getattr(self, name) is not None and getattr(self, name) < 1]  # fmt: skip
        problems += [f"`{name}` is {getattr(self, name)}, it must be above 0."
                     for name in ("lr", "grad_clip") if not getattr(self, name) > 0]  # fmt: skip
        problems += [f"`{name}` is {getattr(self, name)}, it must not be negative." for name in self.NON_NEGATIVE
                     if getattr(self, name) is not None and not getattr(self, name) >= 0]  # fmt: skip
        if not 0 <= self.class_balance_beta < 1:
            problems.append(f"`class_balance_beta` is {self.class_balance_beta}, it must lie in [0, 1).")
        rates = {
            "map_dropout": [self.map_dropout],
            "input_dropout": [self.input_dropout],
            "dropout": self.dropout or (),
        }
        problems += [f"`{name}` has the rate {rate}, it must lie in [0, 1)." for name, values in rates.items()
                     for rate in values if rate is not None and not 0 <= rate < 1]  # fmt: skip
        try:
            _ = self.problem
        except UserError as error:
            problems.append(str(error))
        return problems

    def _cross_problems(self) -> list[str]:
        problems = []
        if self.init_head is not None:
            problems += [f"`{name}` is set and so is `init_head`, whose head brings its own; remove one of them."
                         for name in SHAPE if getattr(self, name) is not None]  # fmt: skip
        if self.fusion == "none":
            problems += [f"`{name}` is set, and `fusion: none` has no use for it; remove one of them."
                         for name in (*FUSION_SHAPE, "map_dropout") if getattr(self, name) is not None]  # fmt: skip
        if self.k_shot is not None and self.shots is None:
            problems.append("`k_shot` is set: say with `shots` which of its lists.")
        if self.k_shot is None:
            problems += [f"`{name}` is set, but there is no `k_shot` to take a list from."
                         for name in ("shots", "shot_seed") if getattr(self, name)]  # fmt: skip
        if self.patience is not None and self.dev is None:
            problems.append("`patience` is set, but there is no `dev` to see an improvement on.")
        if self.dev is not None and self.dev.absolute() == self.train.absolute():
            problems.append(f"`dev` and `train` are both {self.dev}: the epoch would be chosen on training data.")
        problems += [f"`output_dir` is `{name}` ({self.output_dir}): choose another folder, it would be overwritten."
                     for name in ("train", "dev", "init_head") if getattr(self, name) is not None
                     and getattr(self, name).absolute() == self.output_dir.absolute()]  # fmt: skip
        return problems

    def _sweep_problems(self) -> list[str]:
        if self.sweep is not None and (not isinstance(self.sweep, dict) or not self.sweep):
            return [f"`sweep` is {self.sweep!r}, a mapping from settings to lists of values is needed."]
        grid = self.sweep or {}
        problems = [f"`sweep`: {text}" for text in unknown_keys(grid, [item.name for item in fields(self)])]
        problems += [f"`sweep.{name}` cannot be swept; remove it." for name in grid if name in _NOT_SWEPT]
        problems += [f"`sweep.{name}` is {values!r}, a list of values is needed." for name, values in grid.items()
                     if not isinstance(values, list) or not values]  # fmt: skip
        if self.sweep is not None and self.dev is None:
            problems.append("`sweep` needs `dev`, which chooses among the trials.")
        for values in product(*grid.values()) if grid and not problems else ():
            point = dict(zip(grid, values, strict=True))
            try:
                replace(self, **point, sweep=None)
            except UserError as error:
                problems.append(f"`sweep` at {point}: {error}")
        return problems
