"""`ra-hmd bank …`."""

import getpass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import GROUP, Final, checked, command_line, from_settings, print_notes
from ra_hmd.core.errors import UserError
from ra_hmd.inference.options import BankHeadOptions

if TYPE_CHECKING:
    from ra_hmd.bank.bank import Bank
    from ra_hmd.bank.versions import VersionEntry
    from ra_hmd.core.problem import Problem

bank_app = typer.Typer(
    help="The example bank: labelled memes that vote, with a history.",
    **GROUP,
)
Place = Annotated[
    str, typer.Argument(help="Folder, s3://bucket/path, file ….db (Milvus Lite), or http://host:port#name (Milvus).")
]
Checkpoint = Annotated[Path, typer.Option(help="Stage 1 run or Stage 2 folder with the head that embeds.")]
Store = Annotated[Path, typer.Option("--features", help="Feature store of the memes.")]
Queries = Annotated[Path, typer.Option(help="Feature store of the memes to classify.")]
Author = Annotated[str | None, typer.Option(help="Author of the change; default: the login name.")]
ChangeReason = Annotated[str, typer.Option(help="Reason of the change, for the log.")]
MemeSource = Annotated[str | None, typer.Option(help="Origin of the memes; default: the store's path.")]
Note = Annotated[str, typer.Option(help="Note that is kept with every row.")]
Decided = Annotated[
    bool,
    typer.Option(
        "--decided/--examples",
        help="Whether people labelled these memes: identical memes then get their labels. Examples only vote.",
    ),
]
IdenticalRows = Annotated[
    bool,
    typer.Option("--relabel-identical", help="Rows with the same image and caption get the new label too."),
]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for other processes.")]
Lock = Annotated[Path | None, typer.Option(help="Milvus cluster: the writers' lock file; or RA_HMD_MILVUS_LOCK.")]
Token = Annotated[str | None, typer.Option(help="Milvus cluster: user:password or key; better in RA_HMD_MILVUS_TOKEN.")]


@bank_app.command("create")
def create_command(
    bank: Place,
    checkpoint: Checkpoint,
    features: Store,
    reason: ChangeReason = "created",
    author: Author = None,
    backend: Annotated[str | None, typer.Option(help="faiss or milvus; default: as BANK looks.")] = None,
    index: Annotated[str, typer.Option(help="auto, flat, ivf or hnsw.")] = "auto",
    recall: Annotated[float, typer.Option(help="Lowest recall@20 of an approximate index in a folder.")] = 0.99,
    seed: Annotated[int, typer.Option(help="Seed of such an index.")] = 0,
    source: MemeSource = None,
    note: Note = "",
    decided: Decided = False,
    views: Annotated[
        list[str] | None,
        typer.Option(help="View that the bank keeps of each meme: hidden, or one of the store; several times."),
    ] = None,
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Create a bank from a feature store, embedded by a head."""
    from ra_hmd.bank.backends.base import backend_of
    from ra_hmd.bank.embed_features import create_bank
    from ra_hmd.retrieval.index import IndexKind

    if backend not in (None, backend_of(bank)):
        raise UserError(
            f"--backend {backend}: {bank} is a place of backend {backend_of(bank)!r}; `faiss` keeps a folder, `milvus` "
            "a file ….db or an address http://host:port#name."
        )
    with create_bank(
        bank,
        checkpoint,
        features,
        author=author or _login(),
        reason=reason,
        source=source,
        note=note,
        decided=decided,
        views=views or (),
        index=checked("--index", index, IndexKind),
        recall_target=recall,
        seed=seed,
        wait=wait,
        **_milvus(bank, lock, token),
    ) as opened:
        return _changed(opened.log[-1], bank)


@bank_app.command("copy")
def copy_command(
    bank: Place,
    target: Annotated[str, typer.Argument(help="Place of the new bank, of any kind; nothing may be there.")],
    reason: Annotated[str | None, typer.Option(help="Reason; default: the version that is copied.")] = None,
    author: Author = None,
    without_views: Annotated[bool, typer.Option("--without-views", help="Leave views out: only a folder has them.")] = (
        False
    ),
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Copy the present rows of a bank to another place, as the first version there. The history stays behind."""
    from ra_hmd.bank.copying import copy_bank

    with (
        _open(bank, wait, None, token) as opened,
        copy_bank(
            opened, target, author=author or _login(), reason=reason, views=not without_views, wait=wait,
            **_milvus(target, lock, token),
        ) as copied,
    ):  # fmt: skip
        return _changed(copied.log[-1], target)


@bank_app.command("add")
def add_command(
    bank: Place,
    checkpoint: Checkpoint,
    features: Store,
    reason: ChangeReason,
    author: Author = None,
    source: MemeSource = None,
    note: Note = "",
    decided: Decided = True,
    relabel_identical: IdenticalRows = False,
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Add the memes of a feature store."""
    from ra_hmd.bank.embed_features import embed_store

    found = embed_store(checkpoint, features)
    with _open(bank, wait, lock, token) as opened:
        found.check_for(opened)
        rows = found.rows(source, note, decided=decided)
        entry = opened.add(
            rows,
            found.embeddings.embedding,
            author=author or _login(),
            reason=reason,
            relabel_identical=relabel_identical,
            views=found.embeddings.views,
        )
        return _changed(entry, bank)


@bank_app.command("remove")
def remove_command(
    bank: Place,
    reason: ChangeReason,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids.")] = None,
    ids_file: Annotated[Path | None, typer.Option(help="A file with one id per line.")] = None,
    author: Author = None,
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Remove memes. Earlier versions keep them."""
    given = [*(ids or []), *(_ids(ids_file) if ids_file else [])]
    with _open(bank, wait, lock, token) as opened:
        return _changed(opened.remove(given, author=author or _login(), reason=reason), bank)


@bank_app.command("relabel")
def relabel_command(
    bank: Place,
    labels: Annotated[list[str], typer.Argument(help="id=label …; with several classes id=0,1,0.")],
    reason: ChangeReason,
    author: Author = None,
    relabel_identical: IdenticalRows = False,
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Give memes other labels."""
    with _open(bank, wait, lock, token) as opened:
        new = _labels(labels, opened.problem)
        change = {"author": author or _login(), "reason": reason}
        return _changed(opened.relabel(new, **change, relabel_identical=relabel_identical), bank)


@bank_app.command("rollback")
def rollback_command(
    bank: Place,
    to: Annotated[int, typer.Option(help="The version to restore.")],
    reason: ChangeReason,
    author: Author = None,
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Restore a version, as a new version: nothing of the history is lost."""
    with _open(bank, wait, lock, token) as opened:
        return _changed(opened.rollback(to, author=author or _login(), reason=reason), bank)


@bank_app.command("info")
def info_command(bank: Place, wait: Wait = 60.0, lock: Lock = None, token: Token = None) -> Outcome:
    """Show size, classes, version, index, and the fingerprint of the embeddings."""
    from rich.markup import escape
    from rich.table import Table

    with _open(bank, wait, lock, token) as opened:
        info = opened.info()
    table = Table(show_header=False)
    flat = {key: value for key, value in info.items() if key != "fingerprint"}
    flat |= {f"fingerprint · {key}": value for key, value in info["fingerprint"].items()}
    for key, value in flat.items():
        table.add_row(key, escape(str(value)))
    return Outcome(info, [table])


@bank_app.command("log")
def log_command(bank: Place, wait: Wait = 60.0, lock: Lock = None, token: Token = None) -> Outcome:
    """Show every version: action, author, time and reason."""
    from rich.markup import escape
    from rich.table import Table

    with _open(bank, wait, lock, token) as opened:
        entries = [entry.to_dict() for entry in opened.log]
    table = Table("version", "time", "author", "action", "change", "rows", "reason")
    for entry in reversed(entries):
        change = ", ".join(f"{count} {what}" for what, count in entry["counts"].items() if count and what != "rows")
        change = f"to version {entry['restores']}: {change}" if entry["restores"] else change
        cells = (entry["version"], entry["time"], entry["author"], entry["action"], change, entry["counts"]["rows"])
        table.add_row(*(escape(str(cell)) for cell in (*cells, entry["reason"])))
    return Outcome(entries, [table])


@bank_app.command("search")
@from_settings
def search_command(
    bank: Place,
    checkpoint: Checkpoint,
    queries: Queries,
    heads: BankHeadOptions,
    output: Annotated[Path | None, typer.Option(help="Evidence of every query, as JSON.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Queries to print.")] = 20,
    final: Final = False,
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Classify memes by their nearest neighbours, and show these."""
    from ra_hmd.scoring.evidence import print_evidence, search_evidence
    from ra_hmd.scoring.operating_point import read_operating_point
    from ra_hmd.scoring.reference_set import bank_rules

    voting = heads.voting
    with _open(bank, wait, lock, token) as opened:
        rules, notes = bank_rules(opened, read_operating_point(checkpoint), voting, heads.kernel)
        command = command_line()
        evidence = search_evidence(
            opened, checkpoint, queries, voting, rules["rkc"].thresholds, final=final, command=command
        )
    print_notes(notes)
    if output is not None:
        from ra_hmd.core.manifests import write_manifest

        write_manifest(output, evidence)
    return Outcome(evidence.to_json(), [output or partial(print_evidence, evidence, show)])


@bank_app.command("effect")
@from_settings
def effect_command(
    bank: Place,
    checkpoint: Checkpoint,
    queries: Queries,
    heads: BankHeadOptions,
    add: Annotated[Path | None, typer.Option(help="Feature store of memes to add.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Id to remove; may be given several times.")] = None,
    relabel: Annotated[list[str] | None, typer.Option(help="id=label; may be given several times.")] = None,
    relabel_identical: IdenticalRows = False,
    rollback: Annotated[int | None, typer.Option(help="Version to go back to; without other changes.")] = None,
    final: Final = False,
    wait: Wait = 60.0,
    lock: Lock = None,
    token: Token = None,
) -> Outcome:
    """Show the verdicts that a change would flip, by the stored thresholds where they apply. Changes nothing."""
    from ra_hmd.bank.embed_features import embed_store
    from ra_hmd.bank.planned_change import PlannedChange
    from ra_hmd.features.test_lock import open_labels
    from ra_hmd.scoring.bank_kernel import kernel_classifier_of
    from ra_hmd.scoring.change_impact import change_impact, print_change_impact
    from ra_hmd.scoring.operating_point import read_operating_point
    from ra_hmd.scoring.reference_set import bank_rules

    voting = heads.voting
    embedded = embed_store(checkpoint, queries, labelled=False)
    new = embed_store(checkpoint, add) if add else None
    open_labels(
        {queries: embedded.features},
        [checkpoint],
        final=final,
        command=command_line(),
        examples={add: new.features} if add and new else {},
    )
    with _open(bank, wait, lock, token) as opened:
        for found in (embedded, new):
            if found is not None:
                found.check_for(opened)
        added = (new.rows(), new.embeddings.embedding) if new else None
        labels = _labels(relabel or [], opened.problem)
        views = new.embeddings.views if new else {}
        planned = PlannedChange(added, remove or [], labels, rollback, relabel_identical, views)
        rules, notes = bank_rules(opened, read_operating_point(checkpoint), voting, heads.kernel)
        kernel = kernel_classifier_of(opened, opened.problem, heads.kernel)
        limits = {head: rule.thresholds for head, rule in rules.items()}
        result = change_impact(opened, embedded.embeddings, planned, voting, limits["rkc"], kernel, limits["krr"])
    print_notes(notes)
    return Outcome(result, [partial(print_change_impact, result)])


def _open(bank: str, wait: float, lock: Path | None, token: str | None) -> "Bank":
    from ra_hmd.bank.bank import Bank

    return Bank.open(bank, wait=wait, **_milvus(bank, lock, token))


def _milvus(bank: str, lock: Path | None, token: str | None) -> dict[str, Any]:
    """The options of the Milvus backend; another backend has none."""
    from ra_hmd.bank.backends.base import backend_of

    if backend_of(bank) == "milvus":
        return {"lock": lock, "token": token}
    if lock is not None:
        raise UserError(f"--lock {lock}: only a Milvus cluster needs one, {bank} has its own.")
    return {}


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UserError("This account has no login name; give --author.") from error


def _changed(entry: "VersionEntry", bank: str) -> Outcome:
    change = ", ".join(f"{count} {what}" for what, count in entry.counts.items() if count and what != "rows")
    line = f"{bank}: version {entry.version}, {change or 'no rows'}; {entry.counts['rows']} rows"
    return Outcome({"bank": bank, **entry.to_dict()}, [line])


def _ids(path: Path) -> list[str]:
    """The ids in a file, one per line."""
    from ra_hmd.data.rows import read_lines

    if not path.is_file():
        raise UserError(f"--ids-file {path} does not exist; give a text file with one id per line.")
    lines = (line.strip(" \t") for line in read_lines(path))
    return [line for line in lines if line]


def _labels(given: list[str], problem: "Problem") -> dict[str, Any]:
    """`id=label` pairs; a label of several classes is a list of 0 and 1."""
    labels: dict[str, Any] = {}
    for item in given:
        name, mark, text = item.rpartition("=")
        parts = text.split(",")
        if not mark or not all(part.strip().isdecimal() for part in parts):
            raise UserError(f"{item!r}: write id=label, the label a class index, or 0,1,… with several classes.")
        if name in labels:
            raise UserError(f"id {name!r} is given twice.")
        numbers = [int(part) for part in parts]
        if problem.kind != "multi_label" and len(numbers) > 1:
            raise UserError(f"{item!r}: this bank has one class per meme.")
        labels[name] = numbers if problem.kind == "multi_label" else numbers[0]
    return labels
