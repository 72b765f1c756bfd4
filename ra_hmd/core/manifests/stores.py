"""Manifests of data: feature stores, imported data sets and what is made from them."""

from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.manifests.attacks import VariantDescription
from ra_hmd.core.manifests.base import Manifest, Section


class DataSource(Section):
    """Origin of the memes of a feature store.

    Attributes:
        dataset: Name of the data set.
        split: Split, as the data set's reader names it.
        task: Task whose labels were taken.
        place: Folder or file of the memes.
    """

    dataset: str | None = None
    split: str | None = None
    task: str | None = None
    place: str | None = None


class EncoderReference(Section):
    """The frozen encoder that made features, with its settings (`EncoderSettings`).

    Attributes:
        path: Folder or hub name.
        revision: Revision on the hub.
        features: Kind of features.
        long_text: What is done to captions beyond the limit.
        dtype: Precision of the computation.
        embedder: Format of the input of an LMM embedder; None for an encoder of the CLIP family.
        instruction: Its system message.
        max_pixels: Most pixels of an image; None: as many as the format has.
        dimensions: Values of the vector that are kept; None: all.
        fold_captions: Whether captions were folded first.
    """

    path: str = ""
    revision: str | None = None
    features: str | None = None
    long_text: str | None = None
    dtype: str | None = None
    embedder: str | None = None
    instruction: str | None = None
    max_pixels: int | None = None
    dimensions: int | None = None
    fold_captions: bool = False


class FeatureOrigin(Section):
    """Origin of the rows of a feature store; None, or empty, where it is not stated.

    Stores come from `extract` and `encode`, from official files, from Python, or from earlier versions, and state more
    or less of it.

    Attributes:
        fingerprint: What the features depend on.
        split: Split, as it was requested.
        source: The data set.
        imported_from: Official file that was imported.
        encoder: The frozen encoder that made the features.
    """

    fingerprint: dict[str, Any] = Field(default_factory=dict)
    split: str | None = None
    source: DataSource | None = None
    imported_from: str | None = None
    encoder: EncoderReference | None = None

    @property
    def dataset(self) -> str | None:
        """Name of the data set."""
        return None if self.source is None else self.source.dataset

    @property
    def task(self) -> str | None:
        """Task whose labels were taken."""
        return None if self.source is None else self.source.task

    @property
    def split_name(self) -> str | None:
        """Split, as it was requested; else as the data set's reader names it."""
        return self.split or (None if self.source is None else self.source.split)

    @property
    def dataset_split(self) -> str | None:
        """Split, as the data set's reader names it; else as it was requested."""
        return (None if self.source is None else self.source.split) or self.split


class CaptionLengths(Section):
    """Captions beyond an encoder's limit.

    Attributes:
        limit: Most tokens of a caption.
        longest: Tokens of the longest caption.
        over_limit: Number of captions with more than `limit` tokens.
    """

    limit: int
    longest: int
    over_limit: int


class ViewDescription(Section):
    """A further vector of each meme of a feature store or of a bank.

    Attributes:
        fingerprint: What the vectors depend on, apart from the memes.
        encoder: Settings of the encoder that made them; None for a view of the store's own model (`untuned`).
        width: Number of values of a vector; None before the first is made.
        seconds: Time that it takes per meme, measured when the store was made; None where it is not known.
    """

    fingerprint: dict[str, Any] = Field(default_factory=dict)
    encoder: EncoderReference | None = None
    width: int | None = None
    seconds: float | None = None

    def at(self, encoder: str) -> "ViewDescription":
        """This view, with its encoder at another place."""
        stated = EncoderReference() if self.encoder is None else self.encoder
        return self.model_copy(update={"encoder": stated.model_copy(update={"path": encoder, "revision": None})})


class StoreManifest(FeatureOrigin, Manifest):
    """Manifest of a feature store (`manifest.json`).

    Attributes:
        rows: N.
        shard_size: Rows per Parquet file.
        shards: Number of Parquet files.
        complete: Whether all shards are written.
        ids: Digest of the rows' ids.
        shard_data: Per shard the digest of what its rows are made from; None for a shard that is to be made again.
        captions: Captions beyond the encoder's limit.
        run: Folder of the Stage 1 run that made the features.
        views: Further vectors of each meme, by name.
        seconds: Time that the model's own features take per meme, where the store has further views and it is known.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("features",)
    FORMAT: ClassVar[int] = 2  # 1 had no captions, image hashes or extras
    REMEDY: ClassVar[str] = "give a feature store (`ra-hmd extract`, `ra-hmd encode`)"

    rows: int = 0
    shard_size: int = 0
    shards: int = 0
    complete: bool = False
    ids: str | None = None
    shard_data: list[str | None] | None = None
    captions: CaptionLengths | None = None
    run: str | None = None
    views: dict[str, ViewDescription] = Field(default_factory=dict)
    seconds: float | None = None

    def view_fingerprints(self) -> dict[str, dict[str, Any]]:
        """Fingerprint of each view, by `views.NAME`."""
        return {f"views.{name}": view.fingerprint for name, view in self.views.items()}


class StoreReference(FeatureOrigin):
    """A feature store that a head was trained on or chosen by, as the head's manifest states it.

    Attributes:
        path: Folder of the store; None for a zero-shot head, which saw no row.
        rows: N.
        content_sha256: Digest of all columns.
        k_shot: Digest of the ids of the K-shot list whose rows were used.
    """

    path: str | None = None
    rows: int | None = None
    content_sha256: str | None = None
    k_shot: str | None = None


class SetDescription(Section):
    """A set of memes: a query set, or the rows of a bank.

    Attributes:
        dataset: Name of the data set, else the folder of the store.
        task: Task whose labels count.
        split: Split.
        place: Folder or file.
        stated: Whether the store states its data set.
        rows: Number of memes.
        outputs: Outputs of the head.
    """

    dataset: str
    task: str | None = None
    split: str
    place: str = ""
    stated: bool = True
    rows: int | None = None
    outputs: int = 1


class BankContent(Section):
    """Summary of a bank's rows, by which the bank is recognised wherever it lies.

    Attributes:
        rows: N.
        sha256: Digest of ids and labels.
        sketch: Sums over the embeddings, then their scale.
    """

    rows: int
    sha256: str
    sketch: list[float]


class BankReference(Section):
    """The labelled examples that voted.

    Attributes:
        place: Feature store or example bank.
        sha256: Digest of its state.
        version: Version of an example bank.
        content: Summary of its rows; None in decisions of earlier versions.
        data: The memes in it.
    """

    place: str
    sha256: str = ""
    version: int | None = None
    content: BankContent | None = None
    data: SetDescription | None = None


class DatasetManifest(Manifest):
    """Manifest of an imported data set (`dataset.json`).

    Attributes:
        dataset: Name of the reader.
        layout: How the files were found.
        variant: Variant of the data set, if it has several.
        files: Annotation file to SHA-256.
        images: Folder of images that was given.
        options: Options of the import.
        root: Folder that was imported.
        image_folders: Part of the data set to its folder of images.
        notes: Remarks on the import.
        splits: Split to number of records.
        rejected: Split to number of rows that were left out.
        reasons: Reason to number of rows that were left out.
        fingerprint: Digest of everything that decides the records.
        fixes: Number of `data check --fix` runs that changed the records.
        fixed: What they changed.
        ocr: Split to the engine that read its captions.
        attack: The attack that made it of another data set.
        attack_seed: Seed of that attack.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("dataset",)
    REMEDY: ClassVar[str] = "give a folder of `ra-hmd data import`"

    dataset: str | None = None
    layout: str = "JSON Lines files"
    variant: str = ""
    files: dict[str, str] = Field(default_factory=dict)
    images: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    root: str | None = None
    image_folders: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    splits: dict[str, int] = Field(default_factory=dict)
    rejected: dict[str, int] = Field(default_factory=dict)
    reasons: dict[str, int] = Field(default_factory=dict)
    fingerprint: str | None = None
    fixes: int = 0
    fixed: list[str] = Field(default_factory=list)
    ocr: dict[str, str] = Field(default_factory=dict)
    attack: VariantDescription | None = None
    attack_seed: int | None = None


class ShotList(Section):
    """One K-shot list.

    Attributes:
        shots: K.
        seed: Seed of the draw.
        ids: The memes.
    """

    shots: int
    seed: int
    ids: list[str]


class KShotManifest(Manifest):
    """K-shot lists of a split (`ra-hmd data k-shot`).

    Attributes:
        dataset: Name of the data set.
        split: Split that the lists were drawn from.
        task: Task whose classes count.
        per_class: Whether K memes of each class were drawn.
        classes: Names of the classes.
        pool: Class to number of memes.
        fingerprint: Digest of the memes that could be drawn.
        lists: The lists, by K and seed.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("k_shot",)
    REMEDY: ClassVar[str] = "write K-shot lists with `ra-hmd data k-shot`"

    dataset: str | None = None
    split: str | None = None
    task: str | None = None
    per_class: bool | None = None
    classes: list[str] = Field(default_factory=list)
    pool: dict[str, int] = Field(default_factory=dict)
    fingerprint: str | None = None
    lists: list[ShotList] = Field(default_factory=list)


class ShareGptManifest(Manifest):
    """Origin of a ShareGPT file (`ra-hmd data to-sharegpt`), an entry of the folder's record.

    Attributes:
        source: Folder of the imported data set.
        fingerprint: Fingerprint of the import.
        split: Split.
        task: Task whose labels are the answers.
        prompt: Prompt template.
        media_dir: Folder that image paths are relative to.
        shots: K of the K-shot list whose memes alone were written.
        shot_seed: Seed of that list.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("sharegpt",)

    source: str
    fingerprint: str | None = None
    split: str = ""
    task: str = ""
    prompt: str = ""
    media_dir: str | None = None
    shots: int | None = None
    shot_seed: int | None = None


class CheckManifest(Manifest):
    """Report of a check of an imported data set (`report.json`).

    Attributes:
        folder: Folder that was checked.
        dataset: Name of the reader.
        variant: Variant of the data set.
        config: Stage 1 settings that token budgets were computed by.
        rows: Split to number of records.
        classes: Task to split to class to number of records.
        worst: Highest severity that was found.
        findings: The findings: `severity`, `kind`, `count`, `meaning`, `examples`.
        fixed: What `--fix` changed.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("data check",)
    REMEDY: ClassVar[str] = "run `ra-hmd data check` again"

    folder: str = ""
    dataset: str | None = None
    variant: str = ""
    config: str | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    classes: dict[str, dict[str, dict[str, int]]] = Field(default_factory=dict)
    worst: str | None = None
    findings: list[dict[str, Any]] = Field(default_factory=list)
    fixed: list[str] = Field(default_factory=list)
