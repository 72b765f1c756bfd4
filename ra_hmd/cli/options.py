"""Options that commands share, and the decorator that makes options of the fields of a settings model."""

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import annotated_types
import typer
from pydantic import Field
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from ra_hmd.core.config import Settings, choose
from ra_hmd.inference.options import DetectorOptions, Flag, VotingOptions

if TYPE_CHECKING:
    from ra_hmd.data.readers.tasks import Task
    from ra_hmd.models.tokenization import InputSettings

C = TypeVar("C", bound=Callable[..., Any])

GROUP: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
"""Arguments of a `typer.Typer` that has commands of its own."""


# Options that take several values at once, and what one of these looks like.
_LIST_OPTIONS = {
    "--shots": r"\d+",
    "--columns": r".+=.+",
    "--labels": r".+=.+",
    "--splits": r"[\w-][\w.-]*",
    **dict.fromkeys(("--families", "--attacks", "--channels", "--targets"), r"[a-z_]+"),
    "--severities": r"[1-3]",
    **dict.fromkeys(("--eps", "--sizes"), r"\d+"),
}


class Lists(TyperCommand):
    """Command whose options take several values at once: `--shots 4 8`, `--columns id=a text=b`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for argument in args:
            name, _, value = argument.partition("=")
            if argument.startswith("--"):
                option = name if name in _LIST_OPTIONS else ""
                spread += [name, value] if option and value else [argument]
            elif option and spread[-1] != option and re.fullmatch(_LIST_OPTIONS[option], argument):
                spread += [option, argument]
            else:
                option = option if spread and spread[-1] == option else ""
                spread.append(argument)
        return super().parse_args(ctx, spread)


@dataclass(frozen=True)
class Without:
    """Marks a parameter whose command has no options for some fields: they keep their defaults."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


def from_settings(command: C) -> C:
    """Replace each parameter of a command that is annotated with a `Settings` class by an option for each field.

    The options have the field's name (or its `Flag`), description, default, and range; choices are checked by the
    settings. The command is called with instances of the settings.

    Example::

        @app.command("predict")
        @from_settings
        def predict_command(checkpoint: Checkpoint, detector: Annotated[DetectorOptions, Without("dtype")]) -> None: ...
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type[Settings], list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        annotation, *marks = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[name], kind=kind))
            continue
        left_out = {field for mark in marks if isinstance(mark, Without) for field in mark.names}
        fields = [field for field in annotation.model_fields if field not in left_out]
        groups[name] = annotation, fields
        parameters += [_option(field, annotation.model_fields[field]) for field in fields]

    def call(**values: Any) -> Any:
        for name, (model, fields) in groups.items():
            given = {field: values.pop(field) for field in fields}
            values[name] = model(**{field: value for field, value in given.items() if value is not None})
        return command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    returned = hints.get("return")
    call.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": returned}
    return call  # type: ignore[return-value]


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The command-line parameter of a field."""
    flag = next((mark.name for mark in field.metadata if isinstance(mark, Flag)), f"--{name.replace('_', '-')}")
    kind, default = _plain(field.annotation), None if field.is_required() else field.get_default()
    settings: dict[str, Any] = {"help": field.description}
    if kind in (int, int | None):  # of numbers with decimals the model checks the range, which may be half open
        settings["min"] = next((mark.ge for mark in field.metadata if isinstance(mark, annotated_types.Ge)), None)
        settings["max"] = next((mark.le for mark in field.metadata if isinstance(mark, annotated_types.Le)), None)
    if get_origin(kind) is list:
        kind, default = kind | None, None
    info = typer.Option(flag, **settings) if flag else typer.Argument(**settings)
    keyword = inspect.Parameter.KEYWORD_ONLY
    if field.is_required():
        return inspect.Parameter(name, keyword, annotation=Annotated[kind, info])
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, info])


def _plain(annotation: Any) -> Any:
    """A type without its choices: `Literal["a", "b"] | None` is `str | None`."""
    if get_origin(annotation) is Literal:
        return str
    if type(None) in get_args(annotation):
        (kind,) = (one for one in get_args(annotation) if one is not type(None))
        return _plain(kind) | None
    return annotation


def shared(model: type[Settings], name: str) -> Any:
    """The annotation of one field of a settings model, for commands that take it alone."""
    return _option(name, model.model_fields[name]).annotation


def checked(option: str, value: Any, kinds: Any) -> Any:
    """Return the value of an option after checking that it is one of a `Literal` type.

    Raises:
        UserError: it is not.
    """
    choose(option, value, get_args(kinds))
    return value


def command_line() -> str:
    """The command line of this process, for manifests."""
    return shlex.join(["ra-hmd", *sys.argv[1:]])


def print_notes(notes: Iterable[str]) -> None:
    """Print notes for the user to standard error."""
    for note in notes:
        typer.echo(note, err=True)


class SourceOptions(Settings):
    """Options of the commands that read memes of a file, a folder or a named data set."""

    TITLE: ClassVar[str] = "data"
    URLS: ClassVar[frozenset[str]] = frozenset({"media_dir"})

    task: str | None = Field(None, description="Imported folder: task that gives the labels.")
    dataset_dir: Path = Field(Path("data"), description="Folder of dataset_info.json.")
    media_dir: Path | None = Field(None, description="Folder that relative image paths start from.")
    limit: int | None = Field(None, ge=1, description="Use the first memes only, as many as this.")

    def labelling(self, data: str) -> "Task | None":
        """The task that gives the labels, if one was chosen."""
        from ra_hmd.data.resolve import imported_task

        return None if self.task is None else imported_task(data, self.task)

    def label_classes(self, data: str) -> int | None:
        """Number of classes where labels are sets of classes."""
        task = self.labelling(data)
        return len(task.classes) if task is not None and task.multi_label else None

    def read(
        self, data: str, split: str, settings: "InputSettings | None" = None, media_dir: str | Path | None = None
    ) -> Any:
        """Memes of a split, and their description for manifests.

        Args:
            data: File, folder, or name of a data set.
            split: The split.
            settings: Prompt and answers of training records; default are the official ones.
            media_dir: Folder that relative image paths start from, where the option is not given.
        """
        from ra_hmd.data.prompt import Answers, PromptTemplate
        from ra_hmd.data.resolve import describe_source, resolve_memes

        prompt = PromptTemplate() if settings is None else settings.prompt
        answers = Answers() if settings is None else settings.expected_answers
        memes = resolve_memes(
            data, split, prompt, answers, self.dataset_dir, self.media_dir or media_dir, task=self.labelling(data)
        )
        return memes, describe_source(data, split, self.task)


Output = Annotated[Path, typer.Option("--output", help="Where to write.")]
Final = Annotated[bool, typer.Option("--final", help="Use test splits; each use is recorded.")]
BootstrapSamples = Annotated[int, typer.Option(min=100, help="Resamples behind each interval.")]
Precision = Annotated[str, typer.Option(help="Precision: auto, float32, bfloat16 or float16.")]
TopK = shared(VotingOptions, "topk")
Weights = shared(VotingOptions, "weights")
Thresholds = shared(DetectorOptions, "thresholds")
