"""A figure of Stage 2's mining."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ra_hmd.core.plotting import BLUE, GREEN, GREY, VERMILION, legend_below, panels, plain_text

_KINDS = (("positives", BLUE, "o"), ("hard_negatives", VERMILION, "^"), ("hard_positives", GREEN, "s"))


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
