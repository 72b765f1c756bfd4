"""The settings of Stage 2."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from ra_hmd.config import coerce_fields, unknown_keys
from ra_hmd.errors import UserError, raise_all
from ra_hmd.models.objective import ClassWeights
from ra_hmd.problem import Problem, ProblemType
from ra_hmd.retrieval.index import IndexKind
from ra_hmd.retrieval.voting import VoteWeights, Voting
from stage2.losses.official import LossName
from stage2.losses.similarity import LossMetric, Similarity

SelectBy = Literal[
    "dev_rkc_auroc",
    "dev_lrc_auroc",
    "dev_rkc_accuracy",
    "dev_lrc_accuracy",
    "dev_rkc_macro_f1",
    "dev_lrc_macro_f1",
]

_OFFICIAL_DEPTH = 12
"""Candidates that the official code searches for each asked positive, for positives and negatives together."""

_NOT_SWEPT = ("train", "dev", "output_dir", "init_head", "seed", "seeds", "sweep", "select_by")


@dataclass
class Stage2Arguments:
    """Settings of Stage 2; the defaults are those of the released script. Test data is not among them.

    Raises:
        UserError: values that do not fit or contradict each other, all listed together.
    """

    train: Path = field(
        metadata={"help": "Feature store of the training split; also the bank that is mined and that votes."}
    )
    output_dir: Path = field(metadata={"help": "Folder for the refined head, the curves and the manifest."})
    dev: Path | None = field(
        default=None,
        metadata={"help": "Feature store of the development split, to choose the epoch; null: keep the last epoch."},
    )
    init_head: Path | None = field(
        default=None,
        metadata={"help": "Stage 1 run, or another folder with a head, to start from; null: a fresh head."},
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "Linear layers of a fresh head (2 if null); init_head brings its own."}
    )
    proj_dim: int | None = field(
        default=None, metadata={"help": "Width of a fresh head's embedding (1024 if null); init_head brings its own."}
    )
    dropout: tuple[float, ...] | None = field(
        default=None, metadata={"help": "Dropout after each hidden block; null: init_head's, or none."}
    )
    input_dropout: float | None = field(
        default=None, metadata={"help": "Dropout on the features; null: init_head's, or none."}
    )
    problem_type: ProblemType | None = field(
        default=None,
        metadata={"help": "binary, single_label or multi_label, of a fresh head (binary if null)."},
    )
    output_dim: int | None = field(
        default=None, metadata={"help": "C, classes of a fresh head (1 if null, which is binary)."}
    )
    compat: Literal["corrected", "official"] = field(
        default="corrected",
        metadata={"help": "official: mine and weigh as the released code does, its faults included (docs/stage2.md)."},
    )
    loss: LossName = field(
        default="contrastive",
        metadata={"help": "contrastive (RA-HMD), triplet (RGCL's script, with metric cos) or naive."},
    )
    metric: LossMetric = field(
        default="ip",
        metadata={"help": "Similarity for mining and loss: cos, ip (inner product / D) or l2 (minus distance / D)."},
    )
    l2_normalise: bool = field(default=False, metadata={"help": "metric l2: between embeddings of length 1."})
    l2_squared: bool = field(default=True, metadata={"help": "metric l2: of the squared distance."})
    temperature: float = field(
        default=1.0, metadata={"help": "loss contrastive: similarities are divided by it; 1 is the official value."}
    )
    margin: float = field(default=0.1, metadata={"help": "loss triplet: how much nearer positives must be."})
    hard_negatives: int = field(default=1, metadata={"help": "Nearest rows of another class per anchor; 0: none."})
    pseudo_gold_positives: int = field(default=1, metadata={"help": "Nearest other rows of the same class per anchor."})
    hard_positives: int = field(
        default=0,
        metadata={"help": "Of the `positive_depth` nearest rows of its class, the least similar ones per anchor."},
    )
    positive_depth: int = field(default=12, metadata={"help": "Rows that hard positives are chosen from."})
    mining: Literal["dense", "sparse"] = field(
        default="dense",
        metadata={"help": "dense: nearest in the embedding; sparse: BM25 over captions (and `object_words`)."},
    )
    object_words: str | None = field(
        default=None, metadata={"help": "mining sparse: the memes' further field that names what is in the picture."}
    )
    near_duplicate_bits: int | None = field(
        default=None,
        metadata={"help": "Mine no row whose image hash differs from the anchor's in at most so many of 64 bits."},
    )
    index: IndexKind = field(
        default="auto", metadata={"help": "mining dense: flat (exact), ivf or hnsw; auto: flat up to 200,000 rows."}
    )
    reindex_every: int | None = field(
        default=None,
        metadata={
            "help": "Steps after which the bank is embedded and mined again, beside each epoch's start; 1: each."
        },
    )
    class_weights: ClassWeights = field(
        default="none",
        metadata={
            "help": "balanced: each class weighs the same in both losses; effective_number: between that and none."
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
    in_batch_negatives: bool = field(
        default=True, metadata={"help": "Whether all other-class rows of the batch are negatives too."}
    )
    ce_weight: float = field(default=0.5, metadata={"help": "w in (1 − w)·L_CL + w·L_classification."})
    batch_size: int = field(default=64, metadata={"help": "Anchors per step."})
    epochs: int = field(
        default=30, metadata={"help": "Passes over the training split; the bank is refreshed at the start of each."}
    )
    lr: float = field(default=1e-4, metadata={"help": "AdamW learning rate, constant."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay; biases have none."})
    grad_clip: float = field(
        default=1.0, metadata={"help": "Largest gradient norm; longer gradients are scaled down to it."}
    )
    topk: int = field(default=20, metadata={"help": "K of the KNN vote on dev."})
    weights: VoteWeights = field(
        default="arithmetic",
        metadata={"help": "Rank weights of the KNN vote on dev: arithmetic (K, K−1, …, 1) or mean."},
    )
    select_by: SelectBy = field(
        default="dev_rkc_auroc",
        metadata={"help": "Which head's dev score chooses the epoch: name the head that will be deployed."},
    )
    patience: int | None = field(
        default=None, metadata={"help": "Stop after so many epochs without a better dev score; null: never."}
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
    def similarity(self) -> Similarity:
        """Similarity for mining and loss."""
        return Similarity(self.metric, self.l2_normalise, self.l2_squared)

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

    @property
    def official_depth(self) -> int:
        """Candidates of the search that `compat: official` makes."""
        return _OFFICIAL_DEPTH * (self.pseudo_gold_positives or self.hard_negatives)

    def trials(self) -> Iterator[tuple[dict[str, Any], "Stage2Arguments"]]:
        """Each combination of the sweep and its settings, in the order of the grid; one, {}, without a sweep."""
        grid = self.sweep or {}
        for number, values in enumerate(product(*grid.values())):
            point = dict(zip(grid, values, strict=True))
            folder = self.output_dir / f"trial-{number:03d}" if self.sweep else self.output_dir
            yield point, replace(self, **point, sweep=None, output_dir=folder)

    def runs(self) -> Iterator["Stage2Arguments"]:
        """The settings of each seed's run."""
        for seed in range(self.seed, self.seed + self.seeds):
            folder = self.output_dir / f"seed-{seed}" if self.seeds > 1 else self.output_dir
            yield replace(self, seed=seed, seeds=1, output_dir=folder)

    def __post_init__(self) -> None:
        problems = coerce_fields(self, [item.name for item in fields(self)], "Stage 2")
        if not problems:
            problems = [*self._range_problems(), *self._cross_problems(), *self._sweep_problems()]
        raise_all(problems, "The Stage 2 configuration does not fit")

    def _range_problems(self) -> list[str]:
        at_least_one = ("batch_size", "epochs", "topk", "num_layers", "proj_dim", "positive_depth", "output_dim")
        at_least_one += ("reindex_every", "patience", "seeds")
        problems = [f"`{name}` is {getattr(self, name)}, it must be at least 1." for name in at_least_one
                    if getattr(self, name) is not None and getattr(self, name) < 1]  # fmt: skip
        problems += [f"`{name}` is {getattr(self, name)}, it must be above 0."
                     for name in ("lr", "grad_clip", "temperature") if not getattr(self, name) > 0]  # fmt: skip
        problems += [f"`{name}` is {getattr(self, name)}, it must not be negative."
                     for name in ("hard_negatives", "hard_positives", "pseudo_gold_positives", "weight_decay", "seed",
                                  "margin", "focal_gamma")
                     if not getattr(self, name) >= 0]  # fmt: skip
        if not 0 <= self.ce_weight <= 1:
            problems.append(f"`ce_weight` is {self.ce_weight}, it must lie in [0, 1].")
        if not 0 <= self.class_balance_beta < 1:
            problems.append(f"`class_balance_beta` is {self.class_balance_beta}, it must lie in [0, 1).")
        if self.near_duplicate_bits is not None and not 0 <= self.near_duplicate_bits <= 16:
            problems.append(f"`near_duplicate_bits` is {self.near_duplicate_bits}, it must lie in [0, 16].")
        try:
            _ = self.problem
        except UserError as error:
            problems.append(str(error))
        return problems

    def _cross_problems(self) -> list[str]:
        problems = []
        if self.pseudo_gold_positives + self.hard_positives == 0 and self.ce_weight < 1:
            problems.append(f"the {self.loss} loss has no positives: set `pseudo_gold_positives` or `hard_positives`.")
        if self.hard_negatives == 0 and not self.in_batch_negatives and self.ce_weight < 1:
            problems.append(f"the {self.loss} loss has no negatives: set `hard_negatives` or `in_batch_negatives`.")
        if self.init_head is not None:
            shape = ("num_layers", "proj_dim", "problem_type", "output_dim")
            problems += [f"`{name}` is set and so is `init_head`, whose head brings its own; remove one of them."
                         for name in shape if getattr(self, name) is not None]  # fmt: skip
        if self.object_words is not None and self.mining != "sparse":
            problems.append("`object_words` is set, but only `mining: sparse` reads them; set that too, or remove it.")
        if self.compat == "official":
            problems += self._official_problems()
        if self.patience is not None and self.dev is None:
            problems.append("`patience` is set, but there is no `dev` to see an improvement on.")
        if self.dev is not None and self.dev.absolute() == self.train.absolute():
            problems.append(f"`dev` and `train` are both {self.dev}: the epoch would be chosen on training data.")
        problems += [f"`output_dir` is `{name}` ({self.output_dir}): choose another folder, it would be overwritten."
                     for name in ("train", "dev", "init_head") if getattr(self, name) is not None
                     and getattr(self, name).absolute() == self.output_dir.absolute()]  # fmt: skip
        return problems

    def _official_problems(self) -> list[str]:
        """What the released code has not."""
        defaults = {item.name: item.default for item in fields(self)}
        foreign = ("temperature", "hard_positives", "near_duplicate_bits", "mining", "index", "reindex_every")
        foreign += ("class_weights", "classification_loss")
        problems = [f"`{name}` is {getattr(self, name)}, which `compat: official` does not have; remove it."
                    for name in foreign if getattr(self, name) != defaults[name]]  # fmt: skip
        if self.problem_type == "multi_label":
            problems.append("`compat: official` has one class per meme; `problem_type: multi_label` needs `corrected`.")
        if self.pseudo_gold_positives == 0:
            problems.append("`compat: official` needs `pseudo_gold_positives`, 1 in the released script.")
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
