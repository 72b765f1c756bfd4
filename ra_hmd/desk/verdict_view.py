"""A verdict in words for people who know nothing of models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ra_hmd.core.heads import Head
from ra_hmd.core.problem import Problem
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.texts import Texts

HEADS: dict[Head, tuple[str, str]] = {
    "lmh": ("LMH", "the language model's own answer"),
    "lrc": ("LRC", "a classifier trained on how the model sees memes"),
    "rkc": ("RKC", "a vote of the most similar labelled memes"),
    "krr": ("KRR", "all labelled memes together, similar ones most"),
}
_SHOWN = 2
ICONS = ("✓", "✕", "?")
"""Of a class that is nothing to act on, of one that is, and of no verdict; beside colour and word."""


@dataclass(frozen=True)
class Gauge:
    """A head's probability for one class, from 0 to 1, and the threshold."""

    name: str
    value: float
    threshold: float | None


@dataclass(frozen=True)
class HeadView:
    """What one head says."""

    key: Head
    short: str
    meaning: str
    says: str
    decides: bool
    gauges: list[Gauge]


@dataclass(frozen=True)
class NearView:
    """A row of the bank that is similar to the meme."""

    id: str
    label: str
    tone: str
    icon: str
    similarity: float | None
    note: str
    time: str


@dataclass(frozen=True)
class VerdictView:
    """A verdict as the review page shows it.

    Attributes:
        word: Verdict in words.
        tone: `act`, `leave` or `open`: the colour.
        icon: One character of `ICONS`.
        reason: One sentence on how it came about.
        head: The head that decides; None where no head was asked.
        others: The other heads.
        near: The most similar rows of the bank.
        more: The other rows that voted.
        bank_version: Version of the bank that voted; None without one.
    """

    word: str
    tone: str
    icon: str
    reason: str
    head: HeadView | None
    others: list[HeadView]
    near: list[NearView]
    more: list[NearView]
    bank_version: int | None


@dataclass(frozen=True)
class VerdictWords:
    """Puts verdicts of one detector into words.

    Attributes:
        names: Names of the classes.
        text: Sentences of a language.
    """

    names: ClassNames
    text: Texts

    @property
    def problem(self) -> Problem:
        """The detector's problem."""
        return self.names.problem

    def view(self, verdict: Mapping[str, Any], thresholds: Mapping[str, list[float]]) -> VerdictView:
        """The view of a verdict.

        Args:
            verdict: Verdict as `ServedVerdict.to_dict` states it.
            thresholds: Head to its thresholds in probability, for each class; missing for a single-label task.
        """
        decided = verdict.get("verdict")
        heads = [self._head(verdict, head, thresholds.get(head)) for head in HEADS if head in verdict["scores"]]
        near = [self._near(one) for one in self._rows(verdict)]
        return VerdictView(
            word=self.label(decided),
            tone=self.tone(decided),
            icon=self.icon(decided),
            reason=self._reason(verdict, thresholds),
            head=next((one for one in heads if one.decides), None),
            others=[one for one in heads if not one.decides],
            near=near[:_SHOWN],
            more=near[_SHOWN:],
            bank_version=verdict.get("version", {}).get("bank", {}).get("version"),
        )

    def choices(self, verdict: Any = None) -> list[dict[str, Any]]:
        """The classes to choose from, with the digits that choose them, and whether the verdict says so."""
        multi = self.problem.kind == "multi_label"
        return [
            {
                "value": number,
                "name": self.text(name),
                "tone": self.tone(1 if multi else number),
                "icon": self.icon(1 if multi else number),
                "agrees": bool(verdict[number]) if isinstance(verdict, list) else number == verdict,
                "key": str(number + 1) if number < 9 else "",
            }
            for number, name in enumerate(self.names.names)
        ]

    def label(self, label: Any) -> str:
        """A label or verdict in words."""
        if label is None:
            return self.text("no verdict")
        if isinstance(label, list):
            members = [self.text(name) for name, one in zip(self.names.names, label, strict=True) if one == 1]
            return ", ".join(members) or self.text("none of them")
        return self.text("not labelled") if label == -1 else self.text(self.names.names[label])

    def tone(self, label: Any) -> str:
        """`leave` for class 0 (or no class), `act` for any other, `open` where there is none."""
        if label is None or label == -1:
            return "open"
        return "act" if (any(one == 1 for one in label) if isinstance(label, list) else label > 0) else "leave"

    def icon(self, label: Any) -> str:
        """A character beside the word."""
        return dict(zip(("leave", "act", "open"), ICONS, strict=True))[self.tone(label)]

    def _rows(self, verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if verdict["head"] == "krr" and verdict.get("contributions"):
            return list(verdict["contributions"])
        return list(verdict.get("neighbours") or ())

    def _near(self, row: Mapping[str, Any]) -> NearView:
        similarity = row.get("similarity")
        return NearView(
            id=row["id"],
            label=self.label(row["label"]),
            tone=self.tone(row["label"]),
            icon=self.icon(row["label"]),
            similarity=None if similarity is None else float(similarity),
            note=str(row.get("note") or ""),
            time=str(row.get("time") or "")[:10],
        )

    def _head(self, verdict: Mapping[str, Any], head: Head, limits: list[float] | None) -> HeadView:
        values = np.atleast_1d(verdict["probabilities"][head]).tolist()
        names = self.names.names[1:] if self.problem.kind == "binary" else self.names.names
        marks: list[float | None] = [None] * len(values) if limits is None else list(limits)
        gauges = [Gauge(self.text(name), value, mark) for name, value, mark in zip(names, values, marks, strict=True)]
        short, meaning = HEADS[head]
        says = self.label(verdict["verdicts"][head])
        return HeadView(head, short, self.text(meaning), says, head == verdict["head"], gauges)

    def _apart(self, value: float, limit: float) -> tuple[str, str]:
        """Two numbers with as few decimals as tell which is larger; with none where 3 do not tell."""
        digits = next((one for one in range(4) if round(value, one) != round(limit, one)), 0)
        return self.text.number(value, digits), self.text.number(limit, digits)

    def _reason(self, verdict: Mapping[str, Any], thresholds: Mapping[str, list[float]]) -> str:
        text, head = self.text, verdict["head"]
        if not verdict["scores"]:
            return text("A copy of a labelled meme with the same caption; the model was not asked.")
        if identical := verdict.get("identical"):
            return text("A person labelled this very meme on {day}.", day=str(identical["time"])[:10])
        check = verdict.get("caption_check")
        if verdict["verdict"] is None and check and not check["agrees"]:
            return text("The caption and the words on the picture differ too much to decide by them.")
        if verdict["verdict"] is None and verdict["verdicts"][head] is None:
            return text("No labelled meme is similar enough to vote on it.")
        values = np.atleast_1d(verdict["probabilities"][head])
        if self.problem.kind == "single_label":
            return text("The most likely class: {value} %.", value=round(100 * float(values.max())))
        if self.problem.kind == "multi_label":
            return text("Each class by its own threshold.")
        value, limit = self._apart(100 * float(values[0]), 100 * float(thresholds[head][0]))
        if verdict["verdict"] is None:
            return text("{value} % is too near to the threshold of {limit} %.", value=value, limit=limit)
        return text("{value} %; from {limit} % on it is “{name}”.", value=value, limit=limit,
                    name=text(self.names.names[1]))  # fmt: skip
