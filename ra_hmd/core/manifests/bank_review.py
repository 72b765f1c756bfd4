"""Manifests of the review of a bank."""

from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest, Section
from ra_hmd.core.manifests.reports import TestRecord
from ra_hmd.core.manifests.stores import BankReference


class SupportingRow(Section):
    """A row that adds to the score of another.

    Attributes:
        id: Its id.
        label: Its label.
        share: What it adds to the score; of several classes a list.
    """

    id: str
    label: int | list[int]
    share: float | list[float]


class ContradictedRow(Section):
    """A row whose label the other rows contradict.

    Attributes:
        id: Its id.
        label: Its label.
        suggested: The label that the others give.
        probability: Calibrated probability of its own label; of a label set that of its least likely part.
        score: Its score by the other rows; of several classes a list.
        source: Where the meme comes from.
        rows: The rows that add most to the score, regardless of sign, the strongest first.
    """

    id: str
    label: int | list[int]
    suggested: int | list[int]
    probability: float
    score: float | list[float]
    source: str = ""
    rows: list[SupportingRow] = Field(default_factory=list)


class DuplicateRow(Section):
    """A row that is a copy of another.

    Attributes:
        id: Its id.
        label: Its label.
        source: Where the meme comes from.
        decided: Whether a person gave the label to this very meme.
    """

    id: str
    label: int | list[int]
    source: str = ""
    decided: bool = False


class OpposedDuplicates(Section):
    """Rows that are one meme with different labels.

    Attributes:
        kind: `same` image and caption, or the same caption and a `near` copy of the image.
        distance: Largest distance of two such images, of 256 bits.
        rows: The rows.
    """

    kind: str
    distance: int = 0
    rows: list[DuplicateRow] = Field(default_factory=list)


class ThinClass(Section):
    """A class of which a source has few rows.

    Attributes:
        source: The source.
        label: The class.
        rows: Number of its rows.
    """

    source: str
    label: int
    rows: int


class BankAuditManifest(TestRecord, Manifest):
    """Audit of a bank (`ra-hmd bank audit`).

    Attributes:
        bank: The bank.
        checkpoint: Folder of the head.
        fingerprint: What the bank's vectors depend on.
        arguments: Settings of the audit.
        kernel: Method and parameters of the kernel head.
        problem: Kind of labels and number of outputs.
        rows: Number of rows.
        contradicted: Rows whose label the others contradict, the least probable first.
        duplicates: Copies with different labels.
        unused: Ids of the rows that have a part in no other row's score and neighbourhood.
        thin: Sources with few rows of a class.
        notes: What could not be looked at.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("bank_audit",)
    REMEDY: ClassVar[str] = "give the audit.json of `ra-hmd bank audit`"

    bank: BankReference
    checkpoint: str = ""
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    arguments: dict[str, Any] = Field(default_factory=dict)
    kernel: dict[str, Any] = Field(default_factory=dict)
    problem: dict[str, Any] = Field(default_factory=dict)
    rows: int = 0
    contradicted: list[ContradictedRow] = Field(default_factory=list)
    duplicates: list[OpposedDuplicates] = Field(default_factory=list)
    unused: list[str] = Field(default_factory=list)
    thin: list[ThinClass] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class BankSuggestionsManifest(Manifest):
    """Manifest of suggested memes (`<output>.manifest.json` of `ra-hmd bank suggest`).

    Attributes:
        bank: The bank.
        pool: Feature store and digest of the pool.
        checkpoint: Folder of the head.
        fingerprint: What the vectors depend on.
        arguments: Settings.
        kernel: Method and parameters of the kernel head.
        pool_rows: Number of memes of the pool.
        left_out: Number of those that the bank holds.
        suggested: Number of suggested memes.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("bank_suggestions",)
    REMEDY: ClassVar[str] = "give the manifest beside a file of `ra-hmd bank suggest`"

    bank: BankReference
    pool: dict[str, str] = Field(default_factory=dict)
    checkpoint: str = ""
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    arguments: dict[str, Any] = Field(default_factory=dict)
    kernel: dict[str, Any] = Field(default_factory=dict)
    pool_rows: int = 0
    left_out: int = 0
    suggested: int = 0
