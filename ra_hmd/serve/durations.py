"""Counts of durations in buckets, as histograms of Prometheus have them."""

from bisect import bisect_left
from collections import Counter
from itertools import accumulate

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets, in seconds."""


class Durations:
    """Durations that one thread adds at a time, and any may read."""

    def __init__(self) -> None:
        self.total = 0.0
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """Upper bound of each bucket, and how many durations are not above it."""
        counts = self._counts.copy()
        names = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
        return list(zip(names, accumulate(counts[number] for number in range(len(names))), strict=True))
