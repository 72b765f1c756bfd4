"""The settings of `ra-hmd cross-eval`: which systems are tested on which data sets, by which heads and banks."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ra_hmd.core.config import coerce_fields, load_dataclass
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import Head
from ra_hmd.core.manifests import EncoderReference, HeadRunManifest, read_folder_manifest
from ra_hmd.models.head import read_head_config
from ra_hmd.retrieval.voting import VoteWeights, Voting

BankKind = Literal["train", "k_shot", "target"]
CrossMetric = Literal["auroc", "accuracy", "macro_f1"]
CROSS_METRICS: tuple[CrossMetric, ...] = get_args(CrossMetric)


@dataclass
class System:
    """A trained model: a head, and the features that its LMM or encoder gives of every data set."""

    head: Path = field(metadata={"help": "Stage 1 run or Stage 2 folder: whose head decides."})
    features: str = field(
        metadata={
            "help": "Its feature stores: a path with {target} and {split}, e.g. saves/x/features/{target}/{split}"
        }
    )
    checkpoint: Path | None = field(
        default=None, metadata={"help": "Stage 1 run to extract with, for the commands that are told; null: `head`."}
    )
    encoder: str | None = field(
        default=None,
        metadata={
            "help": "As `ra-hmd encode --encoder` takes it, for the commands that are told; null: that of the head's "
            "features, if an encoder made them."
        },
    )
    trained_on: str | None = field(
        default=None, metadata={"help": "Target whose train split is its training bank; null: the system's own name."}
    )

    def store(self, target: str, split: str) -> Path:
        """Folder of the features of a target's split."""
        return Path(self.features.replace("{target}", target).replace("{split}", split))

    def encoder_options(self) -> dict[str, str]:
        """Options of `ra-hmd encode` that give features like the head's; {} where no encoder made those."""
        manifest = read_folder_manifest(self.head)
        stated = manifest.encoder if isinstance(manifest, HeadRunManifest) else None
        if self.encoder is None and (self.checkpoint is not None or stated is None):
            return {}
        stated = stated or EncoderReference()
        options = {"features": stated.features, "long_text": stated.long_text, "dtype": stated.dtype}
        options |= {"revision": stated.revision} if self.encoder is None else {}
        return {"encoder": self.encoder or stated.path} | {
            name: value for name, value in options.items() if value is not None
        }

    def of_encoder(self) -> bool:
        """Whether the head takes image and text features of an encoder: then there is no language model to ask."""
        return bool(self.encoder_options()) or read_head_config(self.head).fusion is not None


@dataclass
class Target:
    """A data set to be tested on."""

    data: str | None = field(
        default=None,
        metadata={"help": "As `ra-hmd extract` or `encode --data` takes it, for the commands that are told."},
    )
    split: str = field(default="test", metadata={"help": "Split that is judged; `test` needs --final."})
    train_split: str = field(default="train", metadata={"help": "Split that banks of the target are made of."})
    k_shot: Path | None = field(
        default=None, metadata={"help": "K-shot lists of the target's train split (`ra-hmd data k-shot`)."}
    )


@dataclass(frozen=True)
class HeadAndBank:
    """A head and what votes for it: `bank` is None where nothing does; `shots` is of `k_shot` banks."""

    head: Head
    bank: BankKind | None = None
    shots: int | None = None

    @property
    def title(self) -> str:
        """For people."""
        banks = {
            None: "",
            "train": ", training bank",
            "k_shot": f", {self.shots}-shot bank of the target",
            "target": ", target's train split",
        }
        return self.head.upper() + banks[self.bank]


@dataclass
class CrossEvalArguments:
    """Settings of a cross-evaluation.

    Raises:
        UserError: values that do not fit or contradict each other, all listed together.
    """

    systems: dict[str, Any] = field(metadata={"help": "Name → head, features, checkpoint, trained_on."})
    targets: dict[str, Any] = field(metadata={"help": "Name → data, split, train_split, k_shot."})
    output_dir: Path = field(metadata={"help": "Folder for the matrix, the heat map and the finished cells."})
    heads: tuple[Head, ...] = field(default=("lmh", "lrc", "rkc"), metadata={"help": "Heads to test."})
    banks: tuple[BankKind, ...] = field(
        default=("train", "k_shot", "target"),
        metadata={
            "help": "Banks of the RKC: the system's training set, K shots of the target, the target's train split."
        },
    )
    shots: tuple[int, ...] | None = field(
        default=None, metadata={"help": "Which K of the K-shot lists; null: all that they have."}
    )
    topk: int = field(default=20, metadata={"help": "K of the KNN vote."})
    weights: VoteWeights = field(default="arithmetic", metadata={"help": "Vote weights."})
    bootstrap_samples: int = field(default=1000, metadata={"help": "Resamples of each 95 % interval."})
    seed: int = field(default=0, metadata={"help": "Of the resampling."})
    heat_map: CrossMetric = field(default="auroc", metadata={"help": "Metric of the heat map."})

    def __post_init__(self) -> None:
        problems = coerce_fields(self, [item.name for item in fields(self)], "cross-eval")
        if not problems:
            problems = [*self._build("systems", System), *self._build("targets", Target)]
        if not problems:
            problems = list(self._problems())
        raise_all(problems, "The configuration of the cross-evaluation does not fit")

    def _build(self, name: str, cls: type) -> list[str]:
        """Turn the mapping `name` into instances of `cls`; return what does not fit."""
        given = getattr(self, name)
        if not isinstance(given, dict) or not given:
            return [f"`{name}` is {given!r}; give one or more names with their settings."]
        built, problems = {}, []
        for key, values in given.items():
            try:
                built[str(key)] = load_dataclass(cls, values or {}, f"{name}.{key}")
            except UserError as error:
                problems.append(str(error))
        setattr(self, name, built)
        return problems

    def _problems(self) -> Iterator[str]:
        for name, system in self.systems.items():
            if system.encoder is not None and system.checkpoint is not None:
                yield f"systems.{name}: `encoder` and `checkpoint` are both set; features come from one of them."
            for place in ("{target}", "{split}"):
                if place not in system.features:
                    yield f"systems.{name}: `features` is {system.features!r}; it must contain {place}."
        for name, values in (("heads", self.heads), ("banks", self.banks)):
            if not values or len(set(values)) < len(values):
                yield f"`{name}` is {list(values)}; name one or more, each once."
        if self.shots is not None and (not self.shots or min(self.shots) < 1):
            yield f"`shots` is {list(self.shots)}; give numbers of 1 or more, or null."
        if self.bootstrap_samples < 1:
            yield f"`bootstrap_samples` is {self.bootstrap_samples}; it must be 1 or more."
        try:
            _ = self.voting
        except UserError as error:
            yield str(error)

    @property
    def voting(self) -> Voting:
        """The KNN vote."""
        return Voting(self.topk, self.weights)
