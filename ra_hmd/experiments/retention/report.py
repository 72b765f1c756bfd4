"""Report of `ra-hmd retention`: Markdown page and figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.core.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, legend_below, panels, plain_text, save_figure
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE
from ra_hmd.evaluation.metrics.runs import error_bars
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate
from ra_hmd.experiments.retention.config import RetentionSettings
from ra_hmd.experiments.retention.gate import gate_table
from ra_hmd.experiments.retention.pictures import QUESTIONS
from ra_hmd.models.checkpoint import Run

_COLOURS = {"pass": GREEN, "fail": VERMILION, "undecided": ORANGE}
_READING = (
    "A difference below zero is a loss. A row passes where its whole interval lies above the negative margin, fails "
    "where it lies below it, and is undecided where the negative margin lies inside. One row that fails decides.\n"
)


def write_retention_report(
    result: Mapping[str, Any], settings: RetentionSettings, run: Run, command: str, output: Path
) -> None:
    """Write retention.md and retention.png."""
    save_figure(_figure(result), output / "retention.png")
    write_text(output / "retention.md", _markdown(result, settings, run, command))


def gate_section(gate: Mapping[str, Any]) -> str:
    """Verdict, how it is read, and the table of the rows."""
    return f"**Verdict: {gate['verdict']}.** {_READING}\n{gate_table(gate)}"


def notes_section(notes: Sequence[str]) -> str:
    """Notes as a list; empty where there are none."""
    return f"\n{''.join(f'- {escape(note)}' + chr(10) for note in notes)}" if notes else ""


def how_section(command: str) -> str:
    """The command line of a report; empty where it is not known."""
    return f"\n## How this was made\n\n```sh\n{command}\n```\n" if command else ""


def draw_gate(axis: Axes, gate: Mapping[str, Any], difference: str = "tuned - base") -> None:
    """Draw each row's difference with its interval, in units of its margin; -1 is where losing too much begins."""
    rows = gate["rows"][::-1]
    for place, row in enumerate(rows):
        scaled = {name: row["difference"][name] / row["margin"] for name in ("value", "low", "high")}
        axis.errorbar(
            [scaled["value"]],
            [place],
            xerr=error_bars([scaled]),
            color=_COLOURS[row["verdict"]],
            marker="o",
            capsize=3,
            linestyle="none",
        )
    axis.axvline(-1, color=VERMILION, linestyle="--", linewidth=1, label="margin")
    axis.axvline(0, color=GREY, linewidth=1, label="no difference")
    axis.set_yticks(range(len(rows)), [plain_text(f"{row['task']} ({row['verdict']})") for row in rows])
    axis.set_xscale("symlog", linthresh=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel=f"{difference}, in margins", ylim=(-0.6, len(rows) - 0.4))
    legend_below(axis)


def write_policy_report(result: Mapping[str, Any], seed: int, command: str, output: Path) -> None:
    """Write policy.md and policy.png of a comparison of two evaluations."""
    figure, axes = panels(1, width=6.4)
    draw_gate(axes[0][0], result["gate"], "after - before")
    save_figure(figure, output / "policy.png")
    rows = [
        [
            escape(f"{one['second']} - {one['first']}"),
            *(format_estimate(one["difference"][name], signed=True) for name in one["difference"]),
            f"{one['mcnemar']['only_first']} / {one['mcnemar']['only_second']}",
            f"{one['mcnemar']['p_holm']:.3g}",
        ]
        for one in result["comparisons"]
    ]
    measured = [METRIC_NAMES[name] for name in result["comparisons"][0]["difference"]]
    header = ["heads", *measured, "right only before / only after", "p (McNemar, Holm)"]
    text = (
        f"# Retention of the earlier policy\n\n{result['memes']} memes of the earlier policy, judged before and after "
        f"the later tuning. In brackets: the {CONFIDENCE:.0%} interval over memes (seed {seed}).\n\n## Gate\n\n"
        f"{gate_section(result['gate'])}{notes_section(result['notes'])}\n![Differences in margins](policy.png)\n\n"
        f"## All metrics, after minus before\n\n{markdown_table(header, rows)}"
    )
    write_text(output / "policy.md", text + how_section(command))


def _markdown(result: Mapping[str, Any], settings: RetentionSettings, run: Run, command: str) -> str:
    text = (
        f"# What tuning cost {escape(run.folder.name)}\n\nBase model: {escape(Path(run.base_model).name)}, which is "
        f"the same model with the adapter switched off. {settings.pictures} drawn pictures with {len(QUESTIONS)} "
        f"general questions each, {settings.memes} drawn memes to describe (seed {settings.seed}); greedy answers of "
        f"at most {settings.max_new_tokens} tokens. In brackets: the {CONFIDENCE:.0%} interval, for which "
        f"pictures are resampled.\n\n## Gate\n\n{gate_section(result['gate'])}"
        f"{notes_section(result['notes'])}"
    )
    header = ["question", "items", "KL(base, tuned)", "same answer", "verdict: base", "tuned", "words: base", "tuned"]
    text += "\n![Differences in margins, and divergence](retention.png)\n\n## By question\n\n"
    text += markdown_table(header, _rows(result)) + _captions(result["kinds"]["caption"])
    samples = [
        [escape(one[name].removeprefix(IMAGE_PLACEHOLDER)) for name in ("question", "base", "tuned")]
        for one in result["samples"]
    ]
    text += "\n## Of each question, the answers with the largest divergence\n\n"
    text += markdown_table(["question", "base", "tuned"], samples)
    return text + how_section(command)


def _rows(result: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    shown = [*((QUESTIONS[kind], result["kinds"][kind]) for kind in QUESTIONS), ("all", result["all"])]
    return [
        [
            escape(title),
            str(one["items"]),
            format_estimate(one["divergence"]),
            format_estimate(one["same"]),
            *(format_estimate(one[name][side]) for name in ("verdict", "words") for side in ("base", "tuned")),
        ]
        for title, one in shown
    ]


def _captions(caption: Mapping[str, Any]) -> str:
    measures = {"log_likelihood": "log-likelihood, nats per token", "words": "expected words", "verdict": "verdicts"}
    rows = [
        [title, format_estimate(caption[name]["base"]), format_estimate(caption[name]["tuned"])]
        for name, title in measures.items()
    ]
    return f"\n## Descriptions of {caption['items']} memes\n\n{markdown_table(['measure', 'base', 'tuned'], rows)}"


def _figure(result: Mapping[str, Any]) -> Figure:
    """The gate, the divergence of each kind of question, and the shares of both sides."""
    figure, axes = panels(3, width=4.8)
    draw_gate(axes[0][0], result["gate"])
    kinds = list(QUESTIONS)
    items = [result["kinds"][kind]["divergence"] for kind in kinds]
    places = range(len(kinds))
    axes[0][1].bar(places, [one["value"] for one in items], yerr=error_bars(items), capsize=3, color=BLUE)
    axes[0][1].set_xticks(places, kinds)
    axes[0][1].set(ylabel="KL(base, tuned), nats per token", xlabel="what is asked for")
    axis, named = axes[0][2], [*kinds, "caption"]
    for name, colour, shift in (("verdict", VERMILION, -0.12), ("words", BLUE, 0.12)):
        for side, marker, face in (("base", "o", "none"), ("tuned", "s", colour)):
            found = [result["kinds"][kind][name][side] for kind in named]
            where = [place + shift + (0.06 if side == "tuned" else -0.06) for place in range(len(named))]
            axis.errorbar(
                where,
                [one["value"] for one in found],
                yerr=error_bars(found),
                color=colour,
                marker=marker,
                markerfacecolor=face,
                linestyle="none",
                capsize=2,
                label=f"{'verdicts' if name == 'verdict' else 'expected words'}, {side}",
            )
    axis.set_xticks(range(len(named)), named)
    axis.set(ylabel="share of answers, or of words", ylim=(-0.03, 1.03))
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    return figure
