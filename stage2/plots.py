"""Figures of Stage 2: training, mining, a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ra_hmd.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, legend_below, panels, plain_text

_KINDS = (("positives", BLUE, "o"), ("hard_negatives", VERMILION, "^"), ("hard_positives", GREEN, "s"))


def training_figure(epochs: Sequence[Mapping[str, Any]], best_epoch: int) -> Figure:
    """Losses and dev scores per epoch; the kept epoch is marked."""
    score_names = [name for name in epochs[-1] if name.startswith("dev_") and not name.endswith("margin")]
    figure, axes = panels(2 if score_names else 1)
    losses = [("loss", GREEN, "-"), ("retrieval", BLUE, "--"), ("classification", VERMILION, ":")]
    colours = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY)
    scores = list(zip(score_names, colours, ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1))), strict=False))
    for axis, lines, label in zip(axes[0], (losses, scores), ("training loss", "dev score"), strict=False):
        for name, colour, style in lines:
            points = [(entry["epoch"], entry[name]) for entry in epochs if entry.get(name) is not None]
            axis.plot(*np.array(points).reshape(-1, 2).T, color=colour, linestyle=style, marker=".", label=name)
        axis.axvline(best_epoch, color=GREY, linewidth=1, label=f"kept: epoch {best_epoch}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel=label)
        legend_below(axis)
    return figure


def mining_figure(searches: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """How similar what was mined is (median, quartiles), and the shares of anchors that found too little or whose
    nearest negative is nearer than their nearest positive, search by search.
    """
    figure, axes = panels(2)
    similarity, shares = axes[0]
    numbers = np.arange(1, len(searches) + 1)
    for kind, colour, marker in _KINDS:
        found = [search[kind]["similarity"] for search in searches]
        there = np.array([values is not None for values in found])
        if not there.any():
            continue
        low, middle, high = (
            np.array([values[name] for values in found if values]) for name in ("q25", "median", "q75")
        )
        similarity.plot(numbers[there], middle, color=colour, marker=marker, label=kind.replace("_", " "))
        similarity.fill_between(numbers[there], low, high, color=colour, alpha=0.2)
        short = [search[kind]["anchors_short"] / search["anchors"] for search in searches]
        shares.plot(numbers, short, color=colour, marker=marker, label=f"short of {kind.replace('_', ' ')}")
    inverted = [(number, search["inverted"]) for number, search in zip(numbers, searches, strict=True)
                if search["inverted"] is not None]  # fmt: skip
    if inverted:
        shares.plot(*np.array(inverted).T, color=GREY, linestyle="--", label="nearer to a negative")
    similarity.set(xlabel="search of the bank", ylabel=plain_text(f"similarity ({metric})"))
    shares.set(xlabel="search of the bank", ylabel="share of the anchors", ylim=(-0.03, 1.03))
    for axis in (similarity, shares):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(axis)
    return figure


def sweep_figure(trials: Sequence[Mapping[str, Any]], select_by: str, best: int) -> Figure:
    """The dev score of each setting, best at the top, with its standard deviation over seeds."""
    order = sorted(range(len(trials)), key=lambda number: trials[number]["mean"])
    figure, axes = panels(1, width=7.0, height=1.2 + 0.32 * len(trials))
    axis = axes[0, 0]
    for place, number in enumerate(order):
        trial = trials[number]
        colour = GREEN if number == best else BLUE
        axis.errorbar(trial["mean"], place, xerr=trial["std"] or 0, color=colour, marker="o", capsize=3)
    told = [", ".join(f"{name}={value}" for name, value in trials[number]["settings"].items()) for number in order]
    axis.set_yticks(range(len(order)), [plain_text(text) for text in told], fontsize=8)
    axis.set(xlabel=plain_text(select_by), title="mean over seeds ± standard deviation")
    return figure
