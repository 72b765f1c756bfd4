"""The settings of Stage 2."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from ra_hmd.retrieval.index import IndexKind
from ra_hmd.training.arguments import HeadArguments, SelectBy
from stage2.losses.official import LossName
from stage2.losses.similarity import LossMetric, Similarity

_OFFICIAL_DEPTH = 12
"""Candidates that the official code searches for each asked positive, for positives and negatives together."""


@dataclass
class Stage2Arguments(HeadArguments):
    """Settings of Stage 2; the defaults are those of the released RA-HMD script. Test data is not among them.

    Raises:
        UserError: values that do not fit or contradict each other, all listed together.
    """

    TITLE: ClassVar[str] = "Stage 2"
    KIND: ClassVar[str] = "stage2"
    FRESH: ClassVar[Mapping[str, Any]] = {}
    NON_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *HeadArguments.NON_NEGATIVE,
        "hard_negatives",
        "hard_positives",
        "pseudo_gold_positives",
        "margin",
    )

    train: Path = field(
        metadata={"help": "Feature store of the training split; also the bank that is mined and that votes."}
    )
    output_dir: Path = field(metadata={"help": "Folder for the refined head, the curves and the manifest."})
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
        default="auto",
        metadata={
            "help": "mining dense: flat (exact), ivf, hnsw; auto: flat to 20,000 rows of a class, then ivf if worth it."
        },
    )
    reindex_every: int | None = field(
        default=None,
        metadata={
            "help": "Steps after which the bank is embedded and mined again, beside each epoch's start; 1: each."
        },
    )
    in_batch_negatives: bool = field(
        default=True, metadata={"help": "Whether all other-class rows of the batch are negatives too."}
    )
    ce_weight: float = field(default=0.5, metadata={"help": "w in (1 − w)·L_CL + w·L_classification."})
    epochs: int = field(
        default=30, metadata={"help": "Passes over the training split; the bank is refreshed at the start of each."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay; biases have none."})
    grad_clip: float = field(
        default=1.0, metadata={"help": "Largest gradient norm; longer gradients are scaled down to it."}
    )
    select_by: SelectBy = field(
        default="dev_rkc_auroc",
        metadata={"help": "Which head's dev score chooses the epoch: name the head that will be deployed."},
    )

    @property
    def similarity(self) -> Similarity:
        """Similarity for mining and loss."""
        return Similarity(self.metric, self.l2_normalise, self.l2_squared)

    @property
    def official_depth(self) -> int:
        """Candidates of the search that `compat: official` makes."""
        return _OFFICIAL_DEPTH * (self.pseudo_gold_positives or self.hard_negatives)

    def _range_problems(self) -> list[str]:
        problems = [f"`{name}` is {getattr(self, name)}, it must be at least 1."
                    for name in ("positive_depth", "reindex_every")
                    if getattr(self, name) is not None and getattr(self, name) < 1]  # fmt: skip
        if not self.temperature > 0:
            problems.append(f"`temperature` is {self.temperature}, it must be above 0.")
        if not 0 <= self.ce_weight <= 1:
            problems.append(f"`ce_weight` is {self.ce_weight}, it must lie in [0, 1].")
        if self.near_duplicate_bits is not None and not 0 <= self.near_duplicate_bits <= 16:
            problems.append(f"`near_duplicate_bits` is {self.near_duplicate_bits}, it must lie in [0, 16].")
        return [*super()._range_problems(), *problems]

    def _cross_problems(self) -> list[str]:
        problems = super()._cross_problems()
        if self.pseudo_gold_positives + self.hard_positives == 0 and self.ce_weight < 1:
            problems.append(f"the {self.loss} loss has no positives: set `pseudo_gold_positives` or `hard_positives`.")
        if self.hard_negatives == 0 and not self.in_batch_negatives and self.ce_weight < 1:
            problems.append(f"the {self.loss} loss has no negatives: set `hard_negatives` or `in_batch_negatives`.")
        if self.object_words is not None and self.mining != "sparse":
            problems.append("`object_words` is set, but only `mining: sparse` reads them; set that too, or remove it.")
        if self.compat == "official":
            problems += self._official_problems()
        return problems

    def _official_problems(self) -> list[str]:
        """What the released code has not."""
        defaults = {item.name: item.default for item in fields(self)}
        foreign = ("temperature", "hard_positives", "near_duplicate_bits", "mining", "index", "reindex_every")
        foreign += ("class_weights", "classification_loss", "mixed_precision")
        problems = [f"`{name}` is {getattr(self, name)}, which `compat: official` does not have; remove it."
                    for name in foreign if getattr(self, name) != defaults[name]]  # fmt: skip
        if self.problem_type == "multi_label":
            problems.append("`compat: official` has one class per meme; `problem_type: multi_label` needs `corrected`.")
        if self.pseudo_gold_positives == 0:
            problems.append("`compat: official` needs `pseudo_gold_positives`, 1 in the released script.")
        return problems
