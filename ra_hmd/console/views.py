"""HTML of the page: verdicts, previews of changes, and the history. The templates escape all external text."""

import base64
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image

from ra_hmd.bank.versions import VersionEntry
from ra_hmd.console.labels import HEADS, ClassNames, format_number
from ra_hmd.console.moderation import ChangePreview
from ra_hmd.console.review_queue import threshold_probabilities
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.templates import template_environment
from ra_hmd.data.images import load_image, picture_formats
from ra_hmd.data.meme import Meme
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.inference.types import Verdict
from ra_hmd.serve.batching import BatchingService, ServedVerdict
from ra_hmd.serve.errors import public_source

_SIDE, _THUMBNAIL_SIDE = 720, 240
_FLIPS_SHOWN = 20


@cache
def _templates() -> Environment:
    environment = template_environment("ra_hmd.console")
    environment.filters["number"] = format_number
    return environment


def render(name: str, **values: Any) -> str:
    """Render a template of this package.

    The value `turn` makes each result unique, so that Gradio replaces the element and its images are blurred again.
    """
    return _templates().get_template(name).render(turn=uuid.uuid4().hex, **values)


def image_url(source: Path | str | bytes | Image.Image, *, thumbnail: bool = False) -> str | None:
    """Return an image as a `data:` URL of a JPEG of at most 720 pixels a side (thumbnail: 240); None if unreadable."""
    try:
        # Uploads come from anyone and are limited to safe formats; files were named by the operator.
        image = load_image(source, picture_formats() if isinstance(source, bytes) else None).copy()
    except UserError:
        return None
    side = _THUMBNAIL_SIDE if thumbnail else _SIDE
    image.thumbnail((side, side))
    content = BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def meme_figure(meme: Meme, *, by_ocr: bool = False) -> str:
    """Render the blurred image of a meme with its caption; `by_ocr` tells that the caption was read from the image."""
    return render("meme.html", picture=image_url(meme.image), text=meme.text, read=by_ocr)


@dataclass(frozen=True)
class HeadScoreRow:
    """One output of a head: score and probability, and their thresholds (None for a single-label task)."""

    name: str
    score: float
    probability: float
    probability_threshold: float | None
    score_threshold: float | None


@dataclass
class Views:
    """Renders verdicts and changes in the words of one detector.

    Args:
        service: Batching service whose verdicts are shown.
        names: Names of the classes.
        lookup: Images and captions of the bank's memes.
    """

    service: BatchingService
    names: ClassNames
    lookup: MemeLookup

    def card(self, served: ServedVerdict, in_bank: Mapping[str, Any] | None = None) -> str:
        """Render the verdict, the scores and the neighbours of a meme.

        Args:
            served: Verdict with its meme and versions.
            in_bank: Labels, by id, of the bank rows that are this very meme.
        """
        verdict = served.verdict
        return render(
            "verdict.html",
            verdict=self.names(verdict.verdict),
            reason=self._reason(verdict),
            unsure=verdict.verdict is None,
            heads=[self._head(verdict, head) for head in HEADS if head in verdict.scores],
            known=self._known(verdict),
            check=verdict.caption_check,
            neighbours=None if verdict.neighbours is None else [self._neighbour(one) for one in verdict.neighbours],
            contributions=self._contributions(verdict),
            rest=np.atleast_1d(0.0 if verdict.contributions_rest is None else verdict.contributions_rest).tolist(),
            in_bank={name: self.names(label) for name, label in (in_bank or {}).items()},
            version=served.version,
        )

    def figure(self, served: ServedVerdict) -> str:
        """Render the image and the caption of a meme that was scored."""
        return meme_figure(served.meme, by_ocr=served.verdict.text_source != "given")

    def impact(self, preview: ChangePreview) -> str:
        """Render the impact of a change that is not made yet."""
        impact = preview.impact
        found = {"rkc": impact, "krr": impact["krr"]}
        heads = [self._flips_of(head, found[head]) for head in BANK_HEADS if found[head] is not None]
        return render("impact.html", change=self._change(preview), impact=impact, heads=heads)

    def _flips_of(self, head: Head, found: Mapping[str, Any]) -> dict[str, Any]:
        """What a change does to the verdicts of one head."""
        counts: dict[str, int] = {}
        for flip in found["flips"]:
            kind = f"from {self.names(flip['from'])} to {self.names(flip['to'])}"
            counts[kind] = counts.get(kind, 0) + 1
        shown = [flip | {"from": self.names(flip["from"]), "to": self.names(flip["to"]),
                         "label": self._label(flip["label"])} for flip in found["flips"][:_FLIPS_SHOWN]]  # fmt: skip
        return {
            "key": head,
            "name": HEADS[head][0],
            "decides": head == self.service.detector.head,
            "flips": shown,
            "count": len(found["flips"]),
            "counts": counts,
            "paired": found["paired"],
        }

    def _change(self, preview: ChangePreview) -> str:
        if preview.label is None:
            return f"Go back to version {preview.target}"
        name = self.names(preview.label)
        if preview.rows:
            rows = ", ".join(preview.rows)
            return f"This meme is in the bank already, as {rows}: give that row the label “{name}”"
        return f"Add this meme to the bank as “{name}”"

    def history(self, log: list[VersionEntry]) -> str:
        """Render the log of the bank, newest version first."""
        return render("history.html", log=log[::-1])

    def _reason(self, verdict: Verdict) -> str:
        """Explain in one sentence how a verdict came about."""
        head, short, kind = verdict.head, HEADS[verdict.head][0], self.names.problem.kind
        if not verdict.scores:
            return "Known: a copy of a labelled meme, with the same caption. The model was not asked."
        if verdict.identical is not None:
            return (
                f"A person labelled this very picture and caption (row {verdict.identical['id']} of the bank, "
                f"{verdict.identical['time'][:10]}); what the heads say is below."
            )
        if self._is_caption_doubted(verdict):
            return "The caption and the words on the picture differ too much to decide by them."
        if verdict.verdict is None and verdict.verdicts[head] is None:
            return "No example in the bank is similar enough to vote on it."
        values = np.atleast_1d(verdict.probabilities[head])
        if kind == "single_label":
            return f"Decided by {short}: the most likely class, probability {format_number(values.max())}."
        value, threshold = (format_number(one[0]) for one in (values, threshold_probabilities(self.service, head)))
        if verdict.verdict is None:
            band = format_number(self.service.detector.abstain)
            return f"Probability {value} is too near to the threshold of {threshold} ({short}): less than {band} away."
        if kind == "binary":
            return f"Decided by {short}: probability {value}; from {threshold} on it is “{self.names.names[1]}”."
        return f"Decided by {short}, for each class by its own threshold."

    def _is_caption_doubted(self, verdict: Verdict) -> bool:
        """Whether a meme is left to a person for its caption."""
        check = verdict.caption_check
        if verdict.verdict is not None or check is None or check["agrees"]:
            return False
        return self.service.detector.defences.check_captions == "abstain"

    def _known(self, verdict: Verdict) -> dict[str, Any] | None:
        """The row that a meme is a copy of."""
        if verdict.known is None:
            return None
        turned = verdict.known["transform"].replace("_", " ")
        return verdict.known | {"label": self._label(verdict.known["label"]), "turned": turned}

    def _head(self, verdict: Verdict, head: Head) -> dict[str, Any]:
        names, kind = self.names.names, self.names.problem.kind
        scores, probabilities = np.atleast_1d(verdict.scores[head]), np.atleast_1d(verdict.probabilities[head])
        thresholds: list[tuple[float | None, float | None]] = [(None, None)] * len(scores)
        if kind != "single_label":
            raw = self.service.detector.scorer.rule(head).thresholds.tolist()
            thresholds = list(zip(threshold_probabilities(self.service, head).tolist(), raw, strict=True))
        outputs = [
            HeadScoreRow(name, float(score), float(probability), *limits)
            for name, score, probability, limits in zip(
                names[1:] if kind == "binary" else names, scores, probabilities, thresholds, strict=True
            )
        ]
        short, description = HEADS[head]
        return {
            "key": head,
            "name": short,
            "description": description,
            "outputs": outputs,
            "verdict": self.names(verdict.verdicts[head]),
            "decides": head == verdict.head,
        }

    def _neighbour(self, neighbour: dict[str, Any]) -> dict[str, Any]:
        meme = self.lookup.get(neighbour["id"])
        vote = neighbour["vote"]
        origin = neighbour | {"source": public_source(neighbour.get("source", ""))}
        return neighbour | {
            "label": self._label(neighbour["label"]),
            "votes": [vote] if isinstance(vote, float) else vote,
            "text": None if meme is None else meme.text,
            "picture": None if meme is None else image_url(meme.image, thumbnail=True),
            "from": {name: value for name in ("source", "note", "time") if (value := origin.get(name, ""))},
        }

    def _contributions(self, verdict: Verdict) -> list[dict[str, Any]] | None:
        """The rows that add most to the score of the kernel head, where it decides."""
        if verdict.head != "krr" or verdict.contributions is None:
            return None
        return [
            {"id": one["id"], "label": self._label(one["label"]), "shares": np.atleast_1d(one["share"]).tolist()}
            for one in verdict.contributions
        ]

    def _label(self, label: Any) -> str:
        missing = label == -1 or (isinstance(label, list) and -1 in label)
        return "not labelled" if missing else self.names(label)
