"""Figures of the concepts: the project's own code at work on made-up points in the plane."""

import io
from collections.abc import Callable

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

from ra_hmd.core.plotting import BLUE, GREY, VERMILION, panels
from ra_hmd.evaluation.metrics.intervals import proportion
from ra_hmd.retrieval.kernel_ridge.system import RidgeSystem
from ra_hmd.retrieval.kernel_ridge.tuning import tune
from ra_hmd.retrieval.knn import search
from ra_hmd.retrieval.voting import Voting
from stage2.losses.contrastive import contrastive_loss
from stage2.losses.similarity import Similarity

Score = Callable[[np.ndarray], np.ndarray]

LOOKS = ((BLUE, "o", "benign"), (VERMILION, "^", "hateful"))
"""Colour, marker and name of each class."""
STEPS = 60
"""Steps of the loss in the figure of contrast."""


def figures() -> dict[str, str]:
    """File name to SVG."""
    drawn = {"heads": heads(), "contrast": contrast(), "bank": bank(), "evaluation": evaluation()}
    return {f"{name}.svg": _svg(figure) for name, figure in drawn.items()}


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ra-hmd"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _moons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bent classes of points that a straight line does not part: [N, 2], and labels [N]."""
    random = np.random.default_rng(seed)
    angle = random.uniform(0.1, 0.9, count) * np.pi
    labels = np.arange(count) % 2
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1 - np.cos(angle), 0.45 - np.sin(angle)], axis=1)
    return np.where(labels[:, None] == 0, upper, lower) * 1.4 + random.normal(0, 0.16, (count, 2)), labels


def _points(axis: Axes, points: np.ndarray, labels: np.ndarray, size: float = 26) -> None:
    for label, (colour, marker, name) in enumerate(LOOKS):
        own = points[labels == label]
        axis.scatter(*own.T, s=size, c=colour, marker=marker, label=name, edgecolors="white", linewidths=0.5, zorder=3)
    axis.set(xticks=[], yticks=[], aspect="equal")


def _regions(axis: Axes, score: Score, points: np.ndarray) -> None:
    """What a head says at every place: shaded by its sign, with the boundary as a line."""
    (left, low), (right, high) = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
    across, up = np.meshgrid(np.linspace(left, right, 121), np.linspace(low, high, 121))
    values = score(np.stack([across.ravel(), up.ravel()], axis=1)).reshape(across.shape)
    axis.contourf(across, up, values, levels=[-np.inf, 0, np.inf], colors=[BLUE, VERMILION], alpha=0.14)
    axis.contour(across, up, values, levels=[0], colors=[GREY], linewidths=1.2)


def _vote(points: np.ndarray, labels: np.ndarray, k: int) -> Score:
    """RKC. Cosines need directions, so that a point of the plane is put on a sphere."""

    def on_sphere(places: np.ndarray) -> np.ndarray:
        return np.concatenate([places / 3, np.ones((len(places), 1))], axis=1)

    def score(places: np.ndarray) -> np.ndarray:
        found = search(on_sphere(places), on_sphere(points), k)
        return Voting(topk=k).vote(found, labels).scores[:, 0]

    return score


def _kernel(points: np.ndarray, labels: np.ndarray) -> Score:
    """KRR, with the parameters that leave-one-out chooses."""
    signs, weights = (2.0 * labels - 1)[:, None], np.ones(len(labels))
    chosen = tune({"embedding": points}, signs, weights)
    rows = chosen.kernel.standardised({"embedding": points})
    system = RidgeSystem.solve(chosen.kernel(rows, rows), signs, chosen.noise, weights)

    def score(places: np.ndarray) -> np.ndarray:
        return (chosen.kernel(chosen.kernel.standardised({"embedding": places}), rows) @ system.coefficients)[:, 0]

    return score


def heads() -> Figure:
    """The same points, and what three heads say at every place."""
    points, labels = _moons(60, seed=3)
    line = LogisticRegression().fit(points, labels)
    titled = {
        "LRC: logistic regression": line.decision_function,
        "RKC: vote of the 5 nearest": _vote(points, labels, 5),
        "KRR: kernel ridge regression": _kernel(points, labels),
    }
    figure, axes = panels(3, width=3.4, height=3.0)
    for axis, (title, score) in zip(axes[0], titled.items(), strict=True):
        _regions(axis, score, points)
        _points(axis, points, labels)
        axis.set_title(title, fontsize=10)
    axes[0, 0].legend(fontsize=8, loc="lower left")
    return figure


def contrast() -> Figure:
    """Points before and after some steps of the retrieval-guided loss, with the rows that were mined for one."""
    random = np.random.default_rng(5)
    labels = np.arange(40) % 2
    points = random.normal(0, 1.0, (40, 2)) + np.where(labels[:, None] == 0, -0.35, 0.35)
    titled = {"before": points, f"after {STEPS} steps": _trained(points, labels)}
    figure, axes = panels(2, width=4.2, height=3.8)
    anchor = _confused(points, labels)
    for axis, (title, places) in zip(axes[0], titled.items(), strict=True):
        _points(axis, places, labels)
        for same, (style, name) in enumerate((("--", "hard negative"), ("-", "pseudo-gold positive"))):
            row = _nearest(places, labels, anchor, same=bool(same))
            axis.plot(*places[[anchor, row]].T, style, c="black", lw=1.4, label=name, zorder=2)
        axis.scatter(*places[anchor], s=130, facecolors="none", edgecolors="black", zorder=4, label="anchor")
        axis.set_title(title, fontsize=10)
        axis.set_adjustable("datalim")  # panels of one size
    figure.legend(*axes[0, 1].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=5)
    return figure


def _nearest(points: np.ndarray, labels: np.ndarray, anchor: int, *, same: bool) -> int:
    """The row nearest to an anchor, of its own or of the other class."""
    distance = np.linalg.norm(points - points[anchor], axis=1)
    distance[(labels == labels[anchor]) != same] = np.inf
    distance[anchor] = np.inf
    return int(distance.argmin())


def _confused(points: np.ndarray, labels: np.ndarray) -> int:
    """The point whose nearest one of the other class is nearer than that of its own by most."""

    def gap(anchor: int) -> float:
        rows = [_nearest(points, labels, anchor, same=same) for same in (True, False)]
        own, other = np.linalg.norm(points[rows] - points[anchor], axis=1)
        return float(own - other)

    return max(range(len(points)), key=gap)


def _trained(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The points after steps down the loss, each with positives and hard negatives that were mined anew."""
    places = torch.tensor(points, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.SGD([places], lr=2.0)
    mask = torch.ones(len(labels), 1, dtype=torch.bool)
    for _ in range(STEPS):
        now = places.detach()
        mined = [
            [_nearest(now.numpy(), labels, row, same=same) for row in range(len(labels))] for same in (True, False)
        ]
        positives, negatives = (now[rows][:, None] for rows in mined)
        loss = contrastive_loss(
            places, torch.tensor(labels), positives, mask, negatives, mask, similarity=Similarity("l2")
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return places.detach().numpy()


def bank() -> Figure:
    """The kernel head with a bank, and with eight more rows of a new kind."""
    random = np.random.default_rng(1)
    labels = np.arange(50) % 2
    points = random.normal(0, 0.5, (50, 2)) + np.where(labels[:, None] == 0, (-1.2, 0.0), (1.2, 0.6))
    added = random.normal(0, 0.18, (8, 2)) + np.array([-1.3, -1.9])
    figure, axes = panels(2, width=4.2, height=3.6)
    every, all_labels = np.concatenate([points, added]), np.concatenate([labels, np.ones(8, int)])
    banks = {"bank of 50 rows": (points, labels), "the same and 8 rows of a new kind": (every, all_labels)}
    for axis, (title, (rows, own)) in zip(axes[0], banks.items(), strict=True):
        _regions(axis, _kernel(rows, own), every)
        _points(axis, rows, own)
        axis.set_title(title, fontsize=10)
    axes[0, 0].legend(fontsize=8, loc="lower right")
    return figure


def evaluation() -> Figure:
    """The interval of an accuracy of 0.8 over the number of memes."""
    counts = np.unique(np.geomspace(20, 5000, 60).astype(int) // 5 * 5)
    ends = np.array([proportion(round(0.8 * count), int(count)) for count in counts])
    figure, axes = panels(1, width=6.4, height=3.2)
    axis = axes[0, 0]
    axis.fill_between(counts, *ends.T, color=BLUE, alpha=0.25, label="95 % interval")
    axis.axhline(0.8, color=BLUE, label="accuracy 0.8")
    axis.set(xscale="log", xlabel="memes in the test set", ylabel="accuracy", xticks=[20, 50, 150, 500, 1500, 5000])
    axis.set_xticklabels(["20", "50", "150", "500", "1,500", "5,000"])
    axis.minorticks_off()
    axis.legend(fontsize=8, loc="lower right")
    return figure
