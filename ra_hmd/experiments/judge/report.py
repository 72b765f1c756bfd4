"""Report of the judge: summary, Markdown and histogram."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.manifests import JudgeManifest
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.core.plotting import BLUE, VERMILION, legend_below, panels, save_figure
from ra_hmd.evaluation.metrics.intervals import mean_estimate
from ra_hmd.experiments.judge.rubric import BEST

RESULTS_NAME = "results.jsonl"
FIGURE_NAME = "scores.png"


def summary(rows: Sequence[Mapping[str, Any]], *, samples: int, seed: int) -> dict[str, Any]:
    """Summarise rows of `results.jsonl`.

    Returns:
        `items`, `graded`, `capped`, `verdicts_unknown`, `failures` (kind → count), and for `score` and `raw_score` the
        `mean` (`value`, `low`, `high`), `median` and `counts` (of the scores 0 to 10).
    """
    graded = [row for row in rows if row["raw_score"] is not None]
    return {
        "items": len(rows),
        "graded": len(graded),
        "capped": sum(row["capped"] for row in graded),
        "verdicts_unknown": sum(row["verdict"] is None for row in rows),
        "failures": dict(Counter(row["failure"] for row in rows if row["failure"]).most_common()),
        **{
            name: _figures(np.array([row[name] for row in graded], dtype=np.int64), samples, seed)
            for name in ("score", "raw_score")
        },
    }


def _figures(scores: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
    return {
        "mean": mean_estimate(scores, (0.0, float(BEST)), samples=samples, seed=seed).as_dict(),
        "median": float(np.median(scores)),
        "counts": np.bincount(scores, minlength=BEST + 1).tolist(),
    }


def write_judge_report(manifest: JudgeManifest, rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write report.md and the histogram."""
    _draw(manifest, output / FIGURE_NAME)
    judge, usage = manifest.judge, manifest.usage
    lines = [
        "# Grades of rationales\n",
        f"{manifest.graded} of {manifest.items} rationales were graded from 0 to {BEST} by "
        f"{escape(judge['model'])} at {escape(judge['host'])}; {manifest.capped} scores were capped.\n",
        markdown_table(
            ["score", "mean", "median"],
            [
                ["**after the cap**", _estimate(manifest.score.mean), f"{manifest.score.median:g}"],
                ["as the judge gave it", _estimate(manifest.raw_score.mean),
                 f"{manifest.raw_score.median:g}"],
            ],
        ),
        "In brackets: what the mean of other rationales of the same kind would be 95 times of 100. Another "
        "judge may give other scores altogether: a mean is comparable only under one judge and one rubric.\n",
        f"![How often each score was given]({FIGURE_NAME})\n",
        *_agreement(manifest.agreement),
        "## Failures\n",
        _failures(manifest.failures, rows),
        "## What it took\n",
        markdown_table(
            ["", "questions", "input tokens", "output tokens", "cost"],
            [
                ["all answers", "", *_spent(usage)],
                ["requested in this run", str(usage["this_run"]["asked"]), *_spent(usage["this_run"])],
            ],
        ),
        f"{usage['cache_hits']} answers were on disk already.\n",
        "## How\n",
        markdown_table(["", ""], _how(manifest)),
        *(f"- {escape(note)}" for note in manifest.notes),
        *(["", fenced([manifest.command])] if manifest.command else []),
    ]  # fmt: skip
    write_text(output / "report.md", "\n".join(lines) + "\n")


def _how(manifest: JudgeManifest) -> list[list[str]]:
    judge = manifest.judge
    return [
        ["endpoint", escape(judge["host"])],
        ["model", escape(judge["model"])],
        ["model name of the server", escape(", ".join(judge["served"]) or "not reported")],
        ["temperature, most tokens", f"{judge['temperature']:g}, {judge['max_tokens']}"],
        ["form of answers", escape(judge["response_format"])],
        ["rubric, SHA-256", f"`{manifest.rubric_sha256}`"],
    ]


def _estimate(mean: Mapping[str, Any]) -> str:
    interval_text = "" if mean["low"] is None else f" [{mean['low']:.2f}, {mean['high']:.2f}]"
    return f"{mean['value']:.2f}{interval_text}"


def _spent(usage: Mapping[str, Any]) -> list[str]:
    values = [usage["input_tokens"], usage["output_tokens"]]
    cost = usage["cost"]
    return [*("not known" if value is None else str(value) for value in values),
            "not known" if cost is None else f"{cost:.4f}"]  # fmt: skip


def _failures(failures: Mapping[str, int], rows: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return "None.\n"
    first = {row["failure"]: row for row in reversed(rows) if row["failure"]}
    table = [[escape(kind), str(count), escape(first[kind]["id"]), escape(first[kind]["message"])]
             for kind, count in failures.items()]  # fmt: skip
    return markdown_table(["kind", "rationales", "the first", "what is known of it"], table)


def _agreement(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    shown = {name: "undefined" if found[name] is None else f"{found[name]:.3f}" for name in ("spearman", "kappa")}
    row = [str(found["rationales"]), shown["spearman"], shown["kappa"], f"{100 * found['equal']:.1f} %",
           _estimate(found["difference"])]  # fmt: skip
    header = ["rationales", "Spearman", "quadratic-weighted kappa", "same score", "mean difference, this − other"]
    return [
        "## Agreement with another judge\n",
        f"Scores before the cap, against {escape(found['with'])}.\n",
        markdown_table(header, [row]),
    ]


def _draw(manifest: JudgeManifest, path: Path) -> None:
    """Histogram of the scores before and after the cap."""
    figure, axes = panels(1, width=6.4, height=3.6)
    axis, places = axes[0, 0], np.arange(BEST + 1)
    shown = (
        (manifest.score, "after the cap", BLUE, None, -0.2),
        (manifest.raw_score, "as the judge gave it", VERMILION, "//", 0.2),
    )
    for scores, label, colour, hatch, shift in shown:
        mean = scores.mean["value"]
        axis.bar(places + shift, scores.counts, 0.4, label=f"{label}: mean {mean:.2f}", color=colour, hatch=hatch,
                 edgecolor="white")  # fmt: skip
    axis.set_xticks(places)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("score")
    axis.set_ylabel("rationales")
    legend_below(axis)
    save_figure(figure, path)
