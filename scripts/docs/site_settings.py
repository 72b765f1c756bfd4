"""The page of all keys of YAML files, written from the classes that read them."""

import dataclasses
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from llamafactory.hparams import FinetuningArguments
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from site_text import cell, code, table

from llamafactory_ext.arguments import OUR_FIELDS, ClassifierFinetuningArguments
from ra_hmd.experiments.cross_eval.config import CrossEvalArguments
from ra_hmd.experiments.few_shot.config import FewShotSettings
from ra_hmd.experiments.robustness.config import RobustnessSettings
from ra_hmd.training.classification import TrainHeadArguments
from stage2.arguments import Stage2Arguments

UP = "../"
FILES: dict[str, tuple[type[BaseModel], str, str]] = {
    "Stage 2": (Stage2Arguments, "stage2", "stage2.md"),
    "A head on features": (TrainHeadArguments, "train-head", "encoders.md"),
    "Few-shot study": (FewShotSettings, "few-shot", "ssmoe.md"),
    "Cross-evaluation": (CrossEvalArguments, "cross-eval", "studies.md"),
    "Robustness": (RobustnessSettings, "robustness", "robustness.md"),
}
"""Title of each kind of file to the class that reads it, the command that takes it, and the page about it."""

_HEAD = ("key", "value", "default", "meaning")
_KINDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path", dict: "mapping"}
_INTRODUCTION = """# YAML keys

Written from the classes that read the files. An unknown key, a value of another kind and keys that contradict each
other end the command before it starts, all named in one error. `key=value` after the name of the file overrides it.

Commands without a file of their own (`serve`, `console`, …) take `--config FILE.yaml`, whose keys are the command's
options without their dashes: [Commands](commands/index.md).
"""
_STAGE_1 = """## Stage 1

Keys of `stage: sft-classifier`, beside all keys of LLaMA-Factory's `stage: sft`: `llamafactory-cli train FILE.yaml`
([stage1.md](../stage1.md)).
"""


def settings_page() -> str:
    """The page."""
    parts = [_INTRODUCTION, _STAGE_1, table(_HEAD, [_stage1_row(name) for name in OUR_FIELDS])]
    for title, (model, command, page) in FILES.items():
        parts += [f"## {title}", f"`ra-hmd {command} FILE.yaml key=value …` ([{page}](../{page})).", _table(model)]
        parts += [f"### {title}: keys of `{key}`\n\n{_table(one)}" for key, one in _nested(model).items()]
    return "\n\n".join(parts) + "\n"


def _table(model: type[BaseModel]) -> str:
    return table(_HEAD, [_row(info.alias or name, info) for name, info in model.model_fields.items()])


def _nested(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Keys whose values have keys of their own, at any depth, and the class of these."""
    found: dict[str, type[BaseModel]] = {}
    for name, info in model.model_fields.items():
        for one in _leaves(info.annotation):
            if isinstance(one, type) and issubclass(one, BaseModel):
                found |= {name: one} | {f"{name}.{inner}": part for inner, part in _nested(one).items()}
    return found


def _row(name: str, info: FieldInfo) -> tuple[str, ...]:
    default = "required" if info.is_required() else _value(info.get_default(call_default_factory=True))
    return code(name), _kind(info.annotation, info.metadata), default, cell(info.description or "", UP)


def _stage1_row(name: str) -> tuple[str, ...]:
    """The row of a key of Stage 1, which LLaMA-Factory's parser needs in a dataclass."""
    field = ClassifierFinetuningArguments.__dataclass_fields__[name]
    assert name not in FinetuningArguments.__dataclass_fields__
    hint = typing.get_type_hints(ClassifierFinetuningArguments, include_extras=True)[name]
    given = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    meaning = field.metadata["help"].removeprefix("sft-classifier").lstrip(":, ")
    return code(name), _kind(hint, ()), _value(given), cell(meaning, UP)


def _value(value: Any) -> str:
    """A default, as YAML has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, tuple | list):
        return code(f"[{', '.join(map(str, value))}]")
    text = str(value)
    return code(text if len(text) <= 40 else f"{text[:37].rstrip()}…") if text else "none"


def _kind(annotation: Any, marks: Iterable[Any]) -> str:
    """What a value is, and in which range."""
    leaves = list(_leaves(annotation))
    words = dict.fromkeys(
        ", ".join(code("no" if one is False else one) for one in get_args(leaf)) if get_origin(leaf) is Literal
        else "keys" if isinstance(leaf, type) and issubclass(leaf, BaseModel) else _KINDS.get(leaf, "")
        for leaf in leaves
    )  # fmt: skip
    ranges = [text for mark in [*marks, *_marks(annotation)] for text in _range(mark)]
    plural = "list of " if _is_list(annotation) else ""
    return (plural + " or ".join(filter(None, words)) + " " + ", ".join(dict.fromkeys(ranges))).strip()


def _range(mark: Any) -> list[str]:
    signs = {annotated_types.Ge: ("≥", "ge"), annotated_types.Gt: ("&gt;", "gt"),
             annotated_types.Le: ("≤", "le"), annotated_types.Lt: ("&lt;", "lt")}  # fmt: skip
    if type(mark) in signs:
        sign, name = signs[type(mark)]
        return [f"{sign} {getattr(mark, name)}"]
    return [text for one in getattr(mark, "metadata", ()) for text in _range(one)]


def _marks(annotation: Any) -> list[Any]:
    """Ranges that stand in a type."""
    inner = get_args(annotation) if get_origin(annotation) is not Literal else ()
    return [*getattr(annotation, "__metadata__", ()), *(mark for part in inner for mark in _marks(part))]


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return any(_is_list(part) for part in get_args(annotation))
    return get_origin(annotation) in (tuple, list)


def _leaves(annotation: Any) -> Iterable[Any]:
    """The types that a type is made of; of a mapping the mapping itself, and the models among its values."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return list(_leaves(parts[0]))
    if origin is dict:
        return [dict, *(one for one in _leaves(parts[1]) if isinstance(one, type) and issubclass(one, BaseModel))]
    if origin in (Union, types.UnionType, tuple, list):
        return [leaf for part in parts if part not in (type(None), ...) for leaf in _leaves(part)]
    return [annotation]
