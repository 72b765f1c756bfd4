"""Report of a few-shot study: Markdown tables and a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.manifests import FewShotManifest
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.core.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, panels, save_figure
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE
from ra_hmd.evaluation.metrics.runs import error_bars
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate
from ra_hmd.experiments.few_shot.arms import ARMS, optimizer_steps
from ra_hmd.experiments.few_shot.config import FewShotSettings
from ra_hmd.experiments.few_shot.results import BASELINES, METRICS

_COLOURS = (
    GREY,
    "#000000",
    GREEN,
    ORANGE,
    BLUE,
    PURPLE,
    VERMILION,
    "#56B4E9",
    "#A0522D",
    "#7F7F00",
    "#404080",
    "#8B8BC0",
)
_MARKERS = "oPsD^vXph<>"


def write_few_shot_report(
    settings: FewShotSettings, found: Mapping[str, Any], manifest: FewShotManifest, output: Path
) -> None:
    """Write few_shot.md and few_shot.png."""
    save_figure(_figure(settings, found), output / "few_shot.png")
    write_text(output / "few_shot.md", _markdown(settings, found, manifest))


def _markdown(settings: FewShotSettings, found: Mapping[str, Any], manifest: FewShotManifest) -> str:
    seeds = settings.seeds
    text = (
        f"# Few-shot study\n\n{escape(settings.data)}, split {escape(settings.test_split)}, {found['memes']} memes. "
        f"K labelled memes of each class, {seeds} list{'s' if seeds > 1 else ''} for each K; mean"
        f"{' ± standard deviation' if seeds > 1 else ''} over lists [{CONFIDENCE:.0%} interval over the scored memes, "
        f"{settings.bootstrap_samples} resamples]. The interval does not cover the choice of the shots; the standard "
        "deviation shows it.\n\nThe score is p(Yes) against p(No) at the first token of the answer, for RKC the vote, "
        "for KRR the regression. Thresholds are fixed, 0.5 and for RKC and KRR 0, because there is no dev split: the "
        "shots are all labels that an arm has.\n"
    )
    for metric in METRICS:
        rows = []
        for arm in settings.arms:
            cells = [cell[metric] for cell in found["cells"] if cell["arm"] == arm]
            rows.append([escape(ARMS[arm].title), *map(format_estimate, cells)])
        text += f"\n## {_title(metric)}\n\n{markdown_table(_header('arm', settings), rows)}"
    text += "\n![AUROC against the number of shots](few_shot.png)\n"
    for base in BASELINES:
        text += _differences(settings, found, base)
    text += "\n## The arms\n\n" + markdown_table(
        ["arm", "trainable parameters", "what it is"],
        [[escape(ARMS[arm].title), f"{found['parameters'][arm]:,}", escape(ARMS[arm].what)] for arm in settings.arms],
    )
    steps = ", ".join(f"{optimizer_steps(settings.base, shots)} with K = {shots}" for shots in settings.shots)
    text += (
        "\nEqual in all trained arms: the model, the shots, epochs, batches and learning rates of the adapter, and "
        f"the seed. The matched LoRA has rank {found['matched_rank']}. The parameters of the head are not counted: it "
        f"has no part in these scores. Optimizer steps of each training: {steps}.\n\n## How this was made\n\n"
    )
    return text + fenced(([manifest.command] if manifest.command else []) + list(manifest.commands))


def _title(metric: str) -> str:
    name = METRIC_NAMES[metric]
    return name[0].upper() + name[1:]


def _header(first: str, settings: FewShotSettings) -> list[str]:
    return [first, *(f"K = {shots}" for shots in settings.shots)]


def _differences(settings: FewShotSettings, found: Mapping[str, Any], base: str) -> str:
    """Tables of the paired differences from a baseline."""
    text = ""
    for metric in METRICS:
        rows = []
        for arm in settings.arms:
            cells = [one[metric] for one in found["differences"] if (one["arm"], one["against"]) == (arm, base)]
            if cells:
                rows.append([escape(ARMS[arm].title), *(format_estimate(cell, signed=True) for cell in cells)])
        if rows:
            title = f"{_title(metric)} minus that of {ARMS[base].title}, paired"  # type: ignore[index]
            text += f"\n## {title}\n\n{markdown_table(_header('arm', settings), rows)}"
    return text


def _figure(settings: FewShotSettings, found: Mapping[str, Any]) -> Figure:
    """AUROC against K, a line for each arm, with intervals over memes and a faint mark for each seed."""
    figure, axes = panels(1, width=7.6, height=5.2)
    axis, arms = axes[0][0], settings.arms
    step = 0.5 / max(len(arms), 2)
    for number, arm in enumerate(arms):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        cells = [cell["auroc"] for cell in found["cells"] if cell["arm"] == arm]
        known = [(place, cell) for place, cell in enumerate(cells) if cell["value"] is not None]
        shift = step * (number - (len(arms) - 1) / 2)
        items = [cell for _, cell in known]
        axis.errorbar(
            [place + shift for place, _ in known],
            [cell["value"] for cell in items],
            yerr=error_bars(items),
            color=colour,
            marker=marker,
            linestyle="-" if ARMS[arm].tuning else "--",
            linewidth=1,
            capsize=2,
            label=ARMS[arm].title,
        )
        for place, cell in known:
            runs = [value for value in cell["runs"] if value is not None]
            if len(runs) > 1:
                axis.scatter([place + shift] * len(runs), runs, color=colour, s=6, alpha=0.4, linewidths=0)
    axis.axhline(0.5, color="0.6", linewidth=0.8)
    axis.set_xticks(range(len(settings.shots)), [str(shots) for shots in settings.shots])
    axis.set(xlabel="labelled memes of each class", ylabel="AUROC")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    return figure
