"""The kernel head (KRR): kernel ridge regression over the labelled rows of a bank.

The score of a query is the sum of what each row adds to it, α k(row, query). Up to `exact_rows` rows one linear system
is kept, and updated when rows change; with more, each query is answered by a system of its nearest rows.

Shapes: Q queries, N rows, M nearest rows, E rows of evidence, C outputs of the problem (1 if binary).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.distinct_vectors import ABSENT
from ra_hmd.retrieval.embeddings import EMBEDDING, Embeddings
from ra_hmd.retrieval.kernel_ridge.kernels import SummedKernel, Views
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.kernel_ridge.system import RidgeSystem
from ra_hmd.retrieval.kernel_ridge.tuning import RidgeParameters, tune
from ra_hmd.retrieval.kernel_ridge.weights import ClassWeights
from ra_hmd.retrieval.knn import Neighbours, as_matrix, unit_rows

TUNING_ROWS = 512
"""Most rows that widths, noise and view weights are chosen on."""
NEWEST_ROWS = 128
"""How many of them are the last ones, if there are more rows: what is new decides which views are needed."""
EVIDENCE_ROWS = 20
_BLOCK = 256  # queries that are answered at a time


@dataclass(frozen=True)
class KernelPrediction:
    """Scores of Q queries and the rows behind them.

    Attributes:
        scores: float64 [Q, C].
        rows: int64 [Q, E], positions of the rows that add most, regardless of sign, the strongest first; `ABSENT` at
            the end of a line with fewer.
        shares: float64 [Q, E, C], what each of them adds to the scores; 0 where absent.
    """

    scores: np.ndarray
    rows: np.ndarray
    shares: np.ndarray

    @property
    def rest(self) -> np.ndarray:
        """float64 [Q, C]: what all other rows add to the scores."""
        return self.scores - self.shares.sum(axis=1)


class LabelledRows(Protocol):
    """Labelled rows with vectors: `Embeddings` in memory, an example bank, or a preview of one."""

    @property
    def ids(self) -> Sequence[str]:
        """N ids."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [N] or [N, C]."""

    def __len__(self) -> int: ...

    def nearest(self, queries: Embeddings, k: int) -> Neighbours:
        """The K nearest rows of each query by its embedding, without the query itself."""

    def select(self, rows: np.ndarray, views: Sequence[str] | None = None) -> Embeddings:
        """The rows at the given positions, with the named views."""


class KernelClassifier(ABC):
    """Kernel ridge regression over labelled rows; see `fit_kernel_classifier`.

    Attributes:
        rows: The rows.
        parameters: Kernel and noise, and what they were chosen on.
        problem: What labels mean.
        settings: Settings of the head.
        weights: Weights of rows by their labels.
    """

    method: ClassVar[str]

    def __init__(
        self,
        rows: LabelledRows,
        parameters: RidgeParameters,
        problem: Problem,
        settings: KernelSettings,
        weights: ClassWeights,
    ) -> None:
        self.rows, self.parameters, self.problem = rows, parameters, problem
        self.settings, self.weights = settings, weights

    @property
    def kernel(self) -> SummedKernel:
        """The kernel."""
        return self.parameters.kernel

    def predict(self, queries: Embeddings, evidence: int = EVIDENCE_ROWS) -> KernelPrediction:
        """Scores of Q queries. A row with a query's own id has no part in its score.

        Args:
            queries: The queries, with the views of the kernel.
            evidence: E, the number of rows that are named for each query.

        Raises:
            UserError: a view that the queries do not have.
        """
        count, outputs = min(evidence, len(self.rows)), self.problem.outputs
        scores = np.zeros((len(queries), outputs))
        rows = np.full((len(queries), count), ABSENT, dtype=np.int64)
        shares = np.zeros((len(queries), count, outputs))
        for start in range(0, len(queries) if len(self.rows) else 0, _BLOCK):
            block = slice(start, start + _BLOCK)
            found, parts = self._parts(queries.select(np.arange(len(queries))[block]))
            scores[block] = parts.sum(axis=1)
            strength = np.abs(parts).sum(axis=2)
            order = np.argsort(-strength, axis=1, kind="stable")[:, :count]
            named = np.where(np.take_along_axis(strength, order, 1) > 0, np.take_along_axis(found, order, 1), ABSENT)
            rows[block, : order.shape[1]] = named
            shares[block, : order.shape[1]] = np.take_along_axis(parts, order[:, :, None], 1)
        return KernelPrediction(scores, rows, shares)

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.rows.ids):
            rows.setdefault(name, []).append(row)
        return rows

    @abstractmethod
    def _parts(self, queries: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        """Rows [Q, M], and what each adds to the scores, [Q, M, C]."""

    @abstractmethod
    def leave_one_out(self) -> np.ndarray:
        """float64 [N, C]: the score of each row by the others alone, with these parameters."""

    def with_rows(self, rows: LabelledRows) -> "KernelClassifier":
        """The classifier with the same parameters for other rows, whose ids are unique: what is solved is updated."""
        if len(rows) > self.settings.exact_rows:
            return LocalKernelClassifier(rows, self.parameters, self.problem, self.settings, self.weights)
        return self._updated(rows.select(np.arange(len(rows)), self.kernel.used))

    def _updated(self, rows: Embeddings) -> "ExactKernelClassifier":
        """The exact classifier for other rows."""
        return ExactKernelClassifier(rows, self.parameters, self.problem, self.settings, self.weights)

    def describe(self) -> dict[str, Any]:
        """Method, rows and parameters as JSON values, for manifests and reports."""
        kernel = self.kernel
        return {
            "method": self.method,
            "rows": len(self.rows),
            "noise": self.parameters.noise,
            "views": {
                name: {"weight": weight, "gamma": kernel.kernels[name].gamma} for name, weight in kernel.weights.items()
            },
            "leave_one_out_loss": dict(self.parameters.losses),
            "tuned_on": self.parameters.rows,
            "balanced": self.settings.balanced,
        }

    def _solve(self, kernel: np.ndarray, labels: np.ndarray) -> list[RidgeSystem]:
        """One system per group of outputs whose rows have the same weights."""
        targets, weights = self.problem.signs(labels), self.weights(labels)
        groups = np.split(targets, weights.shape[1], axis=1)
        noise = self.parameters.noise
        return [RidgeSystem.solve(kernel, part, noise, weights[:, group]) for group, part in enumerate(groups)]


class ExactKernelClassifier(KernelClassifier):
    """One system of all rows, which are in memory.

    Args:
        rows: The rows.
        parameters: See `KernelClassifier`.
        problem: See `KernelClassifier`.
        settings: See `KernelClassifier`.
        weights: See `KernelClassifier`.
        systems: The solved systems, one per group of outputs; default: they are solved.
    """

    method = "exact"
    rows: Embeddings

    def __init__(
        self,
        rows: Embeddings,
        parameters: RidgeParameters,
        problem: Problem,
        settings: KernelSettings,
        weights: ClassWeights,
        systems: Sequence[RidgeSystem] = (),
    ) -> None:
        super().__init__(rows, parameters, problem, settings, weights)
        self._views = self.kernel.standardised(views_of(rows, self.kernel.used))
        self.systems = systems or self._solve(self.kernel(self._views, self._views), rows.labels)

    @property
    def standardised_rows(self) -> Views:
        """The rows' vectors by view, in units of the kernel's standard deviations."""
        return self._views

    @cached_property
    def coefficients(self) -> np.ndarray:
        """α, float64 [N, C]."""
        return _coefficients(self.systems)

    def _parts(self, queries: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        kernel = self.kernel(self.kernel.standardised(views_of(queries, self.kernel.used)), self._views)
        parts = kernel[:, :, None] * self.coefficients
        for line, name in enumerate(queries.ids):
            if name in self._rows_of:
                own = np.array(self._rows_of[name])
                without = np.concatenate([system.coefficients_without(own) for system in self.systems], axis=1)
                parts[line] = kernel[line][:, None] * without
        return np.broadcast_to(np.arange(len(self.rows)), kernel.shape), parts

    def leave_one_out(self) -> np.ndarray:
        return np.concatenate([system.leave_one_out() for system in self.systems], axis=1)

    def _updated(self, rows: Embeddings) -> "ExactKernelClassifier":
        """The classifier for other rows, which are told apart by id, vectors and weights."""
        views = self.kernel.standardised(views_of(rows, self.kernel.used))
        place = {name: row for row, name in enumerate(rows.ids)}
        before = np.array([row for row, name in enumerate(self.rows.ids) if name in place], dtype=np.int64)
        after = np.array([place[self.rows.ids[row]] for row in before], dtype=np.int64)
        same = (self.weights(self.rows.labels)[before] == self.weights(rows.labels)[after]).all(axis=1)
        for name, vectors in views.items():
            same &= (self._views[name][before] == vectors[after]).all(axis=1)
        kept, stays = before[same], after[same]
        gone, new = np.setdiff1d(np.arange(len(self.rows)), kept), np.setdiff1d(np.arange(len(rows)), stays)
        if len(gone) + len(new) > len(rows) // 2:
            return super()._updated(rows)
        old = {name: vectors[stays] for name, vectors in views.items()}
        added = {name: vectors[new] for name, vectors in views.items()}
        cross, square = self.kernel(old, added), self.kernel(added, added)
        order = np.argsort(np.concatenate([stays, new]))
        targets, weights = self.problem.signs(rows.labels), self.weights(rows.labels)
        systems = []
        for group, part in enumerate(np.split(targets, weights.shape[1], axis=1)):
            kept_system = self.systems[group].without(gone)
            grown = kept_system.plus(cross, square, part[new], weights[new, group])
            systems.append(grown.ordered(order).with_targets(part))
        return ExactKernelClassifier(rows, self.parameters, self.problem, self.settings, self.weights, systems)


class LocalKernelClassifier(KernelClassifier):
    """A system of the nearest rows for each query; nothing has to be updated when rows change.

    With the embedding alone the rows' own index finds the nearest ones. With other views, which it does not know, they
    are the rows of the largest kernel among all, in a time that is linear in the rows.
    """

    method = "local"

    def _parts(self, queries: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        count = min(self.settings.local_rows, len(self.rows))
        views = self.kernel.standardised(views_of(queries, self.kernel.used))
        found = self.rows.nearest(queries, count).rows if self._indexed else self._nearest_by_kernel(queries, views)
        distinct, place = np.unique(found, return_inverse=True)
        chosen = self.rows.select(distinct[distinct != ABSENT], self.kernel.used)
        vectors = self.kernel.standardised(views_of(chosen, self.kernel.used))
        place = place.reshape(found.shape) - int(ABSENT in distinct)
        parts = np.zeros((*found.shape, self.problem.outputs))
        for line in range(len(queries)):
            near = place[line][found[line] != ABSENT]
            if not len(near):
                continue
            local = {name: matrix[near] for name, matrix in vectors.items()}
            query = {name: matrix[line : line + 1] for name, matrix in views.items()}
            coefficients = _coefficients(self._solve(self.kernel(local, local), chosen.labels[near]))
            parts[line, : len(near)] = self.kernel(query, local)[0][:, None] * coefficients
        return found, parts

    @property
    def _indexed(self) -> bool:
        return self.kernel.used == [EMBEDDING]

    def _nearest_by_kernel(self, queries: Embeddings, views: Views) -> np.ndarray:
        """Positions [Q, M] of the rows of the largest kernel, without the query's own."""
        rows = self._in_memory
        kernel = self.kernel(views, self._standardised)
        for line, name in enumerate(queries.ids):
            kernel[line, self._rows_of.get(name, [])] = -1.0
        count = min(self.settings.local_rows, len(rows))
        nearest = np.argsort(-kernel, axis=1, kind="stable")[:, :count]
        return np.where(np.take_along_axis(kernel, nearest, 1) < 0, ABSENT, nearest)

    @cached_property
    def _in_memory(self) -> Embeddings:
        return self.rows.select(np.arange(len(self.rows)), self.kernel.used)

    @cached_property
    def _standardised(self) -> Views:
        return self.kernel.standardised(views_of(self._in_memory, self.kernel.used))

    def leave_one_out(self) -> np.ndarray:
        blocks = [np.arange(len(self.rows))[start : start + _BLOCK] for start in range(0, len(self.rows), _BLOCK)]
        none = np.zeros((0, self.problem.outputs))
        return np.concatenate(
            [none, *(self.predict(self.rows.select(block, self.kernel.used), 0).scores for block in blocks)]
        )


def _coefficients(systems: Sequence[RidgeSystem]) -> np.ndarray:
    """α of all outputs, float64 [N, C]."""
    return np.concatenate([system.coefficients for system in systems], axis=1)


def fit_kernel_classifier(
    rows: LabelledRows, problem: Problem, settings: KernelSettings, basis: LabelledRows | None = None
) -> KernelClassifier:
    """Choose the parameters and solve the system.

    Args:
        rows: The labelled rows.
        problem: What labels mean.
        settings: Settings of the head.
        basis: Rows that the parameters are chosen on; default: `rows`. Of more than `TUNING_ROWS` these are the last
            `NEWEST_ROWS` and others at equal steps.

    Raises:
        UserError: labels that are not the problem's, a view that the rows do not have, values that are not finite.
    """
    basis = rows if basis is None else basis
    if len(rows):
        problem.check(rows.labels, "The bank")
    sample = basis.select(_tuning_rows(len(basis)), settings.views)
    weights = ClassWeights.of(basis.labels, problem, settings.balanced)
    parameters = tune(
        views_of(sample, settings.views), problem.signs(sample.labels), weights(sample.labels).mean(axis=1)
    )
    if len(rows) > settings.exact_rows:
        return LocalKernelClassifier(rows, parameters, problem, settings, weights)
    everything = rows.select(np.arange(len(rows)), parameters.kernel.used)
    return ExactKernelClassifier(everything, parameters, problem, settings, weights)


def _tuning_rows(count: int) -> np.ndarray:
    """Positions of the rows that the parameters of a bank of `count` rows are chosen on."""
    if count <= TUNING_ROWS:
        return np.arange(count)
    newest = np.arange(count - NEWEST_ROWS, count)
    older = np.linspace(0, count - NEWEST_ROWS - 1, TUNING_ROWS - NEWEST_ROWS).astype(np.int64)
    return np.concatenate([np.unique(older), newest])


def views_of(rows: Embeddings, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The vectors of the named views, each of unit length, as the vote compares embeddings.

    Raises:
        UserError: a view that the rows do not have, values that are not finite.
    """
    return {name: unit_rows(as_matrix(rows.view(name), name)) for name in names}
