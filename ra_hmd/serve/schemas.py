"""Request and response models of the API.

Docstrings, descriptions and names of the models are part of the OpenAPI document, from which clients are generated:
they stay as they are. A model whose class has another name here keeps its public name by `__qualname__` and `title`.
"""

import base64
import binascii
import uuid
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from ra_hmd.data.image_files import PICTURE_FORMAT_NAMES
from ra_hmd.data.meme import Meme
from ra_hmd.serve.errors import public_name, public_source


def decode_picture(value: Any) -> bytes:
    """Decode a picture in base64, or in a data: URL. Raises `ValueError` for all else."""
    if not isinstance(value, str):
        raise ValueError("must be text in base64")
    kind = value[:6].lower()
    if kind.startswith(("http:", "https:", "file:")):
        raise ValueError("must be the picture's file in base64, or a data: URL; other addresses are not fetched")
    if kind.startswith("data:"):  # as browsers give a file (RFC 2397): nothing is fetched
        head, _, value = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("is a data: URL without `;base64`; send the picture's file in base64")
        value = unquote(value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is not base64 (RFC 4648, without line breaks)") from error


def keep_text(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Accept any text: pydantic would refuse the whole request for a lone surrogate in one caption. Each meme is
    checked for them by itself.
    """
    return value if isinstance(value, str) else handler(value)


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number; true and false are none")
    return value


def _label(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Accept a class, or a list of 0 and 1 for several classes. JSON's true would pass as 1."""
    parts = value if isinstance(value, list) else [value]
    try:
        if not any(isinstance(part, bool) for part in parts):
            return handler(value)
    except ValidationError:
        pass
    raise ValueError("must be a class (a whole number from 0 on), of several classes a list of 0 and 1")


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


Picture = Annotated[
    bytes,
    BeforeValidator(decode_picture),
    WithJsonSchema(
        {
            "type": "string",
            "contentEncoding": "base64",
            "minLength": 1,
            "description": f"The file of the picture in base64, or as a data: URL: {PICTURE_FORMAT_NAMES}.",
        }
    ),
]
Caption = Annotated[str | None, WrapValidator(keep_text)]
MemeId = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="A name without line breaks.")
]
Score = float | list[float]
Class = Annotated[int, Field(ge=0, le=1_000_000)]
Label = Class | list[Class]
GivenLabel = Annotated[Label, WrapValidator(_label)]
Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Reason = Annotated[
    str, Field(min_length=1, max_length=1000, description="Why; the log keeps it."), AfterValidator(_not_blank)
]


RelabelIdentical = Annotated[
    bool, Field(description="Rows that are the same picture and caption with another label get the new one, instead of "
                "a refusal (409).")
]  # fmt: skip


PlaceName = Annotated[str, AfterValidator(public_name)]
Source = Annotated[str, AfterValidator(public_source)]


class Strict(BaseModel):
    """What is sent: unknown fields are refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")


class MemeIn(Strict):
    """A meme."""

    image: Picture
    text: Caption = Field(None, description="Its caption; without it, it is read from the picture (extra `ocr`).")
    id: MemeId | None = Field(None, description="Its name, by default a new one. The bank's row of it has no vote.")


class ClassifyRequest(Strict):
    """Memes to judge."""

    memes: list[MemeIn] = Field(min_length=1)


class ExplainRequest(Strict):
    """A meme to judge and to explain."""

    meme: MemeIn


class SearchRequest(Strict):
    """A meme whose neighbours are asked for; nothing of it is kept."""

    meme: MemeIn
    k: Whole = Field(20, ge=1, le=1000, description="How many.")


class LabelledMeme(Strict):
    """A meme and what a person says that it is."""

    id: MemeId
    image: Picture
    text: Caption = Field(None, description="Its caption; without it, it is read from the picture.")
    label: GivenLabel = Field(description="A class, of several classes a list of 0 and 1.")
    note: str = Field("", max_length=1000, description="Kept with the row.")


def to_meme(body: MemeIn | LabelledMeme) -> Meme:
    """Convert a meme of a request, without its label; a meme without an id gets a random one."""
    return Meme(body.id or uuid.uuid4().hex, body.image, body.text)


class AddRequest(Strict):
    """Memes for the bank."""

    memes: list[LabelledMeme] = Field(min_length=1)
    reason: Reason
    source: str = Field("api", min_length=1, max_length=200, description="Where they come from.")
    relabel_identical: RelabelIdentical = False


class RemoveRequest(Strict):
    """Rows to take out."""

    ids: list[MemeId] = Field(min_length=1, max_length=10_000)
    reason: Reason


class RelabelRequest(Strict):
    """Rows and their new labels."""

    labels: dict[MemeId, GivenLabel] = Field(min_length=1, max_length=10_000)
    reason: Reason
    relabel_identical: RelabelIdentical = False


class RollbackRequest(Strict):
    """The version to go back to."""

    version: Whole = Field(ge=1)
    reason: Reason


class EffectRequest(Strict):
    """A change that is only looked at; or, with `rollback` alone, going back to that version."""

    add: list[LabelledMeme] = Field(default_factory=list)
    remove: list[MemeId] = Field(default_factory=list, max_length=10_000)
    relabel: dict[MemeId, GivenLabel] = Field(default_factory=dict, max_length=10_000)
    rollback: Whole | None = Field(None, ge=1)
    relabel_identical: RelabelIdentical = False


class BankVersion(BaseModel):
    """Which bank voted."""

    place: PlaceName | None = Field(None, description="Its name.")
    sha256: str | None = None
    version: int | None = Field(None, description="Of an example bank.")


class Version(BaseModel):
    """What an answer depends on."""

    run: PlaceName = Field(description="The name of its folder.")
    head_sha256: str
    bank: BankVersion


class Neighbour(BaseModel):
    """A row of the bank that voted."""

    id: str
    label: Label
    similarity: float
    vote: Score
    share: float
    source: Source | None = None
    note: str | None = None
    time: str | None = None


class Contribution(BaseModel):
    """A row of the bank, and what it adds to the score of the KRR."""

    id: str
    label: Label
    share: Score


class Identical(BaseModel):
    """The row of the bank that is this very picture and caption, to which a person gave its label."""

    id: str
    label: Label
    source: Source
    note: str
    time: str


class Known(BaseModel):
    """The row whose picture is a copy of the meme's. With the meme's caption too, and no row that contradicts it, it
    decides, and the model did not see the meme.
    """

    id: str
    label: Label
    hash: Literal["pdq", "phash"]
    distance: int = Field(description="Of the two hashes, in bits.")
    transform: str = Field(description="What makes the meme's picture the row's: none, rotate_90, flip_left_right, ….")
    same_caption: bool | None = Field(description="null: the row's caption is not known, or empty.")
    decides: bool
    contradicted_by: str | None = Field(description="Another such row with another label.")
    source: Source
    note: str
    time: str


class CaptionCheck(BaseModel):
    """The caption against the words that were read from the picture, with `--check-captions`."""

    read: str
    agreement: float = Field(description="Share of the letters that both have in common, in their order.")
    agrees: bool = Field(description="Whether that is at least `--min-agreement`.")


class JudgedMeme(BaseModel):
    """What is said of a meme: see `Verdict` in the Python API."""

    __qualname__ = "Judged"
    model_config = ConfigDict(title="Judged")

    id: str
    text: str
    text_source: str
    scores: dict[str, Score]
    probabilities: dict[str, Score]
    verdicts: dict[str, Label | None]
    head: Literal["lmh", "lrc", "rkc", "krr"]
    verdict: Label | None = Field(
        description="Of `head`, or the label of `identical` or `known`; null: left to a person."
    )
    threshold: Score | None
    neighbours: list[Neighbour] | None
    contributions: list[Contribution] | None = Field(
        None, description="The rows that add most to the score of the KRR; with `contributions_rest` the whole score."
    )
    contributions_rest: Score | None = None
    identical: Identical | None = None
    known: Known | None = None
    caption_check: CaptionCheck | None = None
    version: Version


class NotJudged(BaseModel):
    """Why a meme was not judged; the others of its request were."""

    id: str
    error: str


class ClassifyAnswer(BaseModel):
    """A result for each meme, in their order."""

    results: list[JudgedMeme | NotJudged]


class Rationale(BaseModel):
    """What the language model says to a verdict: generated after it, and not its cause."""

    id: str
    rationale: str
    prompt: str
    neighbours: list[str]
    engine: str
    policy_sha256: str | None
    generated: Literal[True]


class ExplainAnswer(BaseModel):
    """A verdict, and words about it."""

    result: JudgedMeme
    explanation: Rationale


class BankRow(BaseModel):
    """A row of the bank, and how similar it is."""

    __qualname__ = "Row"
    model_config = ConfigDict(title="Row")

    id: str
    similarity: float
    label: Label
    source: Source
    note: str
    time: str
    image_hash: str


class SearchAnswer(BaseModel):
    """The nearest rows, nearest first."""

    version: int
    neighbours: list[BankRow]


class LogEntry(BaseModel):
    """A version of the bank."""

    version: int
    action: str
    author: str
    reason: str
    time: str
    counts: dict[str, int]
    restores: int | None = None


class BankLog(BaseModel):
    """Versions, newest first."""

    version: int
    entries: list[LogEntry]


class BankInfo(BaseModel):
    """See `ra-hmd bank info`; of folders and addresses only the names."""

    model_config = ConfigDict(extra="allow")

    bank: PlaceName
    version: int
    rows: int
    rows_per_class: list[int]


class Effect(BaseModel):
    """What a change would do; see `ra-hmd bank effect`."""

    model_config = ConfigDict(extra="allow")

    version: int
    queries: int
    flips: list[dict[str, Any]]
    flip_counts: dict[str, int]
