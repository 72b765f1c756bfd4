"""Numbered periods of memes, from a field of theirs."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ra_hmd.core.errors import UserError, raise_all

DatePart = Literal["day", "month", "year"]
_CUT = {"day": 10, "month": 7, "year": 4}  # characters of an ISO date


def periods_of(
    values: Sequence[tuple[Path, str, Any]],
    key: str,
    order: Sequence[str] = (),
    date_part: DatePart = "day",
    bins: int | None = None,
) -> tuple[list[str], np.ndarray]:
    """Assign memes to periods.

    Args:
        values: Store, id and value of every meme: all numbers, all dates (ISO 8601), or names.
        key: Name of the field, for messages.
        order: Names in order; required where values are neither numbers nor dates.
        date_part: Part of a date that makes a period.
        bins: Number of periods of about equally many memes; equal values stay together.

    Returns:
        Names of the periods in order, and the period number of each meme [N].

    Raises:
        UserError: memes without a value, values of mixed kinds, names without an order or outside it, fewer values than
            `bins`.
    """
    none = [f"{place}: meme {meme!r}" for place, meme, value in values if value is None or value == ""]
    raise_all(none, f"Memes without a period: their `extras` have no {key!r}")
    raw = [value for _, _, value in values]
    if order:
        return _named(raw, key, order)
    numbers = [_number(value) for value in raw]
    if None not in numbers:
        keys: list[Any] = numbers
        titles = {number: str(value) for number, value in zip(numbers, raw, strict=True)}
    else:
        dates = [_iso(value) for value in raw]
        if None in dates:
            names = sorted({str(value) for value, day in zip(raw, dates, strict=True) if day is None})
            raise UserError(
                f"The values of {key!r} are neither all numbers nor all dates (2024-05-31), for example "
                f"{', '.join(map(repr, names[:5]))}; give their order, as in --order {','.join(names[:3])}."
            )
        keys = [day if bins else str(day)[: _CUT[date_part]] for day in dates]
        titles = {one: str(one)[:10] for one in keys}
    distinct = sorted(set(keys))
    if bins is None:
        number = {one: place for place, one in enumerate(distinct)}
        return [titles[one] for one in distinct], np.array([number[one] for one in keys])
    return _binned(keys, distinct, titles, key, bins)


def _named(raw: Sequence[Any], key: str, order: Sequence[str]) -> tuple[list[str], np.ndarray]:
    unknown = sorted({str(value) for value in raw} - set(order))
    if unknown or len(set(order)) < len(order):
        problem = f"lacks {', '.join(map(repr, unknown[:5]))}" if unknown else "names a period twice"
        raise UserError(f"The order {','.join(order)} of {key!r} {problem}; name each period once.")
    number = {name: place for place, name in enumerate(order)}
    return list(order), np.array([number[str(value)] for value in raw])


def _binned(
    keys: Sequence[Any], distinct: Sequence[Any], titles: dict[Any, str], key: str, bins: int
) -> tuple[list[str], np.ndarray]:
    if len(distinct) < bins:
        raise UserError(f"{key!r} has {len(distinct)} values, {bins} periods cannot be made of them; lower --bins.")
    place_of = {one: place for place, one in enumerate(distinct)}
    counts = np.bincount([place_of[one] for one in keys], minlength=len(distinct))
    middle = np.cumsum(counts) - counts / 2
    bin_of = np.minimum((middle * bins / len(keys)).astype(np.int64), bins - 1)
    used = np.unique(bin_of)  # a value that many memes have can leave a bin empty
    bin_of = np.searchsorted(used, bin_of)
    names = []
    for number in range(len(used)):
        members = [titles[distinct[place]] for place in np.flatnonzero(bin_of == number).tolist()]
        names.append(members[0] if len(members) == 1 else f"{members[0]} to {members[-1]}")
    number_of = dict(zip(distinct, bin_of.tolist(), strict=True))
    return names, np.array([number_of[one] for one in keys])


def _number(value: Any) -> float | None:
    """Convert a value, also text, to a finite number; None if it is none."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else np.nan
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _iso(value: Any) -> datetime | None:
    """Parse a date or time in ISO 8601 without its time zone; None if it is none."""
    if not isinstance(value, str) or len(value) < 8:
        return None
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None)
    except ValueError:
        return None
