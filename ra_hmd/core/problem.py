"""Classification problems: two classes, one of C classes, or any number of C classes.

Shapes: N rows, C outputs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ra_hmd.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ProblemType = Literal["binary", "single_label", "multi_label"]

UNLABELLED = -1


@dataclass(frozen=True)
class Problem:
    """The classification problem of a head.

    Attributes:
        kind: `binary` (class 0 or 1, one logit), `single_label` (one of C classes, softmax) or `multi_label` (any
            number of C classes, also none; C sigmoids).
        outputs: C, the logits of the head.

    Labels are int64 class indices [N], for `multi_label` a 0/1 matrix [N, C]; `UNLABELLED` where unknown.
    """

    kind: ProblemType = "binary"
    outputs: int = 1

    def __post_init__(self) -> None:
        if self.kind == "binary" and self.outputs != 1:
            raise UserError(
                f"`problem_type: binary` has one output, not {self.outputs}; set `output_dim: 1`, or "
                "`problem_type: single_label` or `multi_label`."
            )
        if self.kind == "single_label" and self.outputs < 2:
            raise UserError(
                f"`problem_type: single_label` needs two or more outputs, `output_dim` is {self.outputs}; for two "
                "classes use `problem_type: binary`."
            )

    @property
    def classes(self) -> int:
        """Number of classes: C, but two for `binary`."""
        return 2 if self.kind == "binary" else self.outputs

    def unlabelled(self, rows: int) -> np.ndarray:
        """Labels of N unlabelled rows."""
        return np.full((rows, self.outputs) if self.kind == "multi_label" else rows, UNLABELLED, dtype=np.int64)

    def check(self, labels: np.ndarray, place: str | Path) -> None:
        """Raise `UserError` unless all `labels`, read from `place`, are classes of this problem."""
        labels = np.asarray(labels)
        if self.kind == "multi_label":
            if labels.ndim != 2 or labels.shape[1] != self.outputs:
                have = f"{labels.shape[1]} classes" if labels.ndim == 2 else "one class index per row"
                raise UserError(
                    f"{place} has {have}; `problem_type: multi_label` with `output_dim: {self.outputs}` needs a 0/1 "
                    f"vector of {self.outputs} per row."
                )
        elif labels.ndim != 1:
            raise UserError(
                f"{place} has {labels.shape[1]} labels per row; `problem_type: {self.kind}` needs one, use multi_label."
            )
        missing = int(_columns(labels == UNLABELLED).any(axis=1).sum())
        if missing:
            raise UserError(
                f"{place}: {missing} of {len(labels)} rows have no label; training and evaluation need one."
            )
        allowed = 2 if self.kind == "multi_label" else self.classes
        unknown = sorted(set(np.unique(labels).tolist()) - set(range(allowed)))
        if unknown:
            known = "0 and 1" if allowed == 2 else f"0 to {allowed - 1}"
            raise UserError(f"{place} has labels {unknown[:5]}; classes {known} are expected.")

    def membership(self, labels: np.ndarray) -> np.ndarray:
        """Class membership, bool [N, C]; for `binary` the one column of class 1."""
        labels = np.asarray(labels)
        if self.kind == "single_label":
            return labels[:, None] == np.arange(self.outputs)
        return _columns(labels) == 1

    def constant_classes(self, labels: np.ndarray) -> list[int]:
        """Outputs (for `binary` class 1) that all rows or none of them have, so that they cannot be learnt."""
        member = self.membership(labels)
        return np.flatnonzero(member.all(axis=0) | ~member.any(axis=0)).tolist()

    def refuse_one_class(self, labels: np.ndarray, place: str | Path, why: str = "training needs several") -> None:
        """Raise `UserError` where all `labels`, read from `place`, are the same."""
        labels = np.asarray(labels)
        if len(self.constant_classes(labels)) == self.outputs:
            have = labels[0].tolist() if len(labels) else "no"
            raise UserError(f"{place} has memes of class {have} only; {why}.")

    def signs(self, labels: np.ndarray) -> np.ndarray:
        """Votes for (+1) and against (−1) each output, float64 [N, C]; `single_label` has 0 instead of −1."""
        member = self.membership(labels).astype(np.float64)
        return member if self.kind == "single_label" else 2 * member - 1

    def probabilities(self, logits: "Tensor") -> "Tensor":
        """Probabilities [N, C] of logits [N, C]: softmax over single labels, else one sigmoid per output."""
        return logits.softmax(dim=-1) if self.kind == "single_label" else logits.sigmoid()


def _columns(labels: np.ndarray) -> np.ndarray:
    """Labels [N] as [N, 1]; label sets [N, C] unchanged. N may be 0."""
    return labels[:, None] if labels.ndim == 1 else labels


BINARY = Problem()
"""Two classes, 0 and 1."""
