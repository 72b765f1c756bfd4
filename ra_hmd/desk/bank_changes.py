"""What moderators do to the example bank by itself, without its HTML: restore a version, take one row's change back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from ra_hmd.bank.versions import VersionEntry
from ra_hmd.cases.audit import log
from ra_hmd.cases.steps import CaseConflict
from ra_hmd.core.errors import UserError
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.people import User
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import ServiceBusy
from ra_hmd.serve.case_service import checked_words

T = TypeVar("T")


def read_bank(desk: Desk, call: Callable[[BankService], T]) -> T:
    """What a call reads from the bank.

    Raises:
        UserError: There is no bank, or it refuses; it is not named by its place.
    """
    with _bank(desk) as bank:
        return call(bank)


@contextmanager
def _bank(desk: Desk) -> Iterator[BankService]:
    bank = desk.cases.bank_service
    if bank is None:
        raise UserError("No example bank is open; whoever runs the desk can start it with --bank BANK.")
    try:
        yield bank
    except ServiceBusy as error:
        raise UserError("The model has no time now; try again in a moment.") from error
    except CaseConflict:
        raise
    except UserError as error:
        raise UserError(str(error).replace(str(bank.bank.location), "The bank")) from error


def take_back(desk: Desk, user: User, name: str, version: int, why: str) -> VersionEntry:
    """Take back what a version of the bank did to one row.

    Raises:
        UserError: The person may only look, the reason is missing; see `Bank.take_back`.
    """
    desk.require_moderator(user)
    reason = _reason(why)
    with _bank(desk) as bank:
        before = bank.labels([name]).get(name)
        entry = bank.take_back(name, version, author=user.name, reason=reason)
        after = bank.labels([name]).get(name)
    _log(desk, user, "row changed back", name, {"before": before, "after": after, **_said(entry)})
    return entry


def restore(desk: Desk, user: User, version: int, seen: int, why: str) -> VersionEntry:
    """Restore the content of a version of the bank, whose effect was shown at version `seen`.

    Raises:
        UserError: The person may only look, the reason is missing, the bank was changed since; see
            `BankService.rollback`.
    """
    desk.require_moderator(user)
    reason = _reason(why)
    with _bank(desk) as bank:

        def change() -> VersionEntry:
            if bank.bank.version != seen:
                raise CaseConflict(f"The bank has version {bank.bank.version} by now; look at the effect again.")
            return bank.rollback(version, author=user.name, reason=reason)

        with bank.service.exclusive(bank.timeout):
            entry = bank.bank.exclusively(change)
    _log(desk, user, "bank restored", None, {"restores": version, **_said(entry)})
    return entry


def _reason(why: str) -> str:
    if not why.strip():
        raise UserError("Say why. The log keeps it.")
    return checked_words(why)


def _said(entry: VersionEntry) -> dict[str, Any]:
    return {"version": entry.version, "reason": entry.reason}


def _log(desk: Desk, user: User, kind: str, row: str | None, details: Mapping[str, Any]) -> None:
    with desk.cases.store.database.write() as session:
        log(session, user.name, kind, None, row, **details)
