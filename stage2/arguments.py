"""The settings of Stage 2."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from ra_hmd.config import coerce_fields
from ra_hmd.errors import raise_all
from ra_hmd.retrieval.voting import VoteWeights
from stage2.losses.similarity import LossMetric, Similarity

LossName = Literal["contrastive", "triplet", "naive"]
ClassWeights = Literal["none", "balanced"]
SelectBy = Literal["dev_rkc_auroc", "dev_lrc_auroc", "dev_rkc_accuracy", "dev_lrc_accuracy"]


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
    class_weights: ClassWeights = field(
        default="none",
        metadata={"help": "balanced: each class weighs the same in both losses; none: each meme does."},
    )
    in_batch_negatives: bool = field(
        default=True, metadata={"help": "Whether all other-class rows of the batch are negatives too."}
    )
    ce_weight: float = field(default=0.5, metadata={"help": "w in (1 − w)·L_CL + w·L_BCE."})
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
    seed: int = field(default=42, metadata={"help": "Seed of a fresh head's weights, of the batches and of dropout."})

    @property
    def similarity(self) -> Similarity:
        """Similarity for mining and loss."""
        return Similarity(self.metric, self.l2_normalise, self.l2_squared)

    def __post_init__(self) -> None:
        problems = coerce_fields(self, [item.name for item in fields(self)], "Stage 2")
        if not problems:
            problems = [*self._range_problems(), *self._cross_problems()]
        raise_all(problems, "The Stage 2 configuration does not fit")

    def _range_problems(self) -> list[str]:
        at_least_one = ("batch_size", "epochs", "topk", "num_layers", "proj_dim", "positive_depth")
        problems = [f"`{name}` is {getattr(self, name)}, it must be at least 1." for name in at_least_one
                    if getattr(self, name) is not None and getattr(self, name) < 1]  # fmt: skip
        problems += [f"`{name}` is {getattr(self, name)}, it must be above 0."
                     for name in ("lr", "grad_clip", "temperature") if not getattr(self, name) > 0]  # fmt: skip
        problems += [f"`{name}` is {getattr(self, name)}, it must not be negative."
                     for name in ("hard_negatives", "hard_positives", "pseudo_gold_positives", "weight_decay", "seed",
                                  "margin")
                     if not getattr(self, name) >= 0]  # fmt: skip
        if not 0 <= self.ce_weight <= 1:
            problems.append(f"`ce_weight` is {self.ce_weight}, it must lie in [0, 1].")
        return problems

    def _cross_problems(self) -> list[str]:
        problems = []
        if self.pseudo_gold_positives + self.hard_positives == 0 and self.ce_weight < 1:
            problems.append(f"the {self.loss} loss has no positives: set `pseudo_gold_positives` or `hard_positives`.")
        if self.hard_negatives == 0 and not self.in_batch_negatives and self.ce_weight < 1:
            problems.append(f"the {self.loss} loss has no negatives: set `hard_negatives` or `in_batch_negatives`.")
        if self.init_head is not None:
            problems += [f"`{name}` is set and so is `init_head`, whose head brings its own; remove one of them."
                         for name in ("num_layers", "proj_dim") if getattr(self, name) is not None]  # fmt: skip
        if self.dev is not None and self.dev.absolute() == self.train.absolute():
            problems.append(f"`dev` and `train` are both {self.dev}: the epoch would be chosen on training data.")
        problems += [f"`output_dir` is `{name}` ({self.output_dir}): choose another folder, it would be overwritten."
                     for name in ("train", "dev", "init_head") if getattr(self, name) is not None
                     and getattr(self, name).absolute() == self.output_dir.absolute()]  # fmt: skip
        return problems
