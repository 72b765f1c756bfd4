"""`ra-hmd bank export-hashes` and `import-hashes`: lists of hashes, in the forms of ThreatExchange's tools."""

from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli.bank import Lock, Place, Token, Wait, _open
from ra_hmd.cli.finish import Outcome
from ra_hmd.core.errors import UserError

hash_lists_app = typer.Typer()


@hash_lists_app.command("export-hashes")
def export_command(
    bank: Place,
    output: Annotated[Path, typer.Argument(help="List to write, a .csv file.")],
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Write the image hashes and labels of the rows as a list that others can import (docs/bank.md)."""
    from ra_hmd.bank.hash_lists import export_hashes

    with _open(bank, wait, lock, token) as opened:
        written, without = export_hashes(opened, output)
    line = f"{output}: {written} hashes" + (f"; {without} rows have none" if without else "")
    return Outcome.of(line, output=output, hashes=written, rows_without=without)


@hash_lists_app.command("import-hashes")
def import_command(
    source: Annotated[Path, typer.Argument(help="List of hashes: .csv, .jsonl, .json or .txt.")],
    output: Annotated[Path, typer.Argument(help="List to write for --hash-list, a .csv file.")],
    tag: Annotated[
        list[str] | None,
        typer.Option(help="NAME=LABEL: label of hashes with a tag, category or status; several times."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Label of hashes that have no other; with several classes 0,1,0.")
    ] = None,
) -> Outcome:
    """Give the hashes of a list labels, for --hash-list of predict, serve and console. Changes no bank."""
    from ra_hmd.bank.hash_lists import import_hash_list

    labels = {}
    for item in tag or []:
        name, mark, value = item.rpartition("=")
        if not mark or not name or not value:
            raise UserError(f"--tag {item!r}: write NAME=LABEL.")
        labels[name] = value
    for value in [*labels.values(), *([label] if label is not None else [])]:
        if not all(part.isdecimal() for part in value.split(",")):
            raise UserError(f"Label {value!r}: write a class index, or 0,1,… with several classes.")
    written, others = import_hash_list(source, output, labels, label)
    line = f"{output}: {written} hashes" + (f"; {others} signals of other types are left out" if others else "")
    return Outcome.of(line, output=output, hashes=written, left_out=others)
