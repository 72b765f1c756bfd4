"""The types of inference: a prepared meme, its verdict, and the explanation of a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from ra_hmd.core.heads import Head

if TYPE_CHECKING:
    from ra_hmd.bank.known_memes import MemeHashes


@dataclass(frozen=True)
class CaptionCheck:
    """A caption against the words that were read from its picture.

    Attributes:
        read: The words.
        agreement: See `caption_agreement`.
        agrees: Whether that is enough.
    """

    read: str
    agreement: float
    agrees: bool


@dataclass(frozen=True)
class PreparedMeme:
    """A meme as the model takes it: decoded, resized and tokenised.

    Attributes:
        id: Id of the meme.
        text: The caption.
        text_source: `given`, or the OCR engine that read the caption.
        item: Input of the model (see `FeatureModel.encode`); None of a known meme with a small image.
        content: Hash of image and caption (see `content_hash`).
        hashes: Hashes of a detector that looks for known memes; else None.
        picture: The decoded image where `item` is None; else None.
        copies: Inputs of the model for changed copies of the image, over which scores are means.
        caption_check: The caption against the words on the image, where that is asked for.
    """

    id: str
    text: str
    text_source: str
    item: Any
    content: str = ""
    hashes: "MemeHashes | None" = None
    picture: Image | None = None
    copies: tuple[Any, ...] = ()
    caption_check: CaptionCheck | None = None

    @property
    def image(self) -> Image:
        """The resized image, which the item of an LMM holds."""
        return self.item["images"][0]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a meme. With several classes, values are lists.

    The model does not see a known meme: it has no scores, probabilities, verdicts of heads, threshold and neighbours.

    Attributes:
        id: Id of the meme.
        text: The caption that was classified.
        text_source: `given`, or the OCR engine that read the caption.
        scores: Head → score, as in `ra-hmd evaluate`.
        probabilities: Head → calibrated probability; without a calibration the score as a probability.
        verdicts: Head → verdict by the head's threshold; None where the vote abstained.
        head: The head that decides.
        verdict: Verdict of `head`, or the label of `identical` or of `known`; None: left to a person.
        threshold: Threshold of the score of `head`; None for one of C classes, where the highest score decides.
        neighbours: Neighbours in the vote, nearest first: `id`, `label`, `similarity`, `vote`, `share`, and for an
            example bank `source`, `note`, `time`; None without a bank.
        identical: Row of the bank with the same image and caption and a label given by a person (`id`, `label`,
            `source`, `note`, `time`); its label overrides the heads. None if there is no such row.
        known: Row whose image is a copy of the meme's, by its hash (see `KnownMeme`); it `decides` if its caption is
            the meme's too. None without such a row, or where known memes are not looked for.
        caption_check: The caption against the words on the image (see `CaptionCheck`), where that is asked for.
        contributions: Rows of the bank that add most to the score of the KRR, regardless of sign: `id`, `label`,
            `share` (what the row adds); at most K. None without a KRR.
        contributions_rest: What all other rows add; shares and rest add up to the score. None without a KRR.
        rationale: Rationale generated after the verdict, if one was requested.
        explanation: How the rationale was generated (see `Explanation.fields`).
    """

    id: str
    text: str
    text_source: str
    scores: dict[Head, float | list[float]]
    probabilities: dict[Head, float | list[float]]
    verdicts: dict[Head, int | list[int] | None]
    head: Head
    verdict: int | list[int] | None
    threshold: float | list[float] | None
    neighbours: list[dict[str, Any]] | None
    identical: dict[str, Any] | None = None
    known: dict[str, Any] | None = None
    caption_check: dict[str, Any] | None = None
    contributions: list[dict[str, Any]] | None = None
    contributions_rest: float | list[float] | None = None
    rationale: str | None = None
    explanation: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the HTTP API; without `known`, `caption_check` and the contributions where they are
        None, and without `rationale` and `explanation` where there is no rationale.
        """
        left_out = {"rationale", "explanation"} if self.rationale is None else set()
        optional = ("known", "caption_check", "contributions", "contributions_rest")
        left_out |= {name for name in optional if getattr(self, name) is None}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def to_row(self, *, brief: bool = False) -> dict[str, Any]:
        """Return the row of a prediction file: first `id`, `head`, and the `score`, `probability` and `verdict` of that
        head, then all further fields.

        Args:
            brief: Of the further fields, keep `neighbours`, `identical` and the contributions only, and these where a
                bank voted. Rows of `ra-hmd predict --queries` are brief.
        """
        row = {
            "id": self.id,
            "head": self.head,
            "score": self.scores.get(self.head),
            "probability": self.probabilities.get(self.head),
            "verdict": self.verdict,
        }
        further = self.to_dict()
        if brief:
            kept = ("neighbours", "identical", "contributions", "contributions_rest")
            further = {} if self.neighbours is None else {name: further[name] for name in kept if name in further}
        return row | {name: value for name, value in further.items() if name not in row}


@dataclass(frozen=True)
class Explanation:
    """The rationale of a verdict, and how it was generated.

    Attributes:
        id: Id of the meme.
        rationale: The text that the LMM generated.
        prompt: The prompt, with an `<image>` for each image.
        neighbours: Ids of the bank's memes that the prompt shows, in its order.
        engine: Name of the generation engine.
        policy_sha256: Digest of the policy's text; None without a policy.
        generated: True. Every place that shows the rationale must say so.
    """

    id: str
    rationale: str
    prompt: str
    neighbours: list[str]
    engine: str
    policy_sha256: str | None
    generated: bool = field(default=True, init=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the HTTP API."""
        return asdict(self)

    def fields(self) -> dict[str, Any]:
        """Return the fields `rationale` and `explanation` of a `Verdict`. The prompt, which holds the whole policy, is
        left out: it follows from the manifest and the row.
        """
        kept = ("neighbours", "engine", "policy_sha256", "generated")
        return {"rationale": self.rationale, "explanation": {name: getattr(self, name) for name in kept}}


Explain = Callable[[Sequence[Verdict], Sequence[Image]], list[Explanation]]
"""Explains verdicts, given the images of their memes."""
