"""Suggestion of memes to label: sequential transductive experimental design with the kernel of the bank.

Shapes: P candidates, S sampled memes of the pool, N rows of the bank, C outputs of the problem (1 if binary).
"""

from dataclasses import dataclass

import numpy as np

from ra_hmd.retrieval.distinct_vectors import ABSENT
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.kernels import SummedKernel, Views
from ra_hmd.retrieval.kernel_ridge.system import RidgeSystem
from ra_hmd.scoring.kernel_classifier import ExactKernelClassifier, KernelClassifier, views_of

_MOST_ROWS = 4000  # rows of a larger bank that are conditioned on: the nearest to the candidates
_NEIGHBOURS = 64
_BLOCK = 1024  # candidates whose uncertainty is computed at a time


@dataclass(frozen=True)
class Suggestions:
    """Memes of a pool that are worth a label, the most valuable first.

    Attributes:
        rows: int64 [M], positions in the pool.
        score: float64 [M]: by how much a label reduces the summed variance of the sampled memes, given the labels of
            the bank and of the memes before it.
        uncertainty: float64 [M]: the variance of the meme itself given the bank alone, between 0 (known) and 1.
    """

    rows: np.ndarray
    score: np.ndarray
    uncertainty: np.ndarray


def suggest_memes(
    classifier: KernelClassifier, pool: Embeddings, budget: int, *, sample: int, candidates: int, seed: int
) -> Suggestions:
    """Choose the memes of a pool whose labels would teach most.

    Each step takes the candidate that reduces the posterior variance of the sampled memes most: one that is uncertain,
    has many memes of the pool near it, and is unlike those that were taken before. Labels have no part. The time is
    linear in the budget and in the candidates, so a pool of any size costs no more than its embedding.

    Args:
        classifier: The kernel head of the bank.
        pool: Memes that the bank does not hold.
        budget: Largest number of suggestions.
        sample: S; of a larger pool, memes drawn at random.
        candidates: P; the same.
        seed: Seed of both draws.

    Source: Yu, Bi and Tresp, Active learning via transductive experimental design, ICML 2006 (the sequential design).
    """
    if not len(pool):
        return Suggestions(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    draws = np.random.default_rng(seed)
    chosen, sampled = (np.sort(draws.permutation(len(pool))[:most]) for most in (candidates, sample))
    kernel = classifier.kernel
    reference = kernel.standardised(views_of(pool.select(sampled, kernel.used), kernel.used))
    posterior = _Posterior.of(classifier, pool.select(chosen, kernel.used))
    variance = posterior.variance()
    taken, score = _greedy(posterior, posterior.covariance(reference), variance, classifier.parameters.noise, budget)
    return Suggestions(chosen[taken], score, variance[taken])


@dataclass(frozen=True)
class _Posterior:
    """Covariance of the candidates given the rows of a bank.

    Attributes:
        kernel: The kernel.
        views: Standardised views of the P candidates.
        rows: Standardised views of the N rows.
        cross: float64 [P, N], kernel of candidates and rows.
        inverse: float64 [N, N], of the system of the rows.
    """

    kernel: SummedKernel
    views: Views
    rows: Views
    cross: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, classifier: KernelClassifier, candidates: Embeddings) -> "_Posterior":
        """Given all rows of an exact classifier, of another those near the candidates."""
        kernel, rows = classifier.kernel, classifier.rows
        if isinstance(classifier, ExactKernelClassifier):
            places, system = np.arange(len(rows)), classifier.systems[0]
        else:
            places, system = _nearest(classifier, candidates), None
        near = rows.select(places, kernel.used)
        views = kernel.standardised(views_of(near, kernel.used))
        if system is None:
            weights, none = classifier.weights(near.labels)[:, 0], np.zeros((len(places), 0))
            system = RidgeSystem.solve(kernel(views, views), none, classifier.parameters.noise, weights)
        own = kernel.standardised(views_of(candidates, kernel.used))
        return cls(kernel, own, views, kernel(own, views), system.inverse)

    def covariance(self, memes: Views) -> np.ndarray:
        """float64 [memes, P], with further memes."""
        return self.kernel(memes, self.views) - (self.kernel(memes, self.rows) @ self.inverse) @ self.cross.T

    def line(self, candidate: int) -> np.ndarray:
        """float64 [P], the covariance of one candidate with all."""
        own = {name: view[candidate : candidate + 1] for name, view in self.views.items()}
        return self.kernel(own, self.views)[0] - (self.cross[candidate] @ self.inverse) @ self.cross.T

    def variance(self) -> np.ndarray:
        """float64 [P], at least 0."""
        blocks = [self.cross[start : start + _BLOCK] for start in range(0, len(self.cross), _BLOCK)]
        explained = [((block @ self.inverse) * block).sum(axis=1) for block in blocks]
        return np.maximum(1 - np.concatenate([np.zeros(0), *explained]), 0.0)


def _nearest(classifier: KernelClassifier, memes: Embeddings) -> np.ndarray:
    """Positions of at most `_MOST_ROWS` rows: the nearest of every meme first, then the second nearest, …"""
    found = classifier.rows.nearest(memes, _NEIGHBOURS).rows.T.ravel()
    distinct, first = np.unique(found[found != ABSENT], return_index=True)
    return np.sort(distinct[np.argsort(first)][:_MOST_ROWS])


def _greedy(
    posterior: _Posterior, covariance: np.ndarray, variance: np.ndarray, noise: float, budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the candidates in the order in which they are taken, and their scores; of equal ones the first.

    Args:
        posterior: The covariance of the candidates.
        covariance: float64 [S, P], of the sampled memes and the candidates; it is changed.
        variance: float64 [P], of the candidates.
        noise: λ.
        budget: Number of candidates that are taken, as far as there are any.
    """
    free = np.ones(len(variance), bool)
    explained: list[np.ndarray] = []  # [P] each: what the candidates taken so far explain of the covariance
    taken: list[int] = []
    score: list[float] = []
    for _ in range(min(budget, len(free))):
        gain = np.where(free, (covariance**2).sum(axis=0) / (variance + noise), -1.0)
        best = int(gain.argmax())
        root = np.sqrt(variance[best] + noise)
        line = posterior.line(best) - sum((row[best] * row for row in explained), np.zeros(len(free)))
        explained.append(line / root)
        covariance -= np.outer(covariance[:, best] / root, explained[-1])
        variance = np.maximum(variance - explained[-1] ** 2, 0.0)
        taken.append(best)
        score.append(float(gain[best]))
        free[best] = False
    return np.array(taken, np.int64), np.array(score)
