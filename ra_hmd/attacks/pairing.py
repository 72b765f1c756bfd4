"""Ids of attacked memes, and the pairing of attacked memes with their clean ones."""

import re
from collections.abc import Sequence

from ra_hmd.core.errors import UserError, raise_all

_ATTACKED = re.compile(r"(?P<clean>.+)@[a-z0-9_]+-[123](?:-(?:field|picture|both|reread))?", re.DOTALL)


def attacked_id(clean: str, variant: str) -> str:
    """Id of an attacked meme: the id of the clean one, `@`, and the name of the variant."""
    return f"{clean}@{variant}"


def clean_id(name: str) -> str:
    """Id of the clean meme that belongs to an attacked one; the id of a clean meme is returned as it is."""
    found = _ATTACKED.fullmatch(name)
    return found["clean"] if found else name


def pair_rows(clean: Sequence[str], attacked: Sequence[str]) -> list[int]:
    """Return for each attacked id the row of its clean one.

    Raises:
        UserError: The two do not pair one to one.
    """
    rows = {name: row for row, name in enumerate(clean)}
    found = [clean_id(name) for name in attacked]
    raise_all(
        [f"{name!r} has no clean meme" for name, one in zip(attacked, found, strict=True) if one not in rows],
        "These attacked memes were not made from these clean ones",
    )
    if len(set(found)) != len(found) or len(found) != len(rows):
        raise UserError(
            f"{len(set(found))} different clean memes belong to {len(found)} attacked ones, and there are {len(rows)}; "
            "give the whole split of both."
        )
    return [rows[name] for name in found]
