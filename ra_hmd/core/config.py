"""Settings: pydantic models that are read from YAML files and that report all their problems in one error."""

import dataclasses
import datetime
import difflib
import sysconfig
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.storage import as_path, is_url

S = TypeVar("S", bound="Settings")

Rate = Annotated[float, Field(ge=0, lt=1)]
"""A dropout rate."""

_INCONSISTENT = "inconsistent_settings"
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
"""Expected kind of a value, by the first word of pydantic's error type (`int_parsing`, `string_type`)."""


class Settings(BaseModel):
    """Base class of settings whose fields carry their range and their help (`Field(gt=0, description=...)`).

    Values may be as YAML 1.1 gives them: `1e-4` is a string there, and the word `no` is false. A truth value is no
    number, and a number is no truth value.

    Subclasses that have conditions on several fields override `_problems`.

    Attributes:
        TITLE: Name of the settings in error messages.
        URLS: Names of the fields whose paths may be URLs of object stores (`ra_hmd.core.storage`).

    Raises:
        UserError: unknown and missing keys, values of another type or out of range, and fields that contradict each
            other, all listed together.
    """

    TITLE: ClassVar[str] = "given"
    URLS: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, /, **values: Any) -> None:
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as error:
            _raise(type(self), values, error, "")

    # Tells pydantic that this validates as its own __init__ does, so that nested settings report each problem.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed, validated like a new instance."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def _problems(self) -> Iterator[str]:
        """Yield one sentence for each contradiction between fields; each field by itself is within its range."""
        yield from ()

    @field_validator("*", mode="before")
    @classmethod
    def _from_yaml(cls, value: Any, info: ValidationInfo) -> Any:
        accepted = set(_members(cls.model_fields[str(info.field_name)].annotation))
        if value is False and "no" in accepted:
            return "no"
        if isinstance(value, bool) and bool not in accepted and accepted & {int, float}:
            raise ValueError(f"{value!r} is not a number")
        if isinstance(value, int | float | str) and bool in accepted and not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false")
        if Path in accepted and is_url(value):
            if info.field_name not in cls.URLS:
                raise ValueError(f"{value} is in an object store, and a path of this machine is needed; copy it here")
            return as_path(value)
        return str(value) if Path in accepted and isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise PydanticCustomError(_INCONSISTENT, "contradicting settings", {"problems": problems})
        return self


def load_settings(cls: type[S], values: Mapping[str, Any], place: str | Path) -> S:
    """Build settings from a mapping that was read at `place` (a file name, for the messages).

    Raises:
        UserError: see `Settings`; each problem is named with its place.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        return _raise(cls, values, error, f"{place}: ")


def validate_fields(instance: Any, names: Iterable[str]) -> tuple[list[str], set[str]]:
    """Validate fields of a dataclass in place, as `Settings` validates its own; for parsers that need dataclasses.

    Ranges stand in the annotations (`Annotated[float, Field(gt=0)]`). An invalid field is set to its default, so that
    conditions on several fields can still be checked.

    Returns:
        One sentence per problem, and the names of the invalid fields.
    """
    hints = typing.get_type_hints(type(instance), include_extras=True)
    fields = {item.name: item for item in dataclasses.fields(instance)}
    given: dict[str, Any] = {name: (hints[name], _default(fields[name])) for name in names}
    model = create_model("Fields", __base__=Settings, **given)
    values = {name: getattr(instance, name) for name in names}
    problems: list[str] = []
    invalid: set[str] = set()
    try:
        valid = model.model_validate(values)
    except ValidationError as error:
        problems, invalid = _problems_of(model, error)
        valid = model.model_validate({name: value for name, value in values.items() if name not in invalid})
    for name in names:
        setattr(instance, name, getattr(valid, name))
    return problems, invalid


def _default(field: dataclasses.Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else Field(default_factory=factory)


def _problems_of(cls: type[BaseModel], error: ValidationError) -> tuple[list[str], set[str]]:
    """One sentence per problem that pydantic found, and the names of the fields with one."""
    details = error.errors(include_url=False)
    problems = [text for detail in details for text in _sentences(cls, detail)]
    return problems, {str(detail["loc"][0]) for detail in details if detail["loc"]}


def _raise(cls: type[S], values: Mapping[str, Any], error: ValidationError, prefix: str) -> Any:
    """Raise a `UserError` of all problems, those between fields included.

    Pydantic checks conditions on several fields only where each field is valid. So that one error names them all, they
    are checked once more with the defaults in place of the invalid values; what they say of such a field is left out.
    """
    problems, invalid = _problems_of(cls, error)
    if invalid:
        try:
            cls.model_validate({name: value for name, value in values.items() if name not in invalid})
        except ValidationError as second:
            if second.errors()[0]["type"] == _INCONSISTENT:
                problems += without(_problems_of(cls, second)[0], invalid)
    raise_all([prefix + text for text in problems], f"The {cls.TITLE} configuration does not fit")


def without(problems: Iterable[str], invalid: Iterable[str]) -> list[str]:
    """Those of `problems` that name no key of `invalid`, whose own problems are known already."""
    return [text for text in problems if not any(f"`{name}`" in text for name in invalid)]


def _sentences(cls: type[BaseModel], detail: ErrorDetails) -> list[str]:
    """One problem that pydantic found, in words: its key, its value and what is allowed."""
    kind, path, value = detail["type"], detail["loc"], detail["input"]
    if kind == _INCONSISTENT:
        return [f"`{_dotted(path)}`: {text}" if path else text for text in detail["ctx"]["problems"]]
    if kind == "extra_forbidden":
        models = [one for one in _members(_annotation(cls, path[:-1])) if isinstance(one, type)]
        known = [name for one in models if issubclass(one, BaseModel) for name in one.model_fields]
        [text] = unknown_keys([str(path[-1])], known)
        return [f"`{_dotted(path[:-1])}`: {text}" if path[1:] else text]
    name = f"`{_dotted(path)}`"
    if kind == "missing":
        return [f"{name} is missing: {_description(cls, path) or 'it has no default'}"]
    limits = _limits(_annotation(cls, path))
    if kind.startswith(("greater_than", "less_than")) and limits:
        return [f"{name} is {value!r}, it must {_range(limits)}."]
    if kind == "literal_error":
        choices = ", ".join(repr(one) for one in _members(_annotation(cls, path)) if isinstance(one, str))
        return [f"{name}: {value!r} is not one of {choices}{quotes_hint(value)}."]
    if kind == "value_error":
        return [f"{name}: {str(detail['ctx']['error']).rstrip('.')}."]
    expected = _EXPECTED.get(kind.partition("_")[0])
    if expected is not None:
        return [f"{name}: {value!r} is not {expected}{quotes_hint(value) if expected == 'text' else ''}."]
    return [f"{name} is {value!r}: {detail['msg']}."]


def _dotted(path: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in path)


def _annotation(cls: type[BaseModel], path: Sequence[int | str]) -> Any:
    """Type of the value at `path`, with the ranges of its field; keys of mappings and places of lists are passed by."""
    found: Any = cls
    for part in path:
        models = [one for one in _members(found) if isinstance(one, type) and issubclass(one, BaseModel)]
        for name, field in ((name, field) for one in models for name, field in one.model_fields.items()):
            if part in (name, field.alias):
                found = typing.Annotated[(field.annotation, *field.metadata, field)]
    return found


def _description(cls: type[BaseModel], path: Sequence[int | str]) -> str | None:
    return getattr(typing.get_args(_annotation(cls, path))[-1], "description", None)


def _members(annotation: Any) -> Iterator[Any]:
    """The types and literal values that an annotation is made of."""
    arguments = typing.get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments[:1] if typing.get_origin(annotation) is typing.Annotated else arguments:
        yield from _members(argument)


def _limits(annotation: Any) -> dict[str, Any]:
    """The bounds (`gt`, `ge`, `lt`, `le`) in an annotation, wherever they stand in it."""
    found = {name: getattr(annotation, name) for name in ("gt", "ge", "lt", "le") if hasattr(annotation, name)}
    for part in (*typing.get_args(annotation), *getattr(annotation, "metadata", ())):
        found |= _limits(part)
    return found


def _range(limits: Mapping[str, Any]) -> str:
    if len(limits) == 2:
        low = f"[{limits['ge']}" if "ge" in limits else f"({limits['gt']}"
        return f"lie in {low}, {limits['le']}]" if "le" in limits else f"lie in {low}, {limits['lt']})"
    words = {"gt": "be above", "ge": "be at least", "lt": "be below", "le": "be at most"}
    return " and ".join(f"{words[name]} {bound}" for name, bound in limits.items())


def quotes_hint(value: Any) -> str:
    """Return the advice to quote a word that YAML read as another type; "" for text."""
    kinds = {bool: "yes, no, on and off as true and false", int: "digits as a number", float: "digits as a number"}
    kinds |= {datetime.date: "2026-01-31 as a date", datetime.datetime: "2026-01-31 as a date"}
    kind = kinds.get(type(value), "nothing, ~ and null as no value" if value is None else "")
    return f"; YAML reads {kind}: put the text in quotes" if kind else ""


def unknown_keys(given: typing.Iterable[str], known: typing.Iterable[str]) -> list[str]:
    """One sentence for each key of `given` that is not in `known`, with the nearest known key."""
    known = sorted(known)
    problems = []
    for key in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}."
        problems.append(f"unknown key `{key}`; {hint}")
    return problems


def load_yaml(cls: type[S], path: str | Path, overrides: Sequence[str]) -> S:
    """Read YAML file `path`, apply `key=value` overrides, and build settings of class `cls` from the result.

    Raises:
        UserError: no such file, no YAML in UTF-8, or values that do not fit.
    """
    return load_settings(cls, read_yaml(path, overrides), path)


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the mapping of YAML file `path`, and apply `key=value` overrides.

    Args:
        path: The file. A path that begins with `configs/` and is not in the working directory is one of the files that
            come with the package.
        overrides: `key=value`.

    Raises:
        UserError: no such file, or no mapping in YAML in UTF-8.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = shipped_config(path)
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
        config = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join([str(path), *overrides])}: {error}") from error
    return values


def shipped_configs() -> list[Path]:
    """Where the YAML files that come with the package can lie: in the checkout, or where the wheel installed them."""
    return [Path(__file__).parents[2] / "configs", Path(sysconfig.get_path("data")) / "share" / "ra-hmd" / "configs"]


def shipped_config(path: str | Path) -> Path:
    """The file `path` or, where there is none and its name begins with `configs/`, the shipped file of that name."""
    path = Path(path)
    if path.parts[:1] == ("configs",) and not path.exists():
        inside = Path(*path.parts[1:])
        return next((place / inside for place in shipped_configs() if (place / inside).is_file()), path)
    return path


def choose(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `UserError` unless `value`, given as `name`, is one of `known`."""
    if value not in known:
        raise UserError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}.")


def first_problem(error: ValueError) -> str:
    """First problem that pydantic reports, without the input."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
