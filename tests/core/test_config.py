"""Settings models: values as YAML gives them, and every problem in one error with its key, value, range and file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, PositiveInt

from ra_hmd.core.config import Settings, load_settings, load_yaml, read_yaml
from ra_hmd.core.errors import UserError

Rate = Annotated[float, Field(ge=0, lt=1)]


class Part(Settings):
    size: int = Field(default=1, ge=1, description="How large the part is.")
    kind: Literal["p", "q"] = "p"


class Whole(Settings):
    TITLE: ClassVar[str] = "whole"

    train: Path = Field(description="Store of the training split.")
    lr: float = Field(default=1e-4, gt=0)
    topk: PositiveInt = 20
    precision: Literal["no", "bf16"] = "no"
    dropout: tuple[Rate, ...] | None = None
    weight: float | None = Field(default=None, ge=0, le=2)
    flag: bool = True
    name: str | None = None
    part: Part | None = None
    parts: dict[str, Part] = Field(default_factory=dict)

    def _problems(self) -> Iterator[str]:
        if self.flag and self.name:
            yield "`flag` and `name` contradict each other."
        if self.topk > 5 and self.name:
            yield "`topk` is too large for a `name`."


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"lr": "1e-3"}, "lr", 1e-3),
        ({"topk": "3"}, "topk", 3),
        ({"topk": 3.0}, "topk", 3),
        ({"train": 7}, "train", Path("7")),
        ({"precision": False}, "precision", "no"),
        ({"dropout": [0.1, 0]}, "dropout", (0.1, 0.0)),
        ({"part": {"size": 2}}, "part", Part(size=2)),
        ({"parts": {"x": {"kind": "q"}}}, "parts", {"x": Part(kind="q")}),
        ({"weight": None}, "weight", None),
    ],
    ids=str,
)
def test_values_as_yaml_gives_them(given: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(Whole(**{"train": "a"} | given), name) == value


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"train": None}, [["`train`", "None"]]),
        ({"lr": -1, "topk": 0}, [["`lr`", "-1", "above 0"], ["`topk`", "0", "above 0"]]),
        ({"lr": float("nan")}, [["`lr`", "nan", "above 0"]]),
        ({"lr": "fast"}, [["`lr`", "'fast'", "number"]]),
        ({"lr": True}, [["`lr`", "True", "number"]]),
        ({"topk": 2.5}, [["`topk`", "2.5", "whole number"]]),
        ({"topk": "two"}, [["`topk`", "'two'", "whole number"]]),
        ({"weight": 3}, [["`weight`", "3", "[0, 2]"]]),
        ({"dropout": [0.5, 1]}, [["`dropout.1`", "1", "[0, 1)"]]),
        ({"dropout": "0.5"}, [["`dropout`", "'0.5'", "list"]]),
        ({"precision": "fp8"}, [["`precision`", "'fp8'", "'no', 'bf16'"]]),
        ({"flag": "yes"}, [["`flag`", "'yes'", "true or false"]]),
        ({"name": 3}, [["`name`", "3", "text", "quotes"]]),
        ({"lrr": 1}, [["`lrr`", "did you mean `lr`"]]),
        ({"wholly": 1}, [["`wholly`", "known keys", "topk"]]),
        ({"part": {"size": 0, "knd": "p"}}, [["`part.size`", "0", "at least 1"], ["`part`", "`knd`", "`kind`"]]),
        ({"part": 3, "parts": []}, [["`part`", "3", "mapping"], ["`parts`", "[]", "mapping"]]),
        ({"parts": {"x": {"kind": "z"}}}, [["`parts.x.kind`", "'z'", "'p', 'q'"]]),
        ({"lr": 0, "name": "n"}, [["`lr`"], ["`flag` and `name`"], ["`topk` is too large"]]),
        ({"topk": 0, "name": "n"}, [["`topk`", "above 0"], ["`flag` and `name`"]]),
    ],
    ids=str,
)
def test_every_problem_is_named_with_key_value_range_and_file(given: dict[str, Any], named: list[list[str]]) -> None:
    with pytest.raises(UserError) as error:
        load_settings(Whole, {"train": "a"} | given, "x.yaml")
    heading, *problems = str(error.value).splitlines()
    assert "whole" in heading
    assert len(problems) == len(named)
    for words in named:
        assert any(all(word in problem for word in ("x.yaml", *words)) for problem in problems), words


def test_a_missing_key_is_named_with_its_description() -> None:
    with pytest.raises(UserError, match=r"`train` is missing: Store of the training split."):
        Whole(lr=1)


def test_a_changed_copy_is_validated() -> None:
    whole = Whole(train="a", topk=3)
    assert (whole.replace(lr=1).lr, whole.replace(lr=1).topk, whole.lr) == (1, 3, 1e-4)
    with pytest.raises(UserError, match="`lr` is -1"):
        whole.replace(lr=-1)


def test_a_yaml_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text("train: a\npart:\n  size: 2\nlr: 1e-3\n")
    settings = load_yaml(Whole, path, ["part.kind=q", "topk=4", "weight=null"])
    assert settings == Whole(train="a", part=Part(size=2, kind="q"), lr=1e-3, topk=4)
    with pytest.raises(UserError) as error:
        load_yaml(Whole, path, ["part.size=0", "topc=4"])
    for words in (str(path), "`part.size` is 0", "did you mean `topk`?"):
        assert words in str(error.value)


def test_a_shipped_file_is_found_from_any_folder_unless_there_is_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/rgcl/confounders.yaml"
    assert read_yaml(name)["loss"] == "triplet"
    with pytest.raises(UserError, match=r"configs/rgcl/nothing.yaml does not exist"):
        read_yaml("configs/rgcl/nothing.yaml")
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("loss: mine\n")
    assert read_yaml(name) == {"loss": "mine"}
