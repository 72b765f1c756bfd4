"""`ra-hmd push`: a trained system for the Hugging Face hub."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli.finish import Outcome
from ra_hmd.core.errors import UserError

push_app = typer.Typer()


@push_app.command("push")
def push_command(
    run: Annotated[Path, typer.Argument(help="Stage 1 run, Stage 2 folder, or a head on an encoder.")],
    repo: Annotated[str, typer.Option(help="Repository on the hub: ORG/NAME, or NAME of your own account.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, and upload nothing.")] = False,
    output: Annotated[Path | None, typer.Option(help="The folder; default: outputs/hub/ and the name.")] = None,
    bank: Annotated[
        str | None, typer.Option(help="Example bank that goes along: ids, labels and vectors of its present rows.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Name on the hub of the model underneath, if training had it in a folder.")
    ] = None,
    include_base: Annotated[bool, typer.Option("--include-base", help="Publish a copy of that folder.")] = False,
    report: Annotated[
        list[Path] | None, typer.Option(help="Evaluation of the head, for the card's numbers; several times.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="License, by the hub's name.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language of captions, e.g. en; several times.")] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="Who may see a new repository.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder of an earlier call.")] = False,
) -> Outcome:
    """Write a folder with adapter, head, manifest and model card, and upload it to the Hugging Face hub.

    Weights are safetensors alone; paths of this machine, tokens and keys are taken out of the files. Nothing is
    uploaded before you say yes. `Detector.from_pretrained` opens what was published (docs/cli.md).
    """
    from ra_hmd.cards.render import CardMetadata
    from ra_hmd.hub.publish import publish
    from ra_hmd.hub.upload import upload

    if base_model is not None and include_base:
        raise UserError("--base-model names the model underneath, and --include-base copies it; give one of them.")
    made = publish(
        run,
        output or Path("outputs", "hub", Path(repo).name),
        repo=repo,
        bank=bank,
        base_model=base_model,
        include_base=include_base,
        reports=report or (),
        stated=CardMetadata(title, licence, tuple(language or ())),
        overwrite=overwrite,
    )
    lines = [f"{size:>12,} bytes  {name}" for name, size in made.files.items()]
    summary = f"{made.folder}: {len(lines)} files, {sum(made.files.values()):,} bytes"
    if made.open_questions:
        typer.echo(f"{made.open_questions} lines of {made.folder}/README.md are left TO BE FILLED IN.", err=True)
    url = None
    if not dry_run:
        if not yes:
            _ask("\n".join([*lines, summary]), repo, "public" if public else "private")
        url = upload(made.folder, repo, private=not public)
    data = {"folder": made.folder, "repo": repo, "uploaded": url, "files": made.files}
    return Outcome(data | {"open_questions": made.open_questions}, [*lines, summary, *([url] if url else [])])


def _ask(listing: str, repo: str, kind: str) -> None:
    """Ask whether to upload. Raises `UserError` where nobody can answer, or the answer is no."""
    if not sys.stdin.isatty():
        raise UserError(f"Nothing was uploaded to {repo}: look at the folder (--dry-run), then give --yes.")
    typer.echo(listing, err=True)
    if not typer.confirm(f"Upload these files to {repo} ({kind} if it is new)?", err=True):
        raise UserError("Nothing was uploaded.")
