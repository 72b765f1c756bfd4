"""The sentences that zero-shot classification compares memes with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ra_hmd.core.config import quotes_hint
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem, ProblemType

POSITIVE = ("a hateful meme", "an offensive meme")
NEGATIVE = ("a harmless meme", "a friendly meme")
"""Default prompts of the binary case. They name no group, topic or data set. Which sentences serve best was not
measured."""

_SHAPES = (
    "Write `positive` and `negative` (binary), `classes: {name: sentences, …}` in the order of their indices (one of "
    "C), or `labels: {name: {positive: sentences, negative: sentences}, …}` (any of C)"
)


@dataclass(frozen=True)
class Prompts:
    """The sentences of each output of a head.

    Attributes:
        problem: What the outputs mean.
        names: C names of the outputs.
        positive: C lists of sentences: a meme's likeness to their mean speaks for the output.
        negative: C lists that speak against it; of `single_label`, whose classes compete, C empty ones.
    """

    problem: Problem
    names: tuple[str, ...]
    positive: tuple[tuple[str, ...], ...]
    negative: tuple[tuple[str, ...], ...]

    @classmethod
    def binary(cls, positive: Sequence[str] = POSITIVE, negative: Sequence[str] = NEGATIVE) -> "Prompts":
        """Class 1 against class 0.

        Raises:
            UserError: one side has no sentence, or an empty one.
        """
        return cls.parse({"positive": list(positive), "negative": list(negative)}, "the options")

    @classmethod
    def read(cls, path: str | Path) -> "Prompts":
        """From a YAML file: see `parse`."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path} does not exist; give a YAML file. {_SHAPES}.")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid YAML: {error}") from error
        return cls.parse(values, str(path))

    @classmethod
    def parse(cls, values: Any, place: str) -> "Prompts":
        """From a mapping in one of three shapes; a single sentence need not be a list.

        Args:
            values: `{positive, negative}`: binary. `{classes: {name: sentences}}`: one of C classes, in the order of
                their indices. `{labels: {name: {positive, negative}}}`: any of C.
            place: Where it was read, for messages.

        Raises:
            UserError: another shape, one class only, or an output without a sentence on each side.
        """
        if not isinstance(values, Mapping) or set(values) not in ({"positive", "negative"}, {"classes"}, {"labels"}):
            found = f"has {', '.join(map(str, values))}" if isinstance(values, Mapping) else "is no mapping"
            raise UserError(f"{place} {found}. {_SHAPES}.")
        problems: list[str] = []
        kind: ProblemType
        pairs: list[tuple[tuple[str, ...], tuple[str, ...]]]
        if "classes" in values:
            classes = _mapping(values["classes"], "classes", place)
            if len(classes) == 1:
                problems.append("`classes` has one class; to tell it from all else write `positive` and `negative`.")
            sentences = tuple(_sentences(value, f"classes.{name}", problems) for name, value in classes.items())
            kind, names, pairs = "single_label", classes, [(each, ()) for each in sentences]
        else:
            labels = _mapping(values["labels"], "labels", place) if "labels" in values else {"positive": values}
            pairs = [_pair(value, f"labels.{name}" if "labels" in values else "", problems)
                     for name, value in labels.items()]  # fmt: skip
            kind, names = "multi_label" if "labels" in values else "binary", labels
        # 1 is a name like any other; what YAML makes of yes or of a day is another name than the one written there.
        problems += [f"`{name!r}` is no name of a class{quotes_hint(name)}." for name in names
                     if not isinstance(name, str) and type(name) is not int]  # fmt: skip
        raise_all(problems, f"{place}: prompts that cannot be used")
        positive, negative = zip(*pairs, strict=True)
        return cls(Problem(kind, len(names)), tuple(map(str, names)), positive, negative)

    def sentences(self) -> list[str]:
        """All of them, each once."""
        groups = [*self.positive, *self.negative]
        return list(dict.fromkeys(sentence for group in groups for sentence in group))

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, in the shape of `parse`."""
        if self.problem.kind == "single_label":
            return {"classes": {name: list(each) for name, each in zip(self.names, self.positive, strict=True)}}
        pairs = [{"positive": list(yes), "negative": list(no)}
                 for yes, no in zip(self.positive, self.negative, strict=True)]  # fmt: skip
        return pairs[0] if self.problem.kind == "binary" else {"labels": dict(zip(self.names, pairs, strict=True))}


def _mapping(value: Any, key: str, place: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{place}: `{key}` is {value!r}. {_SHAPES}.")
    return value


def _pair(value: Any, place: str, problems: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not isinstance(value, Mapping) or set(value) != {"positive", "negative"}:
        problems.append(f"`{place}` needs `positive` and `negative`.")
        return (), ()
    dot = "." if place else ""
    positive, negative = (_sentences(value[side], f"{place}{dot}{side}", problems) for side in ("positive", "negative"))
    return positive, negative


def _sentences(value: Any, place: str, problems: list[str]) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(one, str) and one.strip() for one in given):
        odd = next((one for one in (given if isinstance(given, list) else [given]) if not isinstance(one, str)), "")
        problems.append(f"`{place}` is {value!r}; a sentence, or a list of sentences, is needed{quotes_hint(odd)}.")
        return ()
    return tuple(given)
