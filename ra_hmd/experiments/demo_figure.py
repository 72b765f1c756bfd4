"""Figure of the demo: what labelled memes of a new domain in the bank give the vote and the kernel head."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ra_hmd.core.plotting import GREEN, GREY, VERMILION, save_svg

BANK_UPDATE_FIGURE = "bank_update.svg"
_STYLE = {
    "rkc": ("RKC: vote of the 20 nearest", VERMILION, "s", "--"),
    "krr": ("KRR: kernel ridge regression", GREEN, "o", "-"),
}
_PANELS = (("b_test", "New domain B"), ("a_test", "Domain A, that the model was trained on"))


def head_values(point: Mapping[str, Any], head: str) -> Mapping[str, Any]:
    """Values of the vote (`rkc`) or the kernel head (`krr`) at one point of an update curve."""
    return point["krr"] if head == "krr" else point


def bank_update_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """AUROC with 95 % intervals of both heads by the number of added memes, one panel per query set."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, 2, sharey=True), _PANELS, strict=True):
        for shift, (head, (label, colour, marker, line)) in enumerate(_STYLE.items()):
            values = [head_values(point, head)["auroc"] for point in curves[name]]
            places = np.arange(len(values)) + 0.06 * (shift - 0.5)
            middle, low, high = (np.array([value[key] for value in values], float) for key in ("value", "low", "high"))
            bars = np.clip([middle - low, high - middle], 0, None)
            axis.errorbar(places, middle, bars, color=colour, marker=marker, linestyle=line, capsize=3, label=label)
        axis.set_xticks(range(len(curves[name])), [str(point["added"]) for point in curves[name]])
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("labelled memes of B added to the bank")
        axis.set_ylim(0.4, 1.02)
        axis.grid(axis="y", alpha=0.3)
    figure.axes[0].set_ylabel("AUROC [95 % interval]")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def write_bank_update_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> Path:
    """Write `bank_update.svg`; the same values give the same file."""
    place = folder / BANK_UPDATE_FIGURE
    save_svg(bank_update_figure(curves), place)
    return place
