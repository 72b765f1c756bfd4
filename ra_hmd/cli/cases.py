"""`ra-hmd cases`: the audit log of a case database, its decided memes as data, and the removal of old ones."""

import getpass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import GROUP

cases_app = typer.Typer(help="Cases that people decide on (docs/console.md).", **GROUP)
_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
_Time = Annotated[datetime | None, typer.Option(formats=_FORMATS, help="From, or before, this time in UTC.")]


@cases_app.command("export")
def export_command(
    output: Annotated[Path, typer.Argument(help="File to write: .jsonl or .csv.")],
    cases: Annotated[str, typer.Option(help="Case database: a SQLite file, or a URL.")],
    bank: Annotated[str | None, typer.Option(help="Example bank, whose versions are lines of the log, too.")] = None,
    person: Annotated[str | None, typer.Option(help="What this person did.")] = None,
    case: Annotated[str | None, typer.Option(help="What happened to this case.")] = None,
    row: Annotated[str | None, typer.Option(help="What happened to this row of the bank.")] = None,
    since: _Time = None,
    until: _Time = None,
) -> Outcome:
    """Write the audit log to a file: who did what, when and why."""
    from ra_hmd.cases.export import AuditFilter, export

    wanted = AuditFilter(person, case, row).between(since, until)
    count = export(output, cases, wanted, bank)
    return Outcome.of(f"{output}: {count} lines", output=output, lines=count)


@cases_app.command("memes")
def memes_command(
    output: Annotated[Path, typer.Argument(help="File of JSON Lines to write.")],
    cases: Annotated[str, typer.Option(help="Case database: a SQLite file, or a URL.")],
    since: _Time = None,
    until: _Time = None,
) -> Outcome:
    """Write the memes that people decided on, with their labels, for `ra-hmd data import generic`."""
    from ra_hmd.cases.decided_memes import export_memes

    count = len(export_memes(output, cases, since, until))
    return Outcome.of(f"{output}: {count} decided memes", output=output, memes=count)


@cases_app.command("forget")
def forget_command(
    cases: Annotated[str, typer.Option(help="Case database: a SQLite file, or a URL.")],
    before: Annotated[datetime, typer.Option(formats=_FORMATS, help="Cases decided before this time in UTC.")],
    case_pictures: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; default: beside the SQLite file.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="Name in the audit log; default: the login name.")] = None,
) -> Outcome:
    """Remove pictures, captions, contexts and notes of cases that were decided before a time; decisions and the audit
    log stay.
    """
    from ra_hmd.cases.forgetting import forget_in

    count = forget_in(cases, case_pictures, before, author or getpass.getuser())
    return Outcome.of(f"Memes of {count} cases were removed", cases=count)
