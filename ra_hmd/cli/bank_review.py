"""`ra-hmd bank audit` and `suggest`: what to correct in a bank, and which memes to label for it."""

from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.bank_review.settings import AuditSettings, SuggestSettings
from ra_hmd.cli.bank import Checkpoint
from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import Final, command_line, from_settings, print_notes

bank_review_app = typer.Typer()
ReviewedPlace = Annotated[str, typer.Argument(help="Example bank, or feature store that serves as one.")]


@bank_review_app.command("audit")
@from_settings
def audit_command(
    bank: ReviewedPlace,
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="Folder of audit.json, audit.md and index.html.")],
    settings: AuditSettings,
    memes: Annotated[
        list[Path] | None, typer.Option(help="Data of the memes, for captions and blurred pictures; several times.")
    ] = None,
    final: Final = False,
) -> Outcome:
    """List doubtful labels, copies with different labels, rows without effect, and thin classes. Changes nothing."""
    from ra_hmd.bank_review.audit import audit_bank
    from ra_hmd.bank_review.report import PAGE, check_audit_folder, summary, write_audit
    from ra_hmd.bank_review.reviewed_bank import open_reviewed_bank
    from ra_hmd.inference.meme_lookup import MemeLookup

    check_audit_folder(output)
    lookup = MemeLookup.open(memes) if memes else None
    with open_reviewed_bank(bank, checkpoint, final=final, command=command_line()) as reviewed:
        audit = audit_bank(reviewed, checkpoint, settings, show=True)
        contents = dict(zip(reviewed.table.ids, reviewed.table.contents, strict=True))
    write_audit(audit, output, lookup, contents)
    print_notes([*audit.notes, *(lookup.notes if lookup is not None else [])])
    return Outcome(audit.to_json(), [*summary(audit), output / PAGE])


@bank_review_app.command("suggest")
@from_settings
def suggest_command(
    bank: ReviewedPlace,
    checkpoint: Checkpoint,
    pool: Annotated[Path, typer.Option(help="Feature store of memes without a label.")],
    output: Annotated[Path, typer.Option(help="JSONL file: id, score and uncertainty, the best first.")],
    settings: SuggestSettings,
    final: Final = False,
) -> Outcome:
    """List the memes of a pool whose labels would teach the bank most. Changes nothing."""
    from ra_hmd.bank_review.reviewed_bank import open_reviewed_bank
    from ra_hmd.bank_review.suggestion_files import suggest_from_store

    with open_reviewed_bank(bank, checkpoint, final=final, command=command_line()) as reviewed:
        manifest = suggest_from_store(reviewed, checkpoint, pool, settings, output)
    line = f"{output}: {manifest.suggested} of {manifest.pool_rows} memes; the bank holds {manifest.left_out} of them"
    return Outcome(manifest.to_json(), [line])
