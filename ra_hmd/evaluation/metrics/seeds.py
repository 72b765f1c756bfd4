"""Aggregation of several seeds: mean, standard deviation over seeds, and interval over memes.

Shapes: S seeds, Q memes.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.evaluation.metrics.classification import metric_names
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.scoring.scores import ScoredSet

SEEDS_NAME = "seeds.json"


def expand_checkpoints(checkpoints: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Map the name of each head to its folder; a Stage 2 run of several seeds expands to the folder of each seed.

    Raises:
        UserError: no folder, two of one name, or a run whose seeds are missing.
    """
    given = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    if not given:
        raise UserError("No checkpoint is given; name at least one folder with a head.")
    found: list[Path] = []
    for folder in map(Path, given):
        if (folder / SEEDS_NAME).is_file():
            found += [folder / f"seed-{run['seed']}" for run in read_json(folder / SEEDS_NAME)["runs"]]
        else:
            found.append(folder)
    named: dict[str, Path] = {}
    for folder in found:
        name = folder.absolute().name
        if name in named:
            raise UserError(f"Checkpoints {named[name]} and {folder} are both called {name!r}; rename one folder.")
        named[name] = folder
    return named


def over_seeds(sets: Sequence[ScoredSet], *, samples: int, seed: int) -> dict[Head, dict[str, dict[str, Any]]]:
    """Aggregate the metrics of one query set over S seeds, for each head that all of them have scores of.

    Returns:
        Head → metric → `value` (mean over seeds), `low` and `high` (interval over memes, which are the same for every
        seed), `runs` (value of each seed), `std` (sample standard deviation over seeds).

    Raises:
        ValueError: sets of different memes.
    """
    first = sets[0]
    if any(list(item.queries.ids) != list(first.queries.ids) for item in sets):
        raise ValueError("seeds were evaluated on different memes")
    shared = [head for head in first.scores if all(head in item.scores for item in sets)]
    return {
        head: {name: _over_seeds(name, head, sets, samples, seed) for name in metric_names(first.problem)}
        for head in shared
    }


def _over_seeds(name: str, head: Head, sets: Sequence[ScoredSet], samples: int, seed: int) -> dict[str, Any]:
    problem, labels = sets[0].problem, sets[0].labels
    cases = [ThresholdedScores(item.scores[head], item.rules[head].thresholds) for item in sets]
    values = [metric_estimate(name, [case], labels, problem, samples=0, seed=seed).value for case in cases]
    known = [value for value in values if value is not None]
    found = metric_estimate(name, cases, labels, problem, samples=samples, seed=seed)
    spread = statistics.stdev(known) if len(known) == len(values) > 1 else None
    return {**found.as_dict(), "runs": values, "std": spread}
