"""Report of a robustness study: Markdown tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate
from ra_hmd.experiments.robustness.config import RobustnessSettings
from ra_hmd.experiments.robustness.figures import write_figures
from ra_hmd.experiments.robustness.summary import changed, pays

_CAPTIONS = {
    "heat_map": "AUROC lost by family and head",
    "severity": "AUROC by severity",
    "defences": "What defences give and cost",
}
_Heads = Mapping[str, Mapping[str, Any]]


def write_robustness_report(
    result: Mapping[str, Any], settings: RobustnessSettings, command: str, output: Path
) -> None:
    """Write robustness.md and the figures."""
    figures = write_figures(result, output)
    text = _head(result, settings)
    for name, system in result["systems"].items():
        text += f"\n## {escape(name)}\n\n{_about(system)}"
        text += "".join(f"\n### {title}\n\n{table}" for title, table in _tables(system["heads"]))
    text += _defences(result)
    text += "\n## Figures\n" + "".join(f"\n![{_CAPTIONS[name]}]({name}.png)\n" for name in figures)
    if command:
        text += "\n## How this was made\n\n" + fenced([command])
    write_text(output / "robustness.md", text)


def _head(result: Mapping[str, Any], settings: RobustnessSettings) -> str:
    suite = result["suite"]
    families = dict.fromkeys(variant["family"] for variant in suite["variants"])
    attacks = dict.fromkeys(variant["attack"] for variant in suite["variants"])
    return (
        f"# Robustness\n\n{escape(result['summary'])}\n\n{result['memes']} memes of split {escape(result['split'])}, "
        f"{result['positives']} of class 1; {len(suite['variants'])} attacked copies of each: {len(attacks)} attacks "
        f"of {len(families)} families, seed {suite['seed']}. Thresholds, calibration and the limit of abstention were "
        f"chosen on the clean memes of split {escape(settings.dev_split)} (criterion {settings.criterion}, "
        f"{settings.coverage:.0%} answered) and stay as they are under attack. A row of a family, a severity or the "
        "suite is the mean over its variants. *Evasion* is the share of the memes of class 1, judged correctly when "
        "clean, that an attack turns; *false alarm* the same of class 0. Only variants that are applied to a class "
        "count; memes of a class that an attack is not applied to are unchanged in the other columns. In brackets: the "
        f"{CONFIDENCE:.0%} interval over memes ({settings.bootstrap_samples} resamples, seed {settings.seed}); "
        "differences are paired, on the same memes.\n"
    )


def _about(system: Mapping[str, Any]) -> str:
    bank = system["bank"]
    text = "No bank.\n" if bank["place"] is None else f"Bank: {escape(bank['place'])}, {bank['rows']} rows"
    if bank["place"] is not None:
        text += f", {bank['attacked']} of them attacked memes.\n" if bank["attacked"] else ".\n"
    if system["base"] is not None:
        text += f"\nLike {escape(system['base'])}, with other {escape(', '.join(system['changed']))}.\n"
    return text


def _tables(heads: _Heads) -> Iterator[tuple[str, str]]:
    """Title and table of each section of a system."""
    yield "Heads", _overview(heads)
    yield "AUROC by family, minus that of the clean memes", _by_group(heads, "families", "difference", "auroc")
    yield "Accuracy by family, minus that of the clean memes", _by_group(heads, "families", "difference", "accuracy")
    yield "Macro-F1 by family, minus that of the clean memes", _by_group(heads, "families", "difference", "macro_f1")
    yield "AUROC by severity", _by_group(heads, "severities", "metrics", "auroc")
    yield "Evasion by family", _by_group(heads, "families", "evasion")
    yield "False alarms by family", _by_group(heads, "families", "false_alarm")
    yield "Worst case of each meme", _worst(heads)
    yield "Calibration and abstention", _certainty(heads)
    yield "AUROC by attack, minus that of the clean memes", _by_group(heads, "attacks", "difference", "auroc")
    yield "Evasion by attack", _by_group(heads, "attacks", "evasion")


def _shown(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    return "–" if estimate is None else format_estimate(estimate, signed=signed)


def _overview(heads: _Heads) -> str:
    header = ["head", "AUROC, clean", "AUROC, attacked", "difference", "accuracy, clean", "accuracy, attacked",
              "difference", "macro-F1, clean", "macro-F1, attacked", "evasion", "false alarm"]  # fmt: skip
    rows = []
    for head, found in heads.items():
        clean, suite = found["clean"]["metrics"], found["suite"]
        row = [head.upper()]
        for metric in ("auroc", "accuracy", "macro_f1"):
            row += [format_estimate(clean[metric]), format_estimate(suite["metrics"][metric])]
            row += [] if metric == "macro_f1" else [format_estimate(suite["difference"][metric], signed=True)]
        rows.append([*row, _shown(suite["evasion"]), _shown(suite["false_alarm"])])
    return markdown_table(header, rows)


def _by_group(heads: _Heads, kind: str, *path: str) -> str:
    """A row per group, a column per head, of what stands at `path` in each cell."""
    names = next(iter(heads.values()))[kind]
    rows = []
    for name in names:
        line = [escape(name)]
        for found in heads.values():
            value: Any = found[kind][name]
            for key in path:
                value = value[key]
            line.append(_shown(value, signed=path[0] == "difference"))
        rows.append(line)
    singular = {"families": "family", "severities": "severity", "attacks": "attack"}[kind]
    return markdown_table([singular, *(head.upper() for head in heads)], rows)


def _worst(heads: _Heads) -> str:
    """Worst case over the suite, then the share of memes that stay right in every variant of each family."""
    families = list(next(iter(heads.values()))["worst_of"])
    header = ["head", "right in every variant", "AUROC of the worst scores", "evasion by any", "false alarm by any",
              *(f"right in all of {family}" for family in families)]  # fmt: skip
    rows = [
        [
            head.upper(),
            *(_shown(found["worst"][name]) for name in ("accuracy", "auroc", "evasion", "false_alarm")),
            *(_shown(found["worst_of"][family]["accuracy"]) for family in families),
        ]
        for head, found in heads.items()
    ]
    return markdown_table(header, rows)


def _certainty(heads: _Heads) -> str:
    header = ["head", "memes", "ECE", "Brier score", "answered", "accuracy of what is answered", "AURC",
              "evasion that is answered", "false alarm that is answered"]  # fmt: skip
    rows = []
    for head, found in heads.items():
        for title, cell in (("clean", found["clean"]), ("attacked", found["suite"])):
            abstention = cell["abstention"]
            accuracy = abstention["accuracy"]
            rows.append(
                [
                    head.upper(), title, f"{cell['calibration']['ece']:.3f}",
                    format_estimate(cell["calibration"]["brier"]), format_estimate(abstention["coverage"]),
                    "–" if accuracy is None else f"{accuracy:.3f}", f"{abstention['aurc']:.3f}",
                    _shown(cell.get("evasion_unnoticed")), _shown(cell.get("false_alarm_unnoticed")),
                ]
            )  # fmt: skip
    return markdown_table(header, rows)


def _defences(result: Mapping[str, Any]) -> str:
    """What each defended system gains and costs against its base."""
    defended = {name: system for name, system in result["systems"].items() if system.get("against_base")}
    if not defended:
        return ""
    text = (
        "\n## Defences\n\nDefended minus undefended, on the same memes, each with thresholds of its own from clean dev "
        "memes. A defence pays for a head where the interval of its AUROC gain under attack lies above 0 and that of "
        "its accuracy not below; the clean columns are what it costs.\n"
    )
    for name, system in defended.items():
        heads = changed(system["against_base"])
        text += f"\n### {escape(name)} against {escape(system['base'])}\n\n"
        same = [head.upper() for head in system["against_base"] if head not in heads]
        text += f"It changes no score of {', '.join(same)}.\n\n" if same else ""
        text += f"{_gains(heads)}\n{markdown_table(*_gains_by_family(heads))}" if heads else ""
    return text


def _gains(heads: _Heads) -> str:
    parts = [part for part in ("clean", "suite", "seen", "unseen") if next(iter(heads.values())).get(part)]
    titles = {"clean": "clean", "suite": "under attack", "seen": "attacks it knows", "unseen": "other attacks"}
    columns = [(part, metric) for part in parts for metric in ("auroc", "accuracy")]
    header = ["head", *(f"{METRIC_NAMES[metric]}, {titles[part]}" for part, metric in columns), "macro-F1, clean",
              "right in every variant", "pays"]  # fmt: skip
    rows = []
    for head, found in heads.items():
        values = [
            format_estimate(found[part][metric], signed=True) for part in parts for metric in ("auroc", "accuracy")
        ]
        worst = found["worst"]
        change = f"{worst['base']:.3f} → {worst['defended']:.3f}"
        cost = format_estimate(found["clean"]["macro_f1"], signed=True)
        rows.append([head.upper(), *values, cost, change, "yes" if pays(found) else "no"])
    return markdown_table(header, rows)


def _gains_by_family(heads: _Heads) -> tuple[Sequence[str], list[list[str]]]:
    families = next(iter(heads.values()))["families"]
    rows = [
        [
            escape(family),
            *(format_estimate(found["families"][family]["auroc"], signed=True) for found in heads.values()),
        ]
        for family in families
    ]
    return ["AUROC gained, family", *(head.upper() for head in heads)], rows
