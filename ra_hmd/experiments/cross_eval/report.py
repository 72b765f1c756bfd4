"""Report of a cross-evaluation: Markdown tables and a heat map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.core.plotting import panels, plain_text, save_figure
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE
from ra_hmd.evaluation.report.sections import format_estimate
from ra_hmd.experiments.cross_eval.config import CROSS_METRICS, CrossEvalArguments, HeadAndBank

_TITLES = {"auroc": "AUROC", "accuracy": "Accuracy", "macro_f1": "Macro-F1"}
_PANELS_PER_ROW = 3


def write_cross_report(args: CrossEvalArguments, result: Mapping[str, Any], command: str, output: Path) -> None:
    """Write cross_eval.md and cross_eval.png."""
    cells = {(HeadAndBank.of(one), one["system"], one["target"]): one for one in result["cells"]}
    kinds = list(dict.fromkeys(map(HeadAndBank.of, [*result["cells"], *result["missing"]])))
    kinds.sort(
        key=lambda kind: (
            args.heads.index(kind.head),
            kind.views is not None and args.views.index(kind.views),
            kind.bank is not None and args.banks.index(kind.bank),
            kind.shots or 0,
        )
    )
    save_figure(_heat_map(args, kinds, cells), output / "cross_eval.png")
    write_text(output / "cross_eval.md", _markdown(args, kinds, cells, result["missing"], command))


def _markdown(
    args: CrossEvalArguments,
    kinds: Sequence[HeadAndBank],
    cells: Mapping[tuple[HeadAndBank, str, str], Mapping[str, Any]],
    missing: Sequence[Mapping[str, Any]],
    command: str,
) -> str:
    text = (
        "# Cross-evaluation\n\nRows are trained systems, columns are the data sets that they were tested on, without "
        f"further training. In brackets: the {CONFIDENCE:.0%} interval over the query memes "
        f"({args.bootstrap_samples} resamples, seed {args.seed}); for K-shot banks the mean ± standard deviation over "
        f"the lists of the manifest. The vote has K = {args.topk} and {args.weights} weights; KRR is kernel "
        "ridge regression on the same bank. †: in domain, trained on the training split of the same data set. –: "
        "missing or undefined.\n"
    )
    for metric in CROSS_METRICS:
        text += f"\n## {_TITLES[metric]}\n"
        for kind in kinds:
            rows = []
            for name, system in args.systems.items():
                line = [escape(name)]
                for target in args.targets:
                    cell = cells.get((kind, name, target))
                    home = " †" if (system.trained_on or name) == target else ""
                    line.append("–" if cell is None else format_estimate(cell[metric]) + home)
                rows.append(line)
            header = ["trained", *map(escape, args.targets)]
            text += f"\n### {escape(kind.title)}\n\n{markdown_table(header, rows)}"
    text += f"\n![{_TITLES[args.heat_map]}](cross_eval.png)\n"
    if missing:
        rows = [
            [
                *map(escape, (one["system"], one["target"], HeadAndBank.of(one).title, one["reason"])),
                _code(one["command"]),
            ]
            for one in missing
        ]  # fmt: skip
        header = ["trained", "tested", "head and bank", "why it is missing", "command"]
        text += f"\n## Missing\n\n{markdown_table(header, rows)}"
    return text + (f"\n## How this was made\n\n```sh\n{command}\n```\n" if command else "")


def _code(command: str) -> str:
    return f"`{command.replace('|', chr(92) + '|')}`" if command else ""


def _heat_map(
    args: CrossEvalArguments,
    kinds: Sequence[HeadAndBank],
    cells: Mapping[tuple[HeadAndBank, str, str], Mapping[str, Any]],
) -> Figure:
    """Heat maps, one panel per head and bank: rows are systems, columns are targets, missing cells are grey."""
    systems, targets = list(args.systems), list(args.targets)
    columns = min(len(kinds), _PANELS_PER_ROW)
    lines = -(-len(kinds) // columns)
    width, height = 2.2 + 1.0 * len(targets), 1.6 + 0.6 * len(systems)
    figure, axes = panels(columns, width=width, height=height, rows=lines)
    for number, axis in enumerate(axes.ravel()):
        if number >= len(kinds):
            axis.set_axis_off()
            continue
        values = np.full((len(systems), len(targets)), np.nan)
        for row, system in enumerate(systems):
            for column, target in enumerate(targets):
                cell = cells.get((kinds[number], system, target))
                value = None if cell is None else cell[args.heat_map]["value"]
                values[row, column] = np.nan if value is None else value
                text = "–" if value is None else f"{value:.3f}"
                colour = "white" if value is not None and value < 0.7 else "black"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axis.set_facecolor("0.9")
        axis.imshow(np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="cividis", aspect="auto")
        axis.set_xticks(
            range(len(targets)), [plain_text(name) for name in targets], rotation=30, ha="right", fontsize=8
        )
        axis.set_yticks(range(len(systems)), [plain_text(name) for name in systems], fontsize=8)
        axis.set(title=kinds[number].title, xlabel="tested on", ylabel="trained")
        axis.title.set_fontsize(9)
    figure.suptitle(f"{_TITLES[args.heat_map]} of each system on each data set", fontsize=10)
    return figure
