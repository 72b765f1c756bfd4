"""Decisions of earlier versions, which kept them in a file of JSON lines beside the bank."""

import json
from pathlib import Path

from ra_hmd.core.errors import UserError

_ENDED = ("agree", "correct")


def decided_before(path: Path) -> dict[str, str]:
    """Id of each meme on which people had decided, and the digest of its picture; the digest is empty where any
    picture of that id counts.

    Memes that were skipped are not among them. A line that a kill cut short is passed over.

    Raises:
        UserError: The file holds something else.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            name, decision, picture = row["id"], row["decision"], row.get("picture", "")
        except (KeyError, TypeError, ValueError, AttributeError):
            if line.startswith('{"id": '):
                continue
            raise UserError(
                f"{path}, line {number}, is no decision of a moderator. Decisions are kept in the case database now "
                "(--cases); move this file away, or name the file of old decisions with --reviews FILE."
            ) from None
        if decision in _ENDED:
            found[name] = picture
        elif decision == "skip":
            found.pop(name, None)
    return found
