"""One decision for several cases whose pictures are nearly the same."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ra_hmd.cases.near import near_copies
from ra_hmd.cases.tables import Case
from ra_hmd.core.errors import UserError
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.people import User


@dataclass(frozen=True)
class BulkResult:
    """What came of a bulk decision.

    Attributes:
        batch: Its name, under which it is taken back as one.
        decided: Cases that have the opinion now, in their present state.
        refused: The other cases, each with the reason.
    """

    batch: str
    decided: list[Case]
    refused: list[tuple[Case, str]]


def decide_all(desk: Desk, user: User, case_id: str, chosen: Sequence[str], label: Any, reason: str = "") -> BulkResult:
    """Give several near copies of a case one label.

    Args:
        desk: The desk.
        user: Who decides.
        case_id: The case whose near copies were on the screen.
        chosen: Ids of the copies that are meant, which may include the case.
        label: The label.
        reason: Why, needed where it contradicts the verdict on one of them.

    Raises:
        UserError: None is chosen, or one that is no near copy; the reason is missing. Then nothing was decided.
    """
    desk.require_moderator(user)
    near = {one.id: one for one in near_copies(desk.cases.store.database, desk.cases.store.get(case_id))[0]}
    if not chosen:
        raise UserError("Choose the memes that the decision is for.")
    if set(chosen) - set(near):
        raise UserError("Some of these memes are decided already; look at those that are left.")
    cases = [near[name] for name in dict.fromkeys(chosen)]
    if not reason.strip() and any(one.verdict.get("verdict") != label for one in cases):
        raise UserError("Say why: choose a reason, or write one. The log keeps it.")
    result = BulkResult(secrets.token_hex(8), [], [])
    for case in cases:
        try:
            result.decided.append(desk.decide(user, case.id, label, reason, batch=result.batch))
        except UserError as error:
            result.refused.append((case, str(error)))
    return result
