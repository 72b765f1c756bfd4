"""Pages of the commands, written from the Typer app: one for each command or group, and a list of all."""

from functools import cache
from typing import Any

import typer
from site_text import cell, code, table

from ra_hmd.cli.app import app

UP = "../../"


@cache
def command_pages() -> dict[str, str]:
    """File name of each page to its text; the list of all commands first."""
    pages = {f"{name}.md": _page(command, name) for name, command in _shown(_program()).items()}
    return {"index.md": _index()} | pages


def pages_by_panel() -> dict[str, list[str]]:
    """Panel of `ra-hmd --help` to the pages of its commands: the start, the steps in their order, and the rest."""
    panels: dict[str, list[str]] = {}
    for name, command in _shown(_program()).items():
        panels.setdefault(command.rich_help_panel, []).append(f"{name}.md")
    steps = sorted(panel for panel in panels if panel[0].isdigit())
    return {panel: panels[panel] for panel in dict.fromkeys(["Start", *steps, *panels])}


def _program() -> Any:
    return typer.main.get_command(app)


def _shown(group: Any) -> dict[str, Any]:
    """The commands of a group that `--help` lists."""
    return {name: command for name, command in group.commands.items() if not command.hidden}


def _index() -> str:
    """The page that lists all commands."""
    parts = [
        "# Commands\n\nThe program is `ra-hmd`; each page below is written from it, and `ra-hmd COMMAND --help` prints "
        "the same. Bad input ends with one sentence and exit code 2."
    ]
    program = _program()
    for panel, pages in pages_by_panel().items():
        rows = []
        for page in pages:
            name = page.removesuffix(".md")
            for place, one in _commands(program.commands[name], name):
                anchor = "" if place == name else f"#{anchor_of(place)}"
                rows.append((f"[`{place}`]({page}{anchor})", cell(_summary(one), UP)))
        parts.append(f"## {panel}\n\n{table(('command', 'what it does'), rows)}")
    return "\n\n".join(parts) + "\n"


def _page(command: Any, name: str) -> str:
    """The page of a command, or of a group with all its commands."""
    found = list(_commands(command, name))
    if found[0][0] == name:
        return f"# ra-hmd {name}\n\n{_body(command, name)}"
    parts = [f"## ra-hmd {place}\n\n{_body(one, place)}" for place, one in found]
    return f"# ra-hmd {name}\n\n{cell(command.help or '', UP)}\n\n" + "\n".join(parts)


def _commands(command: Any, name: str) -> list[tuple[str, Any]]:
    """The command itself, or the commands of a group, each with its full name."""
    if not hasattr(command, "commands"):
        return [(name, command)]
    return [pair for part, one in _shown(command).items() for pair in _commands(one, f"{name} {part}")]


def anchor_of(place: str) -> str:
    """Anchor of a command's heading."""
    return f"ra-hmd-{place}".replace(" ", "-")


def _summary(command: Any) -> str:
    """The first sentence of a command's help."""
    return str((command.help or "").strip().split(". ")[0].split("\n\n")[0]).rstrip(".") + "."


def _body(command: Any, place: str) -> str:
    """Help, usage and options of one command."""
    context = typer.Context(command, info_name=f"ra-hmd {place}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [cell(part, UP) for part in (command.help or "").split("\n\n")]
    parts.append(f"```text\n{usage}\n```")
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [_row(*record) for record in records if record is not None]
    if rows:
        parts.append(table(("option", "meaning", "default"), rows))
    title, _, examples = (command.epilog or "").partition("\n")
    if examples:
        parts.append(f"{title}\n\n```bash\n{examples}\n```")
    return "\n\n".join(parts) + "\n"


def _row(names: str, text: str) -> tuple[str, ...]:
    """The row of an option, from its line of `--help`: the default and the range stand in brackets at its end."""
    meaning, _, notes = text.removesuffix("]").rpartition("  [") if text.endswith("]") else (text, "", "")
    shown = [note.removeprefix("default: ") for note in notes.split("; ") if note]
    return code(names), cell(meaning, UP), ", ".join(note if note == "required" else code(note) for note in shown)
