"""What the page shows, as HTML: everything that comes from outside is escaped by the templates."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ra_hmd.bank.versions import VersionEntry
from ra_hmd.console.labels import HEADS, ClassNames, number
from ra_hmd.console.moderation import ChangePreview
from ra_hmd.console.review_queue import threshold_probabilities
from ra_hmd.console.thumbnails import as_data_url
from ra_hmd.data.meme import Meme
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.inference.types import Verdict
from ra_hmd.serve.batching import BatchingService, ServedVerdict
from ra_hmd.serve.errors import public_source

_FLIPS_SHOWN = 20


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("ra_hmd.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = number
    return found


def render(name: str, **values: Any) -> str:
    """A template of this package, filled; `turn` makes each text a new one, so that a picture is blurred anew."""
    return _templates().get_template(name).render(turn=uuid.uuid4().hex, **values)


def picture(query: Meme, text: str | None = None, *, read: bool = False) -> str:
    """A meme's picture, blurred, and its caption.

    Args:
        query: The meme.
        text: The caption that was judged; default: the query's.
        read: Whether it was read from the picture.
    """
    return render(
        "picture.html", picture=as_data_url(query.image), text=query.text if text is None else text, read=read
    )


@dataclass(frozen=True)
class HeadOutput:
    """One output of a head: `probability` and `limit` in [0, 1]; `limit` is None where the highest decides."""

    name: str
    score: float
    probability: float
    limit: float | None
    score_limit: float | None


@dataclass
class Views:
    """Verdicts, effects and figures in the words of one detector.

    Args:
        service: Whose answers are shown.
        names: Of the classes.
        gallery: Pictures and captions of the bank's memes.
    """

    service: BatchingService
    names: ClassNames
    gallery: MemeLookup

    def card(self, answer: ServedVerdict, in_bank: Mapping[str, Any] | None = None) -> str:
        """Verdict, scores and neighbours of a meme.

        Args:
            answer: Of the service.
            in_bank: Id → label of the rows that are this very meme.
        """
        found = answer.detection
        return render(
            "card.html",
            said=self.names(found.verdict),
            why=self._why(found),
            unsure=found.verdict is None,
            heads=[self._head(found, head) for head in HEADS if head in found.scores],
            neighbours=None if found.neighbours is None else [self._neighbour(one) for one in found.neighbours],
            in_bank={name: self.names(label) for name, label in (in_bank or {}).items()},
            version=answer.version,
        )

    def effect(self, plan: ChangePreview) -> str:
        """What a change would do."""
        flips = plan.effect["flips"]
        shown = [flip | {"from": self.names(flip["from"]), "to": self.names(flip["to"]),
                         "label": self._label(flip["label"])} for flip in flips[:_FLIPS_SHOWN]]  # fmt: skip
        counts: dict[str, int] = {}
        for flip in flips:
            turn = f"from {self.names(flip['from'])} to {self.names(flip['to'])}"
            counts[turn] = counts.get(turn, 0) + 1
        what = f"Go back to version {plan.target}" if plan.label is None else (
            f"This meme is in the bank already, as {', '.join(plan.rows)}: give that row the label "
            f"“{self.names(plan.label)}”" if plan.relabels
            else f"Add this meme to the bank as “{self.names(plan.label)}”")  # fmt: skip
        return render("effect.html", what=what, effect=plan.effect, flips=shown, counts=counts)

    def history(self, log: list[VersionEntry]) -> str:
        """The bank's versions, newest first."""
        return render("history.html", log=log[::-1])

    def _why(self, found: Verdict) -> str:
        head, short = found.head, HEADS[found.head][0]
        if found.identical is not None:
            return (
                f"A person labelled this very picture and caption (row {found.identical['id']} of the bank, "
                f"{found.identical['time'][:10]}); what the heads say is below."
            )
        if found.verdict is None and found.verdicts[head] is None:
            return "No example in the bank is similar enough to vote on it."
        if self.names.problem.kind == "single_label":
            best = int(np.argmax(found.probabilities[head]))
            return f"Decided by {short}: the most likely class, probability {number(found.probabilities[head][best])}."
        limits, values = threshold_probabilities(self.service, head), np.atleast_1d(found.probabilities[head])
        if found.verdict is None:
            return (
                f"Probability {number(values[0])} is too near to the threshold of {number(limits[0])} ({short}): "
                "less than "
                f"{number(self.service.detector.abstain)} away."
            )
        if self.names.problem.kind == "binary":
            return (
                f"Decided by {short}: probability {number(values[0])}; from {number(limits[0])} on it is "
                f"“{self.names.names[1]}”."
            )
        return f"Decided by {short}, for each class by its own threshold."

    def _head(self, found: Verdict, head: Any) -> dict[str, Any]:
        problem = self.names.problem
        scores, values = np.atleast_1d(found.scores[head]), np.atleast_1d(found.probabilities[head])
        limits = None if problem.kind == "single_label" else threshold_probabilities(self.service, head)
        raw = self.service.detector.scorer.rule(head).thresholds
        outputs = self.names.names[1:] if problem.kind == "binary" else self.names.names
        bars = [
            HeadOutput(name, float(scores[place]), float(values[place]),
                None if limits is None else float(limits[place]), None if limits is None else float(raw[place]))
            for place, name in enumerate(outputs)
        ]  # fmt: skip
        short, line = HEADS[head]
        verdict = self.names(found.verdicts[head])
        return {
            "key": head,
            "name": short,
            "line": line,
            "bars": bars,
            "verdict": verdict,
            "decides": head == found.head,
        }

    def _neighbour(self, one: dict[str, Any]) -> dict[str, Any]:
        meme: Meme | None = self.gallery.get(one["id"])
        vote = one["vote"]
        known = one | {"source": public_source(one.get("source", ""))}
        return one | {
            "label": self._label(one["label"]),
            "votes": [vote] if isinstance(vote, float) else vote,
            "text": None if meme is None else meme.text,
            "picture": None if meme is None else as_data_url(meme.image, small=True),
            "from": {name: said for name in ("source", "note", "time") if (said := known.get(name, ""))},
        }

    def _label(self, label: Any) -> str:
        missing = label == -1 or (isinstance(label, list) and -1 in label)
        return "not labelled" if missing else self.names(label)
