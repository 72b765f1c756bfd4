"""`ra-hmd init`: a new project from five answers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ra_hmd.cli.finish import Outcome

init_app = typer.Typer()


@init_app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the project; new or empty.")] = Path("project"),
    data: Annotated[str | None, typer.Option(help="Data set with a recipe, or generic: files of your own.")] = None,
    source: Annotated[str | None, typer.Option(help="Folder that it was unpacked to; generic: also a file.")] = None,
    model: Annotated[str | None, typer.Option(help="LMM, such as qwen2_vl_7b; or encoder: clip-vit-l-14-336.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of this machine to train on; 0: none.")] = None,
    report_to: Annotated[str | None, typer.Option(help="none, tensorboard, wandb, mlflow or swanlab.")] = None,
    model_path: Annotated[str | None, typer.Option(help="Folder of the model's weights; default: the hub's.")] = None,
    four_bit: Annotated[bool, typer.Option("--four-bit/--sixteen-bit", help="Weights of an LMM in training.")] = True,
) -> Outcome:
    """Write the YAML files of a new project, and its commands in order. Five questions; what options answer is not
    asked.
    """
    from ra_hmd.experiments.project import STEPS, ProjectSettings, data_names, make_project, model_names

    def ask(value: Any, question: str, default: Any) -> Any:
        return typer.prompt(question, default=default, err=True) if value is None else value

    data = ask(data, f"Data set ({', '.join(data_names())})", "hateful_memes")
    source = ask(source, "Where it lies", f"downloads/{data}")
    model = ask(model, f"Model: LMM or encoder ({', '.join(model_names())})", "qwen2_vl_7b")
    gpus = ask(gpus, "GPUs of this machine to train on", 1)
    report_to = ask(report_to, "Report curves to (none, tensorboard, wandb, mlflow, swanlab)", "none")
    answers: dict[str, Any] = {"data": data, "source": source, "model": model, "gpus": gpus, "report_to": report_to}
    commands = make_project(folder, ProjectSettings(**answers, model_path=model_path, four_bit=four_bit))
    files = sorted(path.name for path in folder.iterdir())
    written = [f"{folder / name}" for name in files]
    result = {"folder": folder, "files": files, "commands": commands, "first": commands[0]}
    return Outcome(result, [*written, f"All commands, in order: {folder / STEPS}"])
