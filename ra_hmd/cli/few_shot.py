"""Commands of few-shot detection by experts: `few-shot`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli import options as o

few_shot_app = typer.Typer()


@few_shot_app.command("few-shot")
def few_shot_command(
    config: Annotated[Path, typer.Argument(help="YAML file: data, recipe, clusters, guidance, arms (docs/ssmoe.md).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    final: o.Final = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print the commands without a run.")] = False,
) -> None:
    """Compare SSMoE with its baselines on K labelled memes of each class, under one recipe. Can be resumed."""
    from ra_hmd.core.config import load_yaml
    from ra_hmd.experiments.few_shot.config import FewShotSettings
    from ra_hmd.experiments.few_shot.run import plan_few_shot, run_few_shot

    settings = load_yaml(FewShotSettings, config, overrides or [])
    if dry_run:
        plan_few_shot(settings)
        return
    words = ["ra-hmd", "few-shot", str(config), *(overrides or []), *(["--final"] if final else [])]
    run_few_shot(settings, final=final, command=shlex.join(words))
