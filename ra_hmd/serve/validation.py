"""The problems that pydantic finds in a request, in words of JSON: a JSON pointer to each value and what it must be.

Pydantic's own places and messages name its types and validators, which clients cannot know.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ra_hmd.data.text import well_formed

_MOST = 20
_MUST_BE = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text",
    "list": "must be a list",
    "dict": "must be an object",
    "model": "must be an object",
}
"""What a value must be, by the first word of pydantic's error type (`int_parsing`, `string_type`)."""
_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is missing",
    "extra_forbidden": lambda _: "is no field of this request",
    "greater_than_equal": lambda limit: f"must be at least {limit['ge']}",
    "less_than_equal": lambda limit: f"must be at most {limit['le']}",
    "too_short": lambda limit: f"must have at least {limit['min_length']} items, not {limit['actual_length']}",
    "too_long": lambda limit: f"must have at most {limit['max_length']} items",
    "string_too_short": lambda limit: f"must have at least {limit['min_length']} characters",
    "string_too_long": lambda limit: f"must have at most {limit['max_length']} characters",
    "string_pattern_mismatch": lambda limit: f"must match the pattern {limit['pattern']}",
    "literal_error": lambda limit: f"must be {limit['expected']}",
    "union_tag_invalid": lambda limit: f"must have one of the types {limit['expected_tags']}",
    "union_tag_not_found": lambda _: "must be an object with a type",
    "value_error": lambda limit: str(limit["error"]),
}


class RequestProblem(BaseModel):
    """One thing that is wrong with a request."""

    __qualname__ = "Wrong"  # its public name, see `ra_hmd.serve.schemas`
    model_config = ConfigDict(title="Wrong")

    where: str = Field(description="The value, with dots: memes.0.image.")
    what: str = Field(description="What it must be.")
    pointer: str | None = Field(default=None, description="The value as a JSON pointer into the body (RFC 6901).")
    parameter: str | None = Field(default=None, description="The parameter of the address.")


def body_problem(where: str, what: str) -> RequestProblem:
    """A problem of a value of the body, by the name of its field; `body` is the body as a whole."""
    parts = [] if where == "body" else [where]
    return RequestProblem(where=well_formed(where), what=what, pointer=to_pointer(parts))


def validation_problems(error: ValidationError, body: Any) -> list[RequestProblem]:
    """Problems of a body, without its values: they may be private.

    Args:
        error: What pydantic found.
        body: The parsed body.
    """
    found: dict[str, RequestProblem] = {}
    for one in error.errors():
        parts = _path(one["loc"], body, missing=one["type"] == "missing")
        pointer = to_pointer(parts)
        where = well_formed(".".join(map(str, parts))) or "body"
        found.setdefault(pointer, RequestProblem(where=where, what=_words(one), pointer=pointer))
    return list(found.values())[:_MOST]


def parameter_problems(errors: Sequence[Any]) -> list[RequestProblem]:
    """Problems of the parameters of an address."""
    return [
        RequestProblem(where=".".join(map(str, one["loc"])), what=_words(one), parameter=str(one["loc"][-1]))
        for one in errors[:_MOST]
    ]


def to_pointer(parts: Sequence[str | int]) -> str:
    """JSON pointer of a path; the empty text is the whole body. Surrogates, which JSON in UTF-8 cannot hold, become
    question marks.
    """
    return "".join("/" + well_formed(str(part)).replace("~", "~0").replace("/", "~1") for part in parts)


def _path(place: Sequence[str | int], body: Any, *, missing: bool) -> list[str | int]:
    """Path of a value in the body: of pydantic's place, without the names of types and validators between its keys."""
    parts: list[str | int] = []
    value = body
    for part in place:
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            value = value[part]
            parts.append(part)
    return [*parts, place[-1]] if missing else parts


def _words(error: Any) -> str:
    kind = error["type"]
    if kind in _WORDS:
        return _WORDS[kind](error.get("ctx", {}))
    return _MUST_BE.get(kind.partition("_")[0], "cannot be used")
