"""Which memes are shown: against a naive loop."""

from dataclasses import replace

import numpy as np
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.data.prompt import OFFICIAL_ANSWERS
from ra_hmd.experiments.in_context.demonstrations import Candidates, DemonstrationSettings, choose_demonstrations
from ra_hmd.experiments.in_context.prompting import class_answers
from ra_hmd.models.tokenization import InputSettings
from ra_hmd.retrieval.index import EXACT_ROWS
from ra_hmd.retrieval.knn import unit_rows

CLASSES = 3


def candidates(rows: int, seed: int, prefix: str) -> Candidates:
    rng = np.random.default_rng(seed)
    return Candidates(
        [f"{prefix}{row}" for row in range(rows)],
        np.arange(rows) % CLASSES,
        rng.normal(size=(rows, 5)).astype(np.float32),
        rng.integers(0, 9, rows).astype(np.uint64),  # many share a picture; 0 is of one colour
    )


@pytest.fixture
def examples() -> Candidates:
    return candidates(60, 1, "e")


@pytest.fixture
def queries(examples: Candidates) -> Candidates:
    """Some are examples themselves."""
    found = candidates(12, 2, "q")
    ids = [*found.ids[:8], *examples.ids[3:7]]
    embedding = np.concatenate([found.embedding[:8], examples.embedding[3:7]])
    return replace(found, ids=ids, embedding=embedding)


def naive(queries: Candidates, examples: Candidates, choice: DemonstrationSettings) -> list[list[int]]:
    lines = []
    for q, name in enumerate(queries.ids):
        ranked = []
        for e, other in enumerate(examples.ids):
            same = queries.image_hashes[q] == examples.image_hashes[e] != 0
            if other == name or same:
                continue
            one, two = queries.embedding[q].astype(np.float64), examples.embedding[e].astype(np.float64)
            ranked.append((-float(one @ two / np.linalg.norm(one) / np.linalg.norm(two)), e))
        ranked.sort()
        if choice.per_class:
            taken = [pair for c in range(CLASSES)
                     for pair in [p for p in ranked if examples.labels[p[1]] == c][: choice.shots]]  # fmt: skip
        else:
            taken = ranked[: choice.shots]
        lines.append([e for _, e in sorted(taken, reverse=True)])
    return lines


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("shots", [1, 4, 8])
def test_retrieved_ones_are_those_of_a_naive_loop(
    queries: Candidates, examples: Candidates, shots: int, per_class: bool
) -> None:
    choice = DemonstrationSettings(shots=shots, per_class=per_class)
    found = choose_demonstrations(queries, examples, choice, CLASSES)
    assert found.rows.tolist() == naive(queries, examples, choice)
    assert (np.diff(found.similarity, axis=1) >= 0).all()  # the nearest is last
    if per_class:
        assert all(np.bincount(examples.labels[row]).tolist() == [shots] * CLASSES for row in found.rows)


def test_of_very_many_examples_the_nearest_are_shown() -> None:
    """Beyond `EXACT_ROWS` the bank's search is approximate: demonstrations must not be."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(EXACT_ROWS + 1, 16)).astype(np.float32)
    asked = rng.normal(size=(300, 16)).astype(np.float32)
    examples = Candidates([f"e{row}" for row in range(len(embedding))], np.arange(len(embedding)) % 2, embedding)
    queries = Candidates([f"q{row}" for row in range(len(asked))], np.zeros(len(asked), dtype=np.int64), asked)
    found = choose_demonstrations(queries, examples, DemonstrationSettings(shots=8), 2)
    best = np.sort(unit_rows(asked) @ unit_rows(embedding).T, axis=1)[:, -8:]
    np.testing.assert_allclose(found.similarity, best, atol=1e-5)


@pytest.mark.parametrize("kind", ["retrieved", "random"])
def test_neither_itself_nor_its_picture_is_shown(queries: Candidates, examples: Candidates, kind: str) -> None:
    found = choose_demonstrations(queries, examples, DemonstrationSettings(shots=20, kind=kind), CLASSES)
    for q, rows in enumerate(found.rows):
        assert len(set(rows.tolist())) == 20
        assert queries.ids[q] not in [examples.ids[row] for row in rows]
        picture = queries.image_hashes[q]
        assert picture == 0 or picture not in examples.image_hashes[rows]
    assert found.left_out > 4
    blind = replace(queries, image_hashes=None)
    alone = choose_demonstrations(blind, examples, DemonstrationSettings(shots=20, kind=kind), CLASSES)
    assert alone.left_out == 4
    shown = [examples.image_hashes[rows] == queries.image_hashes[q] for q, rows in enumerate(alone.rows)]
    assert np.any(shown)  # without hashes the same picture is shown: the test above could fail


@pytest.mark.parametrize("per_class", [False, True])
def test_random_ones_follow_from_the_seed_and_the_query_alone(
    queries: Candidates, examples: Candidates, per_class: bool
) -> None:
    choice = DemonstrationSettings(shots=3, kind="random", per_class=per_class)
    found = choose_demonstrations(queries, examples, choice, CLASSES).rows
    order = np.arange(len(queries.ids))[::-1]
    turned = replace(queries, ids=[queries.ids[row] for row in order], image_hashes=queries.image_hashes[order])
    assert choose_demonstrations(turned, examples, choice, CLASSES).rows[::-1].tolist() == found.tolist()
    assert choose_demonstrations(queries, examples, choice.replace(seed=1), CLASSES).rows.tolist() != found.tolist()
    assert len({tuple(row) for row in found.tolist()}) > 6
    if per_class:
        labels = examples.labels[found]
        assert (np.sort(labels, axis=1) == np.repeat(np.arange(CLASSES), 3)).all()
        assert len({tuple(row) for row in labels.tolist()}) > 3  # classes are mixed, not one after another


def test_no_shots_and_too_many(queries: Candidates, examples: Candidates) -> None:
    assert choose_demonstrations(queries, examples, DemonstrationSettings(shots=0), CLASSES).rows.shape == (12, 0)
    with pytest.raises(UserError, match=r"for 'q0' there are \d+ examples of class 0, 20 are needed"):
        choose_demonstrations(queries, examples, DemonstrationSettings(shots=20, per_class=True), CLASSES)
    with pytest.raises(UserError, match="need features"):
        choose_demonstrations(replace(queries, embedding=None), examples, DemonstrationSettings(shots=2), CLASSES)
    with pytest.raises(UserError, match="`kind`: 'nearest' is not one of"):
        DemonstrationSettings(shots=2, kind="nearest")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`shots` is -1"):
        DemonstrationSettings(shots=-1)


def test_what_is_said_of_each_class() -> None:
    settings = InputSettings(template="qwen2_vl")
    assert class_answers(settings) == OFFICIAL_ANSWERS
    assert class_answers(settings, ("no", "Yes, it is.")) == ("no", "Yes, it is.")
    for wrong in (("Yes", "No"), ("No",), ("No", "Yes", "No"), ("Cake", "Cat")):
        with pytest.raises(UserError, match="give one for each class"):
            class_answers(settings, wrong)
    assert class_answers(settings.replace(positive_answer="True", negative_answer="False")) == ("False", "True")
    several = settings.replace(problem_type="single_label", answers=("cake", "cat", "dog"))
    assert class_answers(several) == ("cake", "cat", "dog")
    assert class_answers(several, ("cake.", "cat.", "dog.")) == ("cake.", "cat.", "dog.")
    with pytest.raises(UserError, match="needs one class per meme"):
        class_answers(several.replace(problem_type="multi_label"))
