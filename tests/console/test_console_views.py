"""What is shown, of two and of several classes; what comes from outside is text, not markup."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ra_hmd.console.labels import ClassNames
from ra_hmd.console.moderation import ChangePreview
from ra_hmd.console.views import Views, meme_figure
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.data.meme import Meme
from ra_hmd.inference.defences import Defences
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.inference.types import Verdict
from ra_hmd.scoring.scores import DecisionRule
from ra_hmd.serve.batching import ServedVerdict

HOSTILE = "<img src=x onerror=alert(1)>"
PROBLEMS: dict[str, tuple[Problem, Any, Any]] = {
    "binary": (BINARY, 0.75, 1),
    "single_label": (Problem("single_label", 3), [0.2, 0.7, 0.1], 1),
    "multi_label": (Problem("multi_label", 3), [0.2, 0.7, 0.9], [0, 1, 1]),
}


def views(problem: Problem, names: tuple[str, ...] = ()) -> Views:
    """Views of a service of which nothing but its rules is asked."""
    scorer = SimpleNamespace(rule=lambda head: DecisionRule.official(head, problem))
    service: Any = SimpleNamespace(detector=SimpleNamespace(problem=problem, scorer=scorer, abstain=0.1, head="krr"))
    return Views(service, ClassNames(problem, names), MemeLookup())


def answer(score: Any, verdict: Any) -> ServedVerdict:
    neighbour = {"id": HOSTILE, "label": verdict, "similarity": 0.9, "vote": score, "share": 1.0,
                 "source": "/srv/ours/features/train",
                 "note": HOSTILE, "time": "2026-01-02T00:00:00+00:00"}  # fmt: skip
    found = Verdict("m", HOSTILE, "given", {"lrc": score}, {"lrc": score}, {"lrc": verdict}, "lrc", verdict, None,
                      [neighbour] * 7)  # fmt: skip
    return ServedVerdict(Meme("m", b"", HOSTILE), found, {"run": "run", "bank": {"version": 4}})


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_card_of_each_kind(kind: str) -> None:
    problem, score, verdict = PROBLEMS[kind]
    names = ("kind", "rude", "hostile")[: problem.classes]
    card = views(problem, names).card(answer(score, verdict), in_bank={HOSTILE: verdict})
    said = "rude, hostile" if kind == "multi_label" else "rude"
    assert f"Verdict: {said}<" in card
    assert "This very meme is in the bank" in card
    for value in np.atleast_1d(score):
        assert f'data-score="{value}"' in card
    assert ("ra-mark" in card) == (kind != "single_label")
    assert "2 more that voted" in card
    assert "<img src=x" not in card
    assert "&lt;img src=x" in card
    assert "Bank version: 4" in card
    assert "source: train ·" in card
    assert "/srv" not in card, "folders of the server"


def test_what_is_left_to_a_person_says_why() -> None:
    shown = views(BINARY)
    near = answer(0.52, None)
    unsure = shown.card(replace(near, verdict=replace(near.verdict, verdicts={"lrc": 1})))
    assert "Verdict: left to a person" in unsure
    assert "too near to the threshold of 0.500" in unsure
    assert "less than 0.100 away" in " ".join(unsure.split())
    assert "No example in the bank is similar enough" in shown.card(near)
    shown.service.detector.defences = Defences(check_captions="abstain")
    check = {"read": HOSTILE, "agreement": 0.25, "agrees": False}
    doubted = shown.card(replace(near, verdict=replace(near.verdict, verdicts={"lrc": 1}, caption_check=check)))
    assert "the words on the picture differ too much" in doubted
    assert "They differ from the caption" in doubted
    assert "&lt;img src=x" in doubted.split('data-agreement="0.25"')[1]


def test_an_effect_in_words() -> None:
    flip = {"id": HOSTILE, "label": -1, "from": 0, "to": "abstained"}
    krr = {"flips": [flip] * 2, "flip_counts": {}, "paired": None}
    impact = {"version": 3, "queries": 9, "flips": [flip] * 30, "paired": None, "krr": krr}
    shown = views(BINARY).impact(ChangePreview("m", 1, 3, impact))
    vote, kernel = shown.split('data-effect="krr"')
    assert "2 verdicts would change" in kernel
    assert "decides</span>" in kernel
    assert "decides</span>" not in vote
    assert "Add this meme to the bank as “hateful”" in shown
    assert "30 from not hateful to left to a person" in shown
    assert "and 10 more" in shown
    assert "label: not labelled" in shown
    assert "<img src=x" not in shown


def test_names_and_choices() -> None:
    with pytest.raises(UserError, match="2 different names"):
        ClassNames(BINARY, ["rude"])
    several = ClassNames(PROBLEMS["multi_label"][0])
    assert several.label_of([0, 2]) == [1, 0, 1]
    for names, chosen in ((several, [7]), (several, 1), (ClassNames(BINARY), None), (ClassNames(BINARY), 2)):
        with pytest.raises(UserError, match="Choose"):
            names.label_of(chosen)
    assert ClassNames(BINARY).opposite(1) == 0
    assert "cannot be shown" in meme_figure(Meme("x", b"no picture", HOSTILE))
    assert "<img src=x" not in meme_figure(Meme("x", b"no picture", HOSTILE))
