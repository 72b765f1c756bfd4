"""Figures of a training: its curves, a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from easydict import EasyDict
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ra_hmd.core.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, legend_below, panels, plain_text

_STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))


def training_figure(epochs: Sequence[Mapping[str, Any]], best_epoch: int, loss_names: Sequence[str]) -> Figure:
    """The named losses and the dev scores per epoch; the kept epoch is marked."""
    score_names = [name for name in epochs[-1] if name.startswith("dev_") and not name.endswith("margin")]
    figure, axes = panels(2 if score_names else 1)
    losses = list(zip(loss_names, (GREEN, BLUE, VERMILION, PURPLE, ORANGE), _STYLES, strict=False))
    scores = list(zip(score_names, (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY), _STYLES, strict=False))
    for axis, lines, label in zip(axes[0], (losses, scores), ("training loss", "dev score"), strict=False):
        for name, colour, style in lines:
            points = [(entry["epoch"], entry[name]) for entry in epochs if entry.get(name) is not None]
            axis.plot(*np.array(points).reshape(-1, 2).T, color=colour, linestyle=style, marker=".", label=name)
        axis.axvline(best_epoch, color=GREY, linewidth=1, label=f"kept: epoch {best_epoch}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel=label)
        legend_below(axis)
    return figure


def sweep_figure(trials: Sequence[EasyDict], select_by: str, best: int) -> Figure:
    """The dev score of each setting, best at the top, with its standard deviation over seeds."""
    order = sorted(range(len(trials)), key=lambda number: trials[number].mean)
    figure, axes = panels(1, width=7.0, height=1.2 + 0.32 * len(trials))
    axis = axes[0, 0]
    for place, number in enumerate(order):
        trial = trials[number]
        colour = GREEN if number == best else BLUE
        axis.errorbar(trial.mean, place, xerr=trial.std or 0, color=colour, marker="o", capsize=3)
    labels = [", ".join(f"{name}={value}" for name, value in trials[number].settings.items()) for number in order]
    axis.set_yticks(range(len(order)), [plain_text(label) for label in labels], fontsize=8)
    axis.set(xlabel=plain_text(select_by), title="mean over seeds ± standard deviation")
    return figure
