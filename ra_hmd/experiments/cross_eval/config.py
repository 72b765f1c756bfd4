"""Settings of `ra-hmd cross-eval`: systems, data sets to test them on, heads and banks."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from ra_hmd.core.config import Settings
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.manifests import EncoderReference, HeadRunManifest, read_folder_manifest
from ra_hmd.models.encoder_files import OF_EMBEDDERS
from ra_hmd.models.head import read_head_config
from ra_hmd.retrieval.embeddings import EMBEDDING
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import VoteWeights, Voting

BankKind = Literal["train", "k_shot", "target"]
CrossMetric = Literal["auroc", "accuracy", "macro_f1"]
CROSS_METRICS: tuple[CrossMetric, ...] = get_args(CrossMetric)


class System(Settings):
    """A trained model: a head, and the features that its LMM or encoder gives for every data set."""

    head: Path = Field(description="Stage 1 run or Stage 2 folder with the head.")
    features: str = Field(
        description="Feature stores: a path with {target} and {split}, e.g. saves/x/features/{target}/{split}"
    )
    checkpoint: Path | None = Field(
        default=None, description="Stage 1 run to extract with, in the suggested commands; null: `head`."
    )
    encoder: str | None = Field(
        default=None,
        description="As `ra-hmd encode --encoder` takes it, in the suggested commands; null: that of the head's "
        "features, if an encoder made them.",
    )
    trained_on: str | None = Field(
        default=None, description="Target whose train split is its training bank; null: the system's own name."
    )

    def _problems(self) -> Iterator[str]:
        if self.encoder is not None and self.checkpoint is not None:
            yield "`encoder` and `checkpoint` are both set; features come from one of them."
        for part in ("{target}", "{split}"):
            if part not in self.features:
                yield f"`features` is {self.features!r}; it must contain {part}."

    def store(self, target: str, split: str) -> Path:
        """Folder of the features of a target's split."""
        return Path(self.features.replace("{target}", target).replace("{split}", split))

    def encoder_options(self) -> dict[str, str | bool]:
        """Options of `ra-hmd encode` that reproduce the head's features; empty for features of an LMM."""
        manifest = read_folder_manifest(self.head)
        stated = manifest.encoder if isinstance(manifest, HeadRunManifest) else None
        if self.encoder is None and (self.checkpoint is not None or stated is None):
            return {}
        stated = stated or EncoderReference()
        names = ["features", "long_text", "dtype", *OF_EMBEDDERS, *(["revision"] if self.encoder is None else [])]
        options = {name: getattr(stated, name) for name in names}
        given: dict[str, str | bool] = {name: str(value) for name, value in options.items() if value is not None}
        return (
            {"encoder": str(self.encoder or stated.path)}
            | given
            | ({"fold_captions": True} if stated.fold_captions else {})
        )

    def of_encoder(self) -> bool:
        """Whether the head takes image and text features of an encoder, so that there is no LMH."""
        return bool(self.encoder_options()) or read_head_config(self.head).fusion is not None


class Target(Settings):
    """A data set to test on."""

    data: str | None = Field(
        default=None, description="As `ra-hmd extract` or `encode --data` takes it, in the suggested commands."
    )
    split: str = Field(default="test", description="Split to test on; `test` needs --final.")
    train_split: str = Field(default="train", description="Split that banks of the target are made of.")
    k_shot: Path | None = Field(
        default=None, description="K-shot lists of the target's train split (`ra-hmd data k-shot`)."
    )


@dataclass(frozen=True)
class HeadAndBank:
    """A head, and the bank of the RKC or KRR.

    Attributes:
        head: The head.
        bank: Kind of bank; None for heads without a bank.
        shots: K of a `k_shot` bank.
        views: Views that the KRR compares, joined by `+`; None for the other heads.
    """

    head: Head
    bank: BankKind | None = None
    shots: int | None = None
    views: str | None = None

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> "HeadAndBank":
        """Head and bank of a cell of cross_eval.json."""
        return cls(cell["head"], cell["bank"], cell["shots"], cell.get("views"))

    def to_dict(self) -> dict[str, Any]:
        """The fields of a cell; `views` only of the KRR."""
        return {name: value for name, value in asdict(self).items() if name != "views" or value is not None}

    @property
    def kernel(self) -> KernelSettings:
        """Settings of the KRR."""
        return KernelSettings(views=tuple((self.views or EMBEDDING).split("+")))

    @property
    def title(self) -> str:
        """Title in reports."""
        banks = {
            None: "",
            "train": ", training bank",
            "k_shot": f", {self.shots}-shot bank of the target",
            "target": ", target's train split",
        }
        views = "" if self.views in (None, EMBEDDING) else f" of {self.views}"
        return self.head.upper() + views + banks[self.bank]


class CrossEvalArguments(Settings):
    """Settings of a cross-evaluation."""

    TITLE: ClassVar[str] = "cross-evaluation"

    systems: dict[str, System] = Field(min_length=1, description="Name → head, features, checkpoint, trained_on.")
    targets: dict[str, Target] = Field(min_length=1, description="Name → data, split, train_split, k_shot.")
    output_dir: Path = Field(description="Folder for the matrix, the heat map and the finished cells.")
    heads: tuple[Head, ...] = Field(default=("lmh", "lrc", "rkc", "krr"), min_length=1, description="Heads to test.")
    banks: tuple[BankKind, ...] = Field(
        default=("train", "k_shot", "target"),
        min_length=1,
        description="Banks of RKC and KRR: the system's training set, K shots of the target, the target's train split.",
    )
    shots: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, min_length=1, description="Which K of the K-shot lists; null: all that they have."
    )
    views: tuple[str, ...] = Field(
        default=(EMBEDDING,),
        min_length=1,
        description="Views that the KRR compares, one cell for each entry: embedding, hidden, untuned, the name of an "
        "encoder's view, or several joined by +.",
    )
    topk: int = Field(default=20, ge=1, description="K of the KNN vote.")
    weights: VoteWeights = Field(default="arithmetic", description="Vote weights.")
    bootstrap_samples: int = Field(default=1000, ge=1, description="Resamples of each 95 % interval.")
    seed: int = Field(default=0, description="Seed of the resampling.")
    heat_map: CrossMetric = Field(default="auroc", description="Metric of the heat map.")

    @field_validator("systems", "targets", mode="before")
    @classmethod
    def _text_names(cls, value: Any) -> Any:
        """YAML reads names such as 2024 as numbers, and a name without settings as null."""
        return {str(name): item or {} for name, item in value.items()} if isinstance(value, Mapping) else value

    @field_validator("heads", "banks", "views", mode="after")
    @classmethod
    def _unique(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} names one twice; name each once")
        return values

    def _problems(self) -> Iterator[str]:
        for entry in self.views:
            names = entry.split("+")
            if "" in names or len(set(names)) < len(names):
                yield f"`views` has {entry!r}; name views once each, joined by +, for example embedding+untuned."

    def kinds(self, *, encoder: bool, shots: Iterable[int]) -> Iterator[HeadAndBank]:
        """Heads and banks of one system on one target; features of an encoder have no LMH.

        Args:
            encoder: Whether the system's features are those of an encoder.
            shots: K of the target's K-shot lists.
        """
        counts = list(shots)
        for head in self.heads:
            if head not in BANK_HEADS:
                yield from () if head == "lmh" and encoder else (HeadAndBank(head),)
                continue
            for views in self.views if head == "krr" else (None,):
                for bank in self.banks:
                    of_bank = counts if bank == "k_shot" else [None]
                    yield from (HeadAndBank(head, bank, count, views) for count in of_bank)

    @property
    def voting(self) -> Voting:
        """Settings of the KNN vote."""
        return Voting(self.topk, self.weights)
