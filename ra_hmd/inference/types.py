"""The types of inference: a meme to judge, the meme as the model takes it, the verdict, and its explanation."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL.Image import Image

from ra_hmd.core.heads import Head


@dataclass(frozen=True)
class PreparedMeme:
    """A meme as the model takes it: `item` is `FeatureModel.encode`'s, `content` the hash of picture and caption."""

    id: str
    text: str
    text_source: str
    item: Any
    content: str = ""

    @property
    def picture(self) -> Image:
        """Its picture, which an LMM's item holds."""
        return self.item["images"][0]


@dataclass(frozen=True)
class Verdict:
    """What is said of a meme. Values of several classes are lists.

    Attributes:
        id: Of the meme.
        text: The caption that was judged.
        text_source: `given`, or what read it from the picture.
        scores: Head → score, as `ra-hmd evaluate` has it.
        probabilities: Head → calibrated probability where dev gave a calibration, else the score's own.
        verdicts: Head → verdict by its threshold; None where the vote abstained.
        head: Who decides.
        verdict: Its verdict, or the label of `identical`; None: left to a person.
        threshold: Of its score; None for one of C classes, where the highest score decides.
        identical: The row of the bank that is this very picture and caption and that a person labelled: `id`, `label`,
            `source`, `note`, `time`. Then the verdict is its label, whatever the heads say; None where there is none.
        neighbours: Of the vote, nearest first: `id`, `label`, `similarity`, `vote`, `share`, and of an example bank
            `source`, `note`, `time`; None without a bank.
        rationale: What the LMM says to the verdict, if that was asked: generated afterwards, not its cause.
        explanation: What the rationale was made with (`Explanation.fields`).
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
    rationale: str | None = None
    explanation: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without `rationale` and `explanation` where none was asked for."""
        left_out = ("rationale", "explanation") if self.rationale is None else ()
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True)
class Explanation:
    """What the LMM said of a verdict.

    Attributes:
        id: Of the meme.
        rationale: Its words.
        prompt: The question that was asked, with an `<image>` for each picture.
        neighbours: Ids of the bank's memes in the question, in its order.
        engine: What generated it.
        policy_sha256: Of the policy's text; None without one.
        generated: True: wherever the words are shown, this must be said.
    """

    id: str
    rationale: str
    prompt: str
    neighbours: list[str]
    engine: str
    policy_sha256: str | None
    generated: bool = field(default=True, init=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def fields(self) -> dict[str, Any]:
        """`rationale`, and what it was made with as `explanation`: beside a verdict. The question itself, with the
        whole policy, follows from the manifest and the line.
        """
        kept = ("neighbours", "engine", "policy_sha256", "generated")
        return {"rationale": self.rationale, "explanation": {name: getattr(self, name) for name in kept}}


Explain = Callable[[Sequence[Verdict], Sequence[Image]], list[Explanation]]
"""Explains verdicts, given the memes' images."""
