"""Dataclass configuration: every problem is found at once and told in words."""

import dataclasses
import datetime
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ra_hmd.core.errors import UserError, raise_all

T = TypeVar("T")


def number(value: Any) -> float:
    """`value` as a float. YAML 1.1 reads `1e-4` (no dot) as a string: such strings are accepted."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def coerce(value: Any, kind: Any) -> Any:
    """`value` as type `kind` (int, float, bool, str, Path, list, tuple, Literal, a dataclass, Optional of these).

    Raises:
        ValueError: the value does not fit; the message says what was expected.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return coerce(value, next(arg for arg in args if arg is not type(None)))
    if origin is typing.Literal:
        if value is False and "no" in args:
            return "no"  # which YAML 1.1 reads as false
        if value not in args:
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, args))}{quotes_hint(value)}")
        return value
    if origin in (list, tuple):
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError(f"{value!r} is not a list")
        return origin(coerce(item, args[0]) for item in value)
    return _coerce_one(value, kind)


def _coerce_one(value: Any, kind: Any) -> Any:
    """`coerce` of what is no collection."""
    if dataclasses.is_dataclass(kind) and not isinstance(value, kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not a mapping")
        return load_dataclass(kind, value, kind.__name__)
    if kind is float:
        return number(value)
    if kind is int:
        if number(value) != int(number(value)):
            raise ValueError(f"{value!r} is not a whole number")
        return int(number(value))
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    if kind is Path:
        return Path(str(value))
    if kind is str and not isinstance(value, str):
        raise ValueError(f"{value!r} is not text{quotes_hint(value)}")
    return value


def quotes_hint(value: Any) -> str:
    """What to do where YAML made something else of a word; "" of text."""
    kinds = {bool: "yes, no, on and off as true and false", int: "digits as a number", float: "digits as a number"}
    kinds |= {datetime.date: "2026-01-31 as a date", datetime.datetime: "2026-01-31 as a date"}
    kind = kinds.get(type(value), "nothing, ~ and null as no value" if value is None else "")
    return f"; YAML reads {kind}: put the text in quotes" if kind else ""


def coerce_fields(instance: Any, names: typing.Iterable[str], place: str) -> list[str]:
    """Coerce the named fields of a dataclass in place; return one sentence for each that does not fit."""
    hints = typing.get_type_hints(type(instance))
    problems = []
    for name in names:
        try:
            object.__setattr__(instance, name, coerce(getattr(instance, name), hints[name]))
        except ValueError as error:
            problems.append(f"{place}: `{name}`: {error}.")
    return problems


def unknown_keys(given: typing.Iterable[str], known: typing.Iterable[str]) -> list[str]:
    """One sentence for each key of `given` that is not in `known`, with the nearest known key."""
    known = sorted(known)
    problems = []
    for key in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}."
        problems.append(f"unknown key `{key}`; {hint}")
    return problems


def load_dataclass(cls: type[T], values: Mapping[str, Any], place: str) -> T:
    """Build dataclass `cls` from a mapping that was read at `place` (a file name, for the messages).

    Raises:
        UserError: unknown or missing keys and values that do not fit, all listed together.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    problems = [f"{place}: {text}" for text in unknown_keys(values, fields)]
    kwargs: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            try:
                kwargs[name] = coerce(values[name], hints[name])
            except ValueError as error:
                problems.append(f"{place}: `{name}`: {error}.")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{place}: `{name}` is missing: {field.metadata.get('help', 'it has no default')}")
    raise_all(problems, "The configuration does not fit")
    return cls(**kwargs)


def load_yaml(cls: type[T], path: str | Path, overrides: list[str]) -> T:
    """Read YAML file `path`, apply `key=value` overrides, and build `cls` from the result.

    Raises:
        UserError: no such file, no YAML in UTF-8, or values that do not fit.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a YAML file.")
    bad = [item for item in overrides if "=" not in item]
    if bad:
        raise UserError(f"{bad[0]!r} is not an override; write key=value.")
    try:
        loaded = OmegaConf.load(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8.") from error
    except (yaml.YAMLError, OSError) as error:  # OSError: a file that holds a text or a number
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path} holds a list; lines such as `key: value` are needed.")
    try:
        config = OmegaConf.merge(loaded, OmegaConf.from_dotlist(overrides))
        values = OmegaConf.to_container(config, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join([str(path), *overrides])}: {error}") from error
    return load_dataclass(cls, values, str(path))


def choose(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `UserError` unless `value`, given as `name`, is one of `known`."""
    if value not in known:
        raise UserError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}.")
