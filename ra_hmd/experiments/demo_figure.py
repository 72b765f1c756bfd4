"""Figures of the demo: memes before and after Stage 2, and what labelled memes of a new domain in the bank give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from ra_hmd.core.plotting import BLUE, GREEN, GREY, VERMILION, panels, save_svg
from ra_hmd.features.store import read_features
from ra_hmd.models.head import INITIAL_HEAD, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import unit_rows

BANK_UPDATE_FIGURE = "bank_update.svg"
EMBEDDING_FIGURE = "embeddings.svg"
NEAREST = 20
"""Rows of the bank that a meme of the figure of embeddings is compared with."""
POINTS = 250
"""Memes in each of its panels; all count in its numbers."""
_CLASSES = (("benign", BLUE, "o"), ("hateful", VERMILION, "^"))
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


@dataclass(frozen=True)
class EmbeddedStage:
    """Memes and the bank as one stage of the pipeline embeds them, for a panel of the figure of embeddings.

    Attributes:
        title: The stage.
        bank: The labelled memes that vote.
        memes: Memes that are drawn; none is in the bank.
    """

    title: str
    bank: Embeddings
    memes: Embeddings

    def purity(self) -> float:
        """Share of the `NEAREST` most similar rows of the bank that have the label of the meme, over all memes."""
        found = self.bank.nearest(self.memes, NEAREST)
        same = self.bank.labels[found.rows] == self.memes.labels[:, None]
        return float(same[found.present].mean())

    def similarities(self) -> tuple[float, float]:
        """Mean cosine of the memes with rows of the bank that have the same label, and with the others."""
        cosine = unit_rows(self.memes.embedding) @ unit_rows(self.bank.embedding).T
        same = self.memes.labels[:, None] == self.bank.labels
        return float(cosine[same].mean()), float(cosine[~same].mean())

    def places(self) -> np.ndarray:
        """The memes [N, 2] on the first two principal components of the bank, all of unit length."""
        return PCA(2, svd_solver="full").fit(unit_rows(self.bank.embedding)).transform(unit_rows(self.memes.embedding))


def embedding_figure(stages: Sequence[EmbeddedStage]) -> Figure:
    """The same memes at several stages, one panel per stage; `POINTS` of them at most are drawn."""
    figure, axes = panels(len(stages), width=3.4, height=3.4)
    drawn = np.random.default_rng(0).permutation(len(stages[0].memes))[:POINTS]
    for axis, stage in zip(axes[0], stages, strict=True):
        places, labels = stage.places()[drawn], stage.memes.labels[drawn]
        for label, (name, colour, marker) in enumerate(_CLASSES):
            x, y = places[labels == label].T
            axis.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
        own, other = stage.similarities()
        axis.set_title(
            f"{stage.title}\n{stage.purity():.1%} of the {NEAREST} nearest have its label\n"
            f"mean cosine {own:.2f} with its label, {other:.2f} with the other",
            fontsize=8,
        )
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel("first component", fontsize=8)
        axis.set_ylabel("second component", fontsize=8)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    return figure


def write_embedding_figure(output: Path) -> Path:
    """Write `embeddings.svg` of a demo's folder: domain A's test memes before training, after Stage 1 and Stage 2."""
    bank, memes = (read_features(output / "features" / f"a_{split}") for split in ("train", "test"))
    untuned = [Embeddings.with_features(rows, rows.views["untuned"]) for rows in (bank, memes)]
    stages = [EmbeddedStage("before training", *untuned)]
    for title, folder in (("after Stage 1", output / "stage2" / INITIAL_HEAD), ("after Stage 2", output / "stage2")):
        head = load_head(folder)
        stages.append(EmbeddedStage(title, Embeddings.of(bank, head), Embeddings.of(memes, head)))
    place = output / "report" / EMBEDDING_FIGURE
    save_svg(embedding_figure(stages), place)
    return place
