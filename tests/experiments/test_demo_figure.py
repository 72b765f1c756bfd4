"""The figures of the demo."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_hmd.core.plotting import save_svg
from ra_hmd.experiments.demo_figure import (
    NEAREST,
    POINTS,
    EmbeddedStage,
    embedding_figure,
    write_bank_update_figure,
)
from ra_hmd.retrieval.embeddings import Embeddings


def curve(*values: tuple[float, float]) -> list[dict[str, Any]]:
    """An update curve with AUROCs of the vote and of the kernel head."""

    def around(value: float) -> dict[str, Any]:
        return {"auroc": {"value": value, "low": value - 0.03, "high": value + 0.02}}

    return [{"added": 8 * place, **around(vote), "krr": around(kernel)} for place, (vote, kernel) in enumerate(values)]


@pytest.mark.renders
def test_the_same_values_give_the_same_file_and_others_another(tmp_path: Path) -> None:
    first = {"a_test": curve((0.9, 0.9), (0.9, 0.9)), "b_test": curve((0.5, 0.5), (0.6, 0.8))}
    other = first | {"b_test": curve((0.5, 0.5), (0.6, 0.9))}
    files = []
    for number, curves in enumerate((first, first, other)):
        (tmp_path / str(number)).mkdir()
        files.append(write_bank_update_figure(curves, tmp_path / str(number)).read_bytes())
    assert files[0] == files[1] != files[2]


def embedded(rows: int, seed: int, apart: float) -> Embeddings:
    """Two classes of points, more or less far apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    points = random.normal(size=(rows, 6)).astype(np.float32)
    points[:, 0] += apart * (2 * labels - 1)
    return Embeddings([f"{seed}-{row}" for row in range(rows)], labels, points)


def test_purity_is_that_of_a_naive_loop() -> None:
    bank, memes = embedded(60, 1, 0.7), embedded(30, 2, 0.7)
    shares = []
    for point, label in zip(memes.embedding, memes.labels, strict=True):
        cosine = bank.embedding @ point / np.linalg.norm(bank.embedding, axis=1)
        shares.append(np.mean(bank.labels[np.argsort(-cosine)[:NEAREST]] == label))
    assert EmbeddedStage("any", bank, memes).purity() == pytest.approx(np.mean(shares))


def test_similarities_are_those_of_a_naive_loop() -> None:
    bank, memes = embedded(12, 1, 0.7), embedded(8, 2, 0.7)
    found: dict[bool, list[float]] = {True: [], False: []}
    for point, label in zip(memes.embedding, memes.labels, strict=True):
        for row, other in zip(bank.embedding, bank.labels, strict=True):
            found[bool(label == other)].append(point @ row / np.linalg.norm(point) / np.linalg.norm(row))
    expected = (np.mean(found[True]), np.mean(found[False]))
    assert EmbeddedStage("any", bank, memes).similarities() == pytest.approx(expected, rel=1e-5)


@pytest.mark.renders
def test_the_figure_of_embeddings_states_its_numbers_and_stays_small(tmp_path: Path) -> None:
    stages = [
        EmbeddedStage(title, embedded(80, 1, apart), embedded(2 * POINTS, 2, apart))
        for title, apart in (("before", 0.0), ("after", 4.0))
    ]
    assert 0.4 < stages[0].purity() < 0.6
    assert stages[1].purity() > 0.95
    figure = embedding_figure(stages)
    for axis, stage in zip(figure.axes, stages, strict=True):
        assert f"{stage.title}\n{stage.purity():.1%} of the {NEAREST} nearest have" in axis.get_title()
        assert "mean cosine {:.2f} with its label, {:.2f} with".format(*stage.similarities()) in axis.get_title()
        assert sum(len(points.get_offsets()) for points in axis.collections) == POINTS
    save_svg(figure, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size < 150_000
