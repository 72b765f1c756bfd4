"""Bar charts of days, as shapes for an SVG that the page colours.

Positions are those of the view box: `WIDTH` by `HEIGHT`, y downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

WIDTH, HEIGHT = 360, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 356, 8, 156
"""Edges of the area in which bars stand."""
_GAP = 0.25
"""Share of a day's width that stays free."""


@dataclass(frozen=True)
class Bar:
    """A rectangle; `series` is the place of its series, `words` what it stands for."""

    x: float
    y: float
    width: float
    height: float
    series: int
    words: str


@dataclass(frozen=True)
class Whisker:
    """An interval around the top of a bar."""

    x: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Series:
    """Values of the days under one name; None where a day has none. `intervals` are (low, high) around them."""

    name: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Chart:
    """A bar chart of days.

    Attributes:
        title: What it shows.
        days: Names of the days.
        series: The series.
        percent: Whether values are shares from 0 to 1, and shown in per cent.
        stacked: Whether the shares of a day stand on each other, up to 100 %; else bars stand side by side.
    """

    title: str
    days: Sequence[str]
    series: Sequence[Series]
    percent: bool = False
    stacked: bool = False
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)
    left: int = field(default=LEFT, init=False)
    right: int = field(default=RIGHT, init=False)
    bottom: int = field(default=BOTTOM, init=False)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(value for one in self.series for value in one.values)

    @cached_property
    def top(self) -> float:
        """The value at the upper edge: 1, 2 or 5 times a power of ten that no bar and no interval exceeds."""
        if self.stacked:
            return 1.0
        values = [value or 0 for one in self.series for value in one.values]
        ends = [interval[1] for one in self.series for interval in one.intervals if interval is not None]
        highest = max([*values, *ends], default=0) or 1
        power = 10.0 ** math.floor(math.log10(highest))
        nice = next(step * power for step in (1, 2, 5, 10) if step * power >= highest * (1 - 1e-9))
        return min(nice, 1.0) if self.percent else max(nice, 2.0)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Height and words of the lines across the chart."""
        return [(self._y(self.top * part), self.words(self.top * part)) for part in (0, 0.5, 1)]

    @property
    def marks(self) -> list[tuple[float, str, str]]:
        """Place, words and anchor of the days that are named below the chart: the first and the last one."""
        return [(LEFT, self.days[0][5:], "start"), (RIGHT, self.days[-1][5:], "end")]

    @property
    def bars(self) -> list[Bar]:
        """The bars."""
        found = []
        for day, name in enumerate(self.days):
            below = 0.0
            for place, one in enumerate(self.series):
                value = one.values[day]
                if not value:
                    continue
                x, width = self._span(day, place)
                top = self._y(below + value)
                words = f"{name}, {one.name}: {self.words(value)}"
                found.append(Bar(x, top, width, round(self._y(below) - top, 2), place, words))
                below += value if self.stacked else 0
        return found

    @property
    def whiskers(self) -> list[Whisker]:
        """The intervals."""
        found = []
        for place, one in enumerate(self.series):
            for day, interval in enumerate(one.intervals):
                if interval is not None:
                    x, width = self._span(day, place)
                    found.append(Whisker(x + width / 2, self._y(interval[1]), self._y(interval[0])))
        return found

    def words(self, value: float | None) -> str:
        """A value in words."""
        if value is None:
            return "–"
        if self.percent:
            return f"{100 * value:.0f} %"
        return f"{value:g}"

    def _y(self, value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * min(value / self.top, 1), 2)

    def _span(self, day: int, place: int) -> tuple[float, float]:
        """Left edge and width of a bar."""
        whole = (RIGHT - LEFT) / len(self.days)
        parts = 1 if self.stacked else len(self.series)
        width = whole * (1 - _GAP) / parts
        offset = 0 if self.stacked else place * width
        return round(LEFT + day * whole + whole * _GAP / 2 + offset, 2), round(width, 2)
