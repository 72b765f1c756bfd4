"""One line on the results of a robustness study."""

from collections.abc import Iterator, Mapping
from typing import Any

from ra_hmd.evaluation.report.sections import format_estimate


def summary_line(result: Mapping[str, Any]) -> str:
    """The heads of the first system without a base, its worst family, and whether each defence pays."""
    name, system = next(pair for pair in result["systems"].items() if pair[1]["base"] is None)
    parts = [f"{name}, AUROC clean → attacked: {', '.join(_heads(system))}"]
    worst = _worst_family(system)
    if worst is not None:
        parts.append(worst)
    parts += [
        f"{other}: {_defence(found['against_base'])}"
        for other, found in result["systems"].items()
        if found.get("against_base")
    ]
    return "; ".join(parts) + "."


def _heads(system: Mapping[str, Any]) -> Iterator[str]:
    for head, found in system["heads"].items():
        values = [found[part]["metrics"]["auroc"]["value"] for part in ("clean", "suite")]
        shown = ["–" if value is None else f"{value:.3f}" for value in values]
        yield f"{head.upper()} {shown[0]} → {shown[1]}"


def _worst_family(system: Mapping[str, Any]) -> str | None:
    """The family and head that lose most AUROC."""
    losses = [
        (cell["difference"]["auroc"]["value"], family, head, cell["difference"]["auroc"])
        for head, found in system["heads"].items()
        for family, cell in found["families"].items()
        if cell["difference"]["auroc"]["value"] is not None
    ]
    if not losses:
        return None
    _, family, head, estimate = min(losses, key=lambda one: one[0])
    return f"worst family {family} ({head.upper()} {format_estimate(estimate, signed=True)})"


def changed(heads: Mapping[str, Any]) -> dict[str, Any]:
    """The heads that a defence changes."""
    return {head: found for head, found in heads.items() if not found.get("unchanged")}


def pays(found: Mapping[str, Any]) -> bool:
    """Whether a gain of AUROC under attack is above 0 with its whole interval, and one of accuracy not below 0."""
    gain, accuracy = found["suite"]["auroc"], found["suite"]["accuracy"]
    loses = accuracy["high"] is not None and accuracy["high"] < 0
    return gain["low"] is not None and gain["low"] > 0 and not loses


def _defence(heads: Mapping[str, Any]) -> str:
    """What a defence gives the head that gains most AUROC under attack, and costs it on clean memes."""
    known = {head: one for head, one in changed(heads).items() if one["suite"]["auroc"]["value"] is not None}
    if not known:
        return "no head changes"
    head = max(known, key=lambda one: known[one]["suite"]["auroc"]["value"])
    gain, cost = (format_estimate(known[head][part]["auroc"], signed=True) for part in ("suite", "clean"))
    paying = [one.upper() for one, found in known.items() if pays(found)]
    verdict = f"pays for {', '.join(paying)}" if paying else "pays for no head"
    return f"{head.upper()} {gain} under attack, {cost} clean ({verdict})"
