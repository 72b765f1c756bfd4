"""Settings of `ra-hmd robustness`: data, attacked sets, systems and their defences."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from ra_hmd.core.config import Settings
from ra_hmd.core.heads import Head
from ra_hmd.data.benign_transforms import MOST_COPIES
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.retrieval.embeddings import EMBEDDING
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings, kernel_settings
from ra_hmd.retrieval.voting import VoteWeights, Voting
from ra_hmd.scoring.calibration import CalibrationKind
from ra_hmd.scoring.thresholds import Criterion

_MADE_BY_EVERY_STORE = (EMBEDDING, "hidden")


class System(Settings):
    """A trained model with its bank and defences; with `base`, another system with some keys changed."""

    base: str | None = Field(
        default=None,
        description="System whose keys this one takes where they are not set, and which it is compared with.",
    )
    checkpoint: Path | None = Field(default=None, description="Stage 1 run that makes the features.")
    encoder: EncoderSettings | None = Field(
        default=None, description="Encoder that makes the features in its place: path, features, long_text, …"
    )
    head: Path | None = Field(default=None, description="Folder with the head; null: `checkpoint`.")
    bank: str | None = Field(
        default=None, description="Labelled memes of RKC and KRR: a feature store, or an example bank (folder or URI)."
    )
    bank_split: str | None = Field(
        default=None, description="In place of `bank`: split of the data whose features are made for the bank."
    )
    views: tuple[str, ...] = Field(
        default=(EMBEDDING,),
        min_length=1,
        description="Views that the KRR compares: embedding, hidden, untuned, or NAME=ENCODER.",
    )
    fold_captions: bool = Field(
        default=False,
        description="Defence: captions are folded before they are read. A bank of `bank_split` is folded too, one of "
        "`bank` is taken as it is.",
    )
    transforms: int = Field(
        default=0,
        ge=0,
        le=MOST_COPIES,
        description="Defence: scores are means over the picture and so many harmless changes of it.",
    )
    bank_attacks: tuple[str, ...] = Field(
        default=(),
        description="Defence: attacks whose attacked training memes are added to the bank with their labels.",
    )
    bank_attacked_memes: int = Field(
        default=100, ge=1, description="Number of memes that are added for each variant of these attacks."
    )

    @property
    def made_views(self) -> list[str]:
        """The views that must be extracted beside the hidden state."""
        return [view for view in self.views if view not in _MADE_BY_EVERY_STORE]

    @property
    def kernel(self) -> KernelSettings:
        """Settings of the KRR."""
        return kernel_settings(self.views)


class RobustnessSettings(Settings):
    """Settings of a robustness study."""

    TITLE: ClassVar[str] = "robustness"

    data: Path = Field(description="Clean data set: folder with <split>.jsonl.")
    attacked: Path = Field(description="Folder of `ra-hmd attack` for this data set.")
    output_dir: Path = Field(description="Folder for features, scores, finished cells and the report.")
    systems: dict[str, System] = Field(
        min_length=1, description="Name → checkpoint or encoder, head, bank, views, defences."
    )
    split: str = Field(default="test", description="Split to attack; `test` needs --final.")
    dev_split: str = Field(default="dev", description="Split whose clean memes choose thresholds and calibration.")
    train_split: str = Field(default="train", description="Split whose attacked memes `bank_attacks` adds to a bank.")
    task: str | None = Field(default=None, description="Binary task that gives the labels; null: the first.")
    attacks: tuple[str, ...] = Field(default=(), description="Attacks to measure; empty: all of the attacked folder.")
    memes: int | None = Field(
        default=None, ge=4, description="Class-balanced sample of the memes of `split`; null: all of them."
    )
    heads: tuple[Head, ...] = Field(default=("lmh", "lrc", "rkc", "krr"), min_length=1, description="Heads to measure.")
    topk: int = Field(default=20, ge=1, description="K of the KNN vote.")
    weights: VoteWeights = Field(default="arithmetic", description="Vote weights.")
    min_similarity: float | None = Field(
        default=None, ge=-1, le=1, description="Neighbours less similar than this do not vote; null: all vote."
    )
    criterion: Criterion = Field(default="macro_f1", description="Metric that the thresholds maximise on dev.")
    calibration: CalibrationKind = Field(default="temperature", description="Kind of calibration fitted on dev.")
    coverage: float = Field(
        default=0.9, gt=0, le=1, description="Share of the clean dev memes that abstention answers; it sets its limit."
    )
    batch_size: int = Field(default=16, ge=1, description="Memes per forward pass of an extraction.")
    workers: int = Field(default=2, ge=0, description="Processes that decode images.")
    bootstrap_samples: int = Field(default=1000, ge=1, description="Resamples of each 95 % interval.")
    seed: int = Field(default=0, description="Seed of the resampling and of the samples.")

    @field_validator("systems", mode="before")
    @classmethod
    def _text_names(cls, value: Any) -> Any:
        """YAML reads names such as 2024 as numbers."""
        return {str(name): item or {} for name, item in value.items()} if isinstance(value, Mapping) else value

    @field_validator("heads", "attacks", mode="after")
    @classmethod
    def _unique(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} names one twice; name each once")
        return values

    def _problems(self) -> Iterator[str]:
        if len({self.split, self.dev_split, self.train_split}) < 3:
            splits = f"{self.split!r}, {self.dev_split!r}, {self.train_split!r}"
            yield f"`split`, `dev_split` and `train_split` are {splits}; they must be three different splits."
        for name, given in self.systems.items():
            if given.base is not None and given.base not in self.systems:
                yield f"`systems.{name}.base` is {given.base!r}; the systems are {', '.join(self.systems)}."
            elif given.base is not None and (given.base == name or self.systems[given.base].base is not None):
                yield f"`systems.{name}.base` is {given.base!r}; name a system that has no `base` itself."
            else:
                yield from _system_problems(name, self.system(name))

    def system(self, name: str) -> System:
        """A system with the keys of its `base` in place of those that it does not set."""
        given = self.systems[name]
        if given.base is None:
            return given
        stated = {key: getattr(given, key) for key in given.model_fields_set}
        if stated.get("bank_split") is not None:
            stated.setdefault("bank", None)
        if stated.get("bank") is not None:
            stated.setdefault("bank_split", None)
        return self.systems[given.base].replace(**stated)

    @property
    def voting(self) -> Voting:
        """Settings of the KNN vote."""
        return Voting(self.topk, self.weights, self.min_similarity)


def _system_problems(name: str, system: System) -> Iterator[str]:
    place = f"`systems.{name}`"
    if (system.checkpoint is None) == (system.encoder is None):
        yield f"{place} needs `checkpoint` or `encoder`, and not both: one of them makes the features."
    if system.encoder is not None and system.head is None:
        yield f"{place} has an `encoder` and no `head`; give the folder of the head that was trained on its features."
    if system.transforms and any("=" in view for view in system.views):
        yield f"{place} has `transforms` and views of encoders, which would read the unchanged picture; leave out one."
    if system.bank is not None and system.bank_split is not None:
        yield f"{place} has `bank` and `bank_split`; give one of them."
    if system.bank_attacks and system.bank is None and system.bank_split is None:
        yield f"{place} has `bank_attacks` and no bank to add them to; give `bank` or `bank_split`."
