"""Drawn pictures, their questions, and what is measured of answers to them."""

import numpy as np
import pytest

from ra_hmd.data.prompt import Answers
from ra_hmd.experiments.retention.answers import is_bare, is_verdict, share_of_words
from ra_hmd.experiments.retention.pictures import QUESTIONS, draw_memes, draw_questions, fingerprint_items


def test_a_seed_decides_pictures_and_questions_to_the_byte() -> None:
    first, again, other = (draw_questions(5, seed) + draw_memes(5, seed) for seed in (3, 3, 4))
    assert fingerprint_items(first) == fingerprint_items(again) != fingerprint_items(other)
    assert [item.stated() for item in first] == [item.stated() for item in again]


def test_more_pictures_begin_with_the_same_ones() -> None:
    assert fingerprint_items(draw_questions(3, 0)) == fingerprint_items(draw_questions(6, 0)[: 3 * len(QUESTIONS)])
    assert fingerprint_items(draw_memes(3, 0)) == fingerprint_items(draw_memes(6, 0)[:3])


def test_each_picture_is_asked_every_question_and_ids_are_unique() -> None:
    items = draw_questions(20, 0) + draw_memes(20, 0)
    assert len({item.id for item in items}) == len(items) == 20 * len(QUESTIONS) + 20
    assert {kind: [item.kind for item in items].count(kind) for kind in QUESTIONS} == dict.fromkeys(QUESTIONS, 20)


def test_expected_words_are_what_is_drawn() -> None:
    for item in draw_questions(40, 1):
        if item.kind == "text":
            assert share_of_words(item.text, item.expected) == 1
    for meme in draw_memes(40, 1):
        assert meme.description is not None
        assert share_of_words(meme.description, meme.expected) == 1
        assert meme.text in meme.question


def test_pictures_with_more_drawings_have_more_of_the_colour() -> None:
    """The count is in the pixels: columns of the picture that have the body's colour fall apart in as many runs."""
    from ra_hmd.data.synthetic.confounders import DOMAINS

    bodies = {name: colour for domain in DOMAINS for name, colour in domain.bodies.items()}
    asked = {item.id: item for item in draw_questions(60, 2)}
    right = 0
    for number in range(60):
        name = f"picture-{number:04d}"
        pixels = np.asarray(asked[f"{name}-count"].image).astype(int)
        body = np.array(bodies[asked[f"{name}-colour"].expected[0][0]])
        columns = (np.abs(pixels - body).sum(axis=2) == 0).any(axis=0)
        thirds = {"one": 1, "two": 2, "three": 3}[asked[f"{name}-count"].expected[0][0]]
        width = len(columns) // thirds
        right += all(columns[part * width : (part + 1) * width].any() for part in range(thirds))
    assert right == 60


@pytest.mark.parametrize(
    ("answer", "bare", "verdict"),
    [
        ("Yes", True, True),
        ("no.", True, True),
        ("No. It is not a hateful meme.", False, True),
        ("Yesterday a cat", False, False),
        ("The picture shows no cat.", False, False),
        ("Sexist, mean", False, True),
        ("", False, False),
    ],
)
def test_verdicts_are_told_from_answers(answer: str, bare: bool, verdict: bool) -> None:
    assert (is_bare(answer), is_verdict(answer, Answers(("benign", "sexist")))) == (bare, verdict)


def test_words_count_whatever_their_case_and_only_whole() -> None:
    expected = (("cat", "kitten"), ("two", "2"))
    assert share_of_words("2 Kittens", expected) == 0.5
    assert share_of_words("Two KITTEN!", expected) == 1
    assert share_of_words("", expected) == 0
