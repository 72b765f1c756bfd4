"""Copies of example banks: the present rows of one as the first version of another, wherever each of them lies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows


def copy_bank(
    source: Bank,
    target: str | Path,
    *,
    author: str,
    reason: str | None = None,
    edit: Callable[[BankRows], BankRows] = lambda rows: rows,
    views: bool = True,
    **options: Any,
) -> Bank:
    """Create a bank with the present rows of another one, and open it. The history stays where it is.

    Args:
        source: The bank.
        target: Location of the new bank; nothing may be there.
        author: Author of its first version.
        reason: Why; by default it names the version that is copied.
        edit: What is kept of the rows.
        views: Whether the views of the rows are copied; only a folder keeps them.
        options: See `Bank.create`.

    Raises:
        UserError: see `Bank.create`.
    """
    state, kept = source.state_at(), source.to_embeddings()
    return Bank.create(
        target,
        edit(state.rows.select(state.members)),
        kept.embedding,
        fingerprint=source.fingerprint,
        author=author,
        reason=reason or f"version {source.version} of the bank",
        problem=source.problem,
        views=kept.views if views else {},
        view_origins=source.views if views else {},
        **options,
    )
