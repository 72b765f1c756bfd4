"""Agreement of two judges on the same rationales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.evaluation.metrics.intervals import mean_estimate
from ra_hmd.experiments.judge.report import RESULTS_NAME
from ra_hmd.experiments.judge.rubric import BEST


@dataclass(frozen=True)
class OtherJudge:
    """Results of another judge: id → line of its results.jsonl."""

    place: Path
    rows: Mapping[str, Mapping[str, Any]]


def read_other(place: str | Path) -> OtherJudge:
    """Read the results of another judge from its folder or its results.jsonl.

    Raises:
        UserError: missing file, or lines that are no results.
    """
    path = Path(place)
    path = path / RESULTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the output folder of `ra-hmd judge`, or its {RESULTS_NAME}.")
    rows = list(jsonl_rows(path))
    bad = [f"{row.place}: {row.problem or 'no result'}" for row in rows
           if row.problem or not {"id", "raw_score", "texts_sha256"} <= row.values.keys()]  # fmt: skip
    raise_all(bad, f"{path} holds lines that are not of `ra-hmd judge`")
    return OtherJudge(path, {row.values["id"]: row.values for row in rows})


def agreement(rows: Sequence[Mapping[str, Any]], other: OtherJudge, *, samples: int, seed: int) -> dict[str, Any]:
    """Agreement of two judges' raw scores, before the cap, on the rationales that both graded.

    Returns:
        `rationales`, `spearman`, `kappa` (Cohen's, quadratic weights), `equal` (share), `difference` (mean of these
        scores minus the other's, with its paired interval); None where undefined.

    Raises:
        UserError: no rationale that both graded, or one whose text or references differ.
    """
    both = [(row, other.rows[row["id"]]) for row in rows if row["id"] in other.rows]
    changed = [f"id {here['id']!r}" for here, there in both if here["texts_sha256"] != there["texts_sha256"]]
    raise_all(changed, f"{other.place} is of other rationales or references of the same ids; judges are compared on "
                       "the same texts")  # fmt: skip
    graded = [(here["raw_score"], there["raw_score"]) for here, there in both
              if here["raw_score"] is not None and there["raw_score"] is not None]  # fmt: skip
    if not graded:
        raise UserError(f"{other.place} has no score of a rationale that was graded here.")
    mine, theirs = np.array(graded, dtype=np.int64).T
    differ = len(set(mine.tolist())) > 1 and len(set(theirs.tolist())) > 1
    difference = (mine - theirs).astype(np.float64)
    # Kappa is 0 if one judge gives a constant score, and undefined only if both give the same constant.
    several = len({*mine.tolist(), *theirs.tolist()}) > 1
    kappa = cohen_kappa_score(mine, theirs, labels=range(BEST + 1), weights="quadratic") if several else None
    return {
        "with": str(other.place),
        "rationales": len(graded),
        "spearman": float(spearmanr(mine, theirs).statistic) if differ else None,
        "kappa": None if kappa is None else float(kappa),
        "equal": float((mine == theirs).mean()),
        "difference": mean_estimate(difference, (-float(BEST), float(BEST)), samples=samples, seed=seed).as_dict(),
    }
