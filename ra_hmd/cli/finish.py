"""What every command has in common: its place in the help, `--json`, and the next command when it ends."""

import functools
import inspect
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import CommandInfo

from ra_hmd.cli.guide import STEPS, About


@dataclass(frozen=True)
class Outcome:
    """What a command made or found. A command that returns it has the option `--json`.

    Attributes:
        data: Printed with `--json`.
        lines: Printed otherwise: text, what Rich renders, such as a table, or a function that prints.
        exit_code: Exit code of the command.
    """

    data: Mapping[str, Any] | list[Any]
    lines: list[Any] = field(default_factory=list)
    exit_code: int = 0

    @classmethod
    def of(cls, *lines: Any, **data: Any) -> "Outcome":
        """An outcome of some values. Without lines, the first value is printed."""
        return cls(data, list(lines) or [next(iter(data.values()))])

    def show(self, as_json: bool) -> None:
        """Print it."""
        if as_json:
            print(json.dumps(_plain(self.data), ensure_ascii=False, indent=2, allow_nan=False))
            return
        for line in self.lines:
            if isinstance(line, str | Path):
                print(line)
            elif callable(line):
                line()
            else:
                from rich.console import Console

                Console().print(line)


def _plain(value: Any) -> Any:
    """A value reduced to what JSON can hold; numbers that are not finite become null."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def guide(app: typer.Typer) -> None:
    """Give each command its step, its examples and its next command, as the table has them."""
    table = {words: (step, about) for step, commands in STEPS.items() for words, about in commands.items()}
    for words, info in _commands(app):
        step, about = table.get(words, (None, About(())))
        if about.examples:  # the last lines of the help
            info.epilog = "\n".join(["Examples:", *(f"ra-hmd {words} {one}".rstrip() for one in about.examples)])
        info.rich_help_panel = step if " " not in words else None
        if isinstance(info, CommandInfo) and info.callback is not None:
            info.callback = _finished(info.callback, about)


def _commands(app: typer.Typer, before: str = "") -> Iterator[tuple[str, Any]]:
    """Name of each command and group below an app, and what Typer keeps about it."""
    for command in app.registered_commands:
        yield f"{before}{command.name}", command
    for group in app.registered_groups:
        named = isinstance(group.name, str)
        if named:
            yield f"{before}{group.name}", group
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance, f"{before}{group.name} " if named else before)


def _finished(command: Callable[..., Any], about: About) -> Callable[..., Any]:
    """A command that prints its outcome, and the next command when it ends well."""
    signature = inspect.signature(command)
    prints = signature.return_annotation is Outcome

    @functools.wraps(command)
    def call(*args: Any, **values: Any) -> None:
        as_json = bool(values.pop("as_json", False)) if prints else bool(values.get("as_json"))
        if prints and as_json:
            with redirect_stdout(sys.stderr):  # what is printed on the way is no JSON
                outcome = command(*args, **values)
        else:
            outcome = command(*args, **values)
        data = outcome if isinstance(outcome, Mapping) else {}
        if isinstance(outcome, Outcome):
            outcome.show(as_json)
            if outcome.exit_code:
                raise typer.Exit(outcome.exit_code)
            data = outcome.data if isinstance(outcome.data, Mapping) else {}
        if about.next and not as_json and at_a_terminal():
            typer.echo(f"Next: {about.next.format_map(_Values({**values, **data}))}", err=True)

    if prints:
        keyword = inspect.Parameter.KEYWORD_ONLY
        option = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
        parameters = [one.replace(kind=keyword) for one in signature.parameters.values()]
        parameters.append(inspect.Parameter("as_json", keyword, default=False, annotation=option))
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def at_a_terminal() -> bool:
    """Whether a person reads the notes of this process: logs and pipes need no hint of what to type next."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


class _Values(dict[str, Any]):
    """Values of the next command line: quoted for a shell, and the name in capitals where there is none."""

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if name == "first":  # a command line, not a value of one
            return str(value)
        return name.upper() if value is None or isinstance(value, list) else shlex.quote(str(value))
