"""`--config FILE`: the options of a command from a YAML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ra_hmd.core.config import read_yaml, unknown_keys
from ra_hmd.core.errors import raise_all


def _apply(context: typer.Context, file: Path | None) -> Path | None:
    """Make the values of the file the defaults of the command: options on the command line go before them."""
    if file is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **read_options(file, context.command.params)}
    return file


def read_options(file: Path, parameters: Sequence[Any]) -> dict[str, Any]:
    """Read a file of options.

    Args:
        file: YAML file. A key is the name of an option without its dashes, or of an argument; within a key, `-` and
            `_` are the same.
        parameters: Parameters of the command.

    Returns:
        Name of each parameter to its value.

    Raises:
        UserError: no such file, unknown keys, and values of another kind, all listed together.
    """
    known = {_key(parameter): parameter for parameter in parameters if _key(parameter) not in ("help", "config")}
    values = {str(key).replace("-", "_"): value for key, value in read_yaml(file).items()}
    problems = [f"{file}: {problem}" for problem in unknown_keys(values, known)]
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in known and value is not None:
            parameter = known[key]
            problem = _problem(parameter, value)
            problems += [f"{file}: `{key}`: {value!r} {problem}"] if problem else []
            found[str(parameter.name)] = [str(one) for one in value] if isinstance(value, list) else value
    raise_all(problems, "The options do not fit")
    return found


def _key(parameter: Any) -> str:
    """Key of a parameter: its longest name, without dashes before it."""
    return str(max(parameter.opts, key=len)).lstrip("-").replace("-", "_")


def _problem(parameter: Any, value: Any) -> str:
    """What is wrong with the kind of a value; the command's own types check the rest."""
    flag = bool(getattr(parameter, "is_flag", False))
    if parameter.multiple and not isinstance(value, list):
        return "is no list; write one value a line, each after a dash."
    if not parameter.multiple and isinstance(value, list | Mapping):
        return "is not a single value."
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, bool) != flag or isinstance(part, Mapping) for part in parts):
        return "is not true or false." if flag else "is no text or number; put words such as yes and no in quotes."
    return ""


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_apply,
        is_eager=True,
        help="YAML file of these options, such as `max-batch: 16`; those on the command line go before it.",
    ),
]
