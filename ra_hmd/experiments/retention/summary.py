"""From the answers to the measures, their intervals and the gate."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ra_hmd.experiments.retention.config import (
    ANSWERS,
    DIVERGENCE,
    LIKELIHOOD,
    VERDICTS,
    WORDS,
    RetentionSettings,
)
from ra_hmd.experiments.retention.gate import GateResult, PairedDifferences, mean_difference, non_inferiority
from ra_hmd.experiments.retention.measure import SIDES
from ra_hmd.experiments.retention.pictures import QUESTIONS

Row = Mapping[str, Any]
_BLIND = 0.1  # share of expected words below which a base model has little to lose


def gate(rows: Sequence[Row], settings: RetentionSettings) -> GateResult:
    """Decide whether the tuned model lost less than the margins; see `non_inferiority`."""
    general, captions = split_rows(rows)
    pictures = [row["picture"] for row in general]
    share = "share of answers"
    tasks = {
        DIVERGENCE: PairedDifferences([-row["divergence"] for row in general], None, pictures, "nats per token"),
        VERDICTS: PairedDifferences(_lost(general, "verdict"), groups=pictures, unit=share),
        ANSWERS: PairedDifferences(_gained(general, "words"), groups=pictures, unit="share of words"),
        LIKELIHOOD: PairedDifferences(_gained(captions, "log_likelihood"), None, unit="nats per token"),
        WORDS: PairedDifferences(_gained(captions, "words"), unit="share of words"),
    }
    return non_inferiority(tasks, settings.margins, samples=settings.bootstrap_samples, seed=settings.seed)


def split_rows(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """General questions, and captions."""
    return [row for row in rows if row["kind"] != "caption"], [row for row in rows if row["kind"] == "caption"]


def summarise(rows: Sequence[Row], settings: RetentionSettings) -> dict[str, Any]:
    """Content of retention.json: `gate`, `kinds` and `all` (measures of each kind of question, and of all), `samples`
    (of each kind the answers that differ most), `notes`.
    """
    result = gate(rows, settings)
    kinds: list[str] = [*QUESTIONS, "caption"]
    found = {kind: _of_kind([row for row in rows if row["kind"] == kind], settings) for kind in kinds}
    general, _ = split_rows(rows)
    furthest = [
        max((row for row in general if row["kind"] == kind), key=lambda row: row["divergence"]) for kind in QUESTIONS
    ]
    return {
        "gate": result.as_dict(),
        "kinds": found,
        "all": _of_kind(general, settings),
        "samples": [
            {"id": row["id"], "question": row["question"], **{side: row[side]["answer"] for side in SIDES}}
            for row in furthest
        ],
        "notes": _notes(found, general),
    }


def _of_kind(rows: Sequence[Row], settings: RetentionSettings) -> dict[str, Any]:
    """Measures of some questions: means with their intervals, for both sides."""

    def mean(values: Iterable[float], bounds: tuple[float, float] | None = (0.0, 1.0)) -> dict[str, Any]:
        items = PairedDifferences([*values], bounds, pictures)
        return mean_difference(items, samples=settings.bootstrap_samples, seed=settings.seed)[0].as_dict()

    pictures = [row["picture"] for row in rows]

    found: dict[str, Any] = {"items": len(rows), "same": mean(row["same"] for row in rows)}
    for name in ("verdict", "bare", "words"):
        found[name] = {side: mean(row[side][name] for row in rows) for side in SIDES}
    if "divergence" in rows[0]:
        return found | {"divergence": mean((row["divergence"] for row in rows), None)}
    likelihood = {side: mean((row[side]["log_likelihood"] for row in rows), None) for side in SIDES}
    return found | {"log_likelihood": likelihood}


def _gained(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row["tuned"][name]) - float(row["base"][name]) for row in rows]


def _lost(rows: Sequence[Row], name: str) -> list[float]:
    return [-value for value in _gained(rows, name)]


def _notes(kinds: Mapping[str, Any], general: Sequence[Row]) -> list[str]:
    blind = [kind for kind, one in kinds.items() if one["words"]["base"]["value"] < _BLIND]
    notes = []
    if blind:
        notes.append(
            f"The base model itself has fewer than {_BLIND:.0%} of the expected words in its answers about "
            f"{', '.join(blind)}: there it has little to lose, and a pass says little."
        )
    if any(row["base"]["verdict"] for row in general):
        count = sum(row["base"]["verdict"] for row in general)
        notes.append(f"The base model answers {count} of {len(general)} general questions by a verdict.")
    return notes
