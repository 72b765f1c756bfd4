"""Settings of Stage 2."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ra_hmd.retrieval.index import IndexKind
from ra_hmd.training.arguments import HeadArguments, SelectBy
from stage2.losses.settings import RetrievalLossSettings

_OFFICIAL_DEPTH = 12
"""Candidates that the official code retrieves per requested positive, for positives and negatives together."""


class Stage2Arguments(RetrievalLossSettings, HeadArguments):
    """Settings of Stage 2; the defaults are those of the released RA-HMD script. Test data is not among them.

    Raises:
        UserError: values that do not fit or contradict each other, all listed together.
    """

    TITLE: ClassVar[str] = "Stage 2"
    KIND: ClassVar[str] = "stage2"
    FRESH: ClassVar[Mapping[str, Any]] = {}

    train: Path = Field(description="Feature store of the training split; also the bank that is mined and that votes.")
    output_dir: Path = Field(description="Folder for the refined head, the curves and the manifest.")
    hard_positives: int = Field(
        default=0,
        ge=0,
        description="Of the `positive_depth` nearest rows of its class, the least similar ones per anchor.",
    )
    positive_depth: int = Field(default=12, ge=1, description="Rows that hard positives are chosen from.")
    mining: Literal["dense", "sparse"] = Field(
        default="dense",
        description="dense: nearest in the embedding; sparse: BM25 over captions (and `object_words`).",
    )
    object_words: str | None = Field(
        default=None, description="mining sparse: the memes' further field that names the objects in the image."
    )
    near_duplicate_bits: int | None = Field(
        default=None,
        ge=0,
        le=16,
        description="Mine no row whose image hash differs from the anchor's in at most so many of 64 bits.",
    )
    index: IndexKind = Field(
        default="auto",
        description="mining dense: flat (exact), ivf, hnsw; auto: flat to 20,000 rows of a class, then ivf if faster.",
    )
    reindex_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps after which the bank is embedded and mined again, beside each epoch's start; 1: each.",
    )
    ce_weight: float = Field(default=0.5, ge=0, le=1, description="w in (1 − w)·L_CL + w·L_classification.")
    epochs: int = Field(
        default=30, ge=1, description="Passes over the training split; the bank is refreshed at the start of each."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW weight decay; biases have none.")
    grad_clip: float = Field(
        default=1.0, gt=0, description="Largest gradient norm; longer gradients are scaled down to it."
    )
    select_by: SelectBy = Field(
        default="dev_rkc_auroc",
        description="Dev score that chooses the epoch: name the head that will be deployed.",
    )

    @property
    def official_depth(self) -> int:
        """Candidates of the search that `compat: official` makes."""
        return _OFFICIAL_DEPTH * (self.pseudo_gold_positives or self.hard_negatives)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.pseudo_gold_positives + self.hard_positives == 0 and self.ce_weight < 1:
            yield f"the {self.loss} loss has no positives: set `pseudo_gold_positives` or `hard_positives`."
        if self.hard_negatives == 0 and not self.in_batch_negatives and self.ce_weight < 1:
            yield f"the {self.loss} loss has no negatives: set `hard_negatives` or `in_batch_negatives`."
        if self.object_words is not None and self.mining != "sparse":
            yield "`object_words` is set, but only `mining: sparse` reads them; set that too, or remove it."
        if self.compat == "official":
            yield from self._official_problems()

    def _official_problems(self) -> Iterator[str]:
        """Settings that the released code does not have."""
        foreign = ("temperature", "hard_positives", "near_duplicate_bits", "mining", "index", "reindex_every")
        for name in (*foreign, "class_weights", "classification_loss", "mixed_precision"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                yield f"`{name}` is {value}, which `compat: official` does not have; remove it."
        if self.problem_type == "multi_label":
            yield "`compat: official` has one class per meme; `problem_type: multi_label` needs `corrected`."
        if self.pseudo_gold_positives == 0:
            yield "`compat: official` needs `pseudo_gold_positives`, 1 in the released script."
