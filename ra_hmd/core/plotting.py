"""Figures without a display and without pyplot's global state.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish; line styles and markers repeat the
distinction.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ra_hmd.core.artifacts import atomic_path

BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#666666"


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def save_svg(figure: Figure, path: str | Path) -> None:
    """Write an SVG, atomically; the same figure gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "ra-hmd"}), atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def panels(count: int, width: float = 4.6, height: float = 4.0, rows: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, count]; width and height are inches per panel."""
    figure = Figure(figsize=(width * count, height * rows), layout="constrained")
    return figure, figure.subplots(rows, count, squeeze=False)


def plain_text(text: str) -> str:
    """`text` with everything escaped that has a meaning for Matplotlib."""
    return text.replace("$", r"\$")  # Matplotlib reads $…$ as mathematics.


def legend_below(axis: Axes) -> None:
    """Add a legend below the axis, where it covers no curve."""
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
