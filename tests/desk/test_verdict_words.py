"""A verdict in words, for tasks of each kind; what comes from outside is text, not markup."""

from typing import Any

import numpy as np
import pytest
from desks import MakeDesk

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.texts import Texts
from ra_hmd.desk.verdict_view import VerdictWords

HOSTILE = "<img src=x onerror=alert(1)>"
KINDS: dict[str, tuple[Problem, Any, Any, str, str]] = {
    "binary": (BINARY, 0.75, 1, "rude", "act"),
    "single_label": (Problem("single_label", 3), [0.2, 0.7, 0.1], 1, "rude", "act"),
    "multi_label": (Problem("multi_label", 3), [0.2, 0.7, 0.9], [0, 1, 1], "rude, hostile", "act"),
}


def words(problem: Problem, names: tuple[str, ...] = (), language: str = "en") -> VerdictWords:
    return VerdictWords(ClassNames(problem, names), Texts(language))


def answer(probability: Any, verdict: Any, *, own: Any = None, **more: Any) -> dict[str, Any]:
    """A verdict as the API states it; `own` is that of its head, where the detector left the meme to a person."""
    row = {"id": HOSTILE, "label": verdict, "similarity": 0.9, "note": HOSTILE,
           "source": "/srv/ours/features/train", "time": "2026-01-02T00:00:00+00:00"}  # fmt: skip
    own = verdict if own is None else own
    return {"verdict": verdict, "head": "lrc", "scores": {"lrc": probability}, "probabilities": {"lrc": probability},
            "verdicts": {"lrc": own}, "neighbours": [row] * 7, "identical": None,
            "version": {"bank": {"version": 4}}} | more  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_verdict_of_each_kind(kind: str) -> None:
    problem, probability, verdict, said, tone = KINDS[kind]
    thresholds = {} if kind == "single_label" else {"lrc": [0.5] * np.size(probability)}
    view = words(problem, ("kind", "rude", "hostile")[: problem.classes]).view(answer(probability, verdict), thresholds)
    assert (view.word, view.tone, view.bank_version) == (said, tone, 4)
    assert [gauge.value for gauge in view.head.gauges] == np.atleast_1d(probability).tolist()
    assert [gauge.threshold for gauge in view.head.gauges] == [None if kind == "single_label" else 0.5] * np.size(
        probability
    )
    assert (len(view.near), len(view.more)) == (2, 5)
    assert "/srv" not in repr(view), "folders of the server"


@pytest.mark.parametrize(
    ("said", "served"),
    [
        ("52 % is too near to the threshold of 50 %.", answer(0.52, None, own=1)),
        ("No labelled meme is similar enough to vote on it.", answer(0.52, None)),
        ("the words on the picture differ too much", answer(0.9, None, own=1, caption_check={"agrees": False})),
        ("A person labelled this very meme on 2026-03-04.", answer(0.9, 1, identical={"time": "2026-03-04T00:00:00"})),
        ("75 %; from 50 % on it is “hateful”.", answer(0.75, 1)),
    ],
)
def test_how_a_verdict_came_about_is_said(said: str, served: dict[str, Any]) -> None:
    view = words(BINARY).view(served, {"lrc": [0.5]})
    assert said in view.reason
    assert (view.tone == "open") == (served["verdict"] is None)
    assert words(BINARY, language="de").view(served, {"lrc": [0.5]}).reason != view.reason


def test_names_are_as_many_as_classes_and_differ() -> None:
    for names in (["rude"], ["rude", "rude"]):
        with pytest.raises(UserError, match="2 different names"):
            ClassNames(BINARY, names)


@pytest.mark.parametrize("path", ["/console/review", "/console/cases", "/console/cases/{case}"])
def test_what_comes_from_outside_is_text(desk: MakeDesk, path: str) -> None:
    with desk() as served:
        (case,) = served.add(1, context=HOSTILE, source=HOSTILE)
        served.cases.store.note(case, "ana", HOSTILE)
        page = served.client.get(path.format(case=case)).text
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
