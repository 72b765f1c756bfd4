"""The report of an audit: audit.json, audit.md and index.html with blurred pictures.

Both pages name the first `LISTED` entries of each list; audit.json has all.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image, ImageOps

from ra_hmd.core.artifacts import atomic_path, sha256_bytes, write_text
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import BankAuditManifest, write_manifest
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.core.templates import template_environment
from ra_hmd.data.images import content_hash
from ra_hmd.data.text import well_formed
from ra_hmd.inference.meme_lookup import MemeLookup

AUDIT, MARKDOWN, PAGE, PICTURES = "audit.json", "audit.md", "index.html", "pictures"
LISTED = 50
"""Entries of each list on the pages."""
_SIDE = 200  # pixels of a thumbnail


def check_audit_folder(folder: Path) -> None:
    """Raise `UserError` where a folder holds something other than an audit."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / AUDIT).is_file()):
        raise UserError(f"--output {folder} is there and is no audit; give a new folder, or that of an earlier audit.")


def write_audit(audit: BankAuditManifest, folder: Path, lookup: MemeLookup | None, contents: Mapping[str, str]) -> None:
    """Write the files of an audit; those of an earlier audit in the folder are replaced.

    Args:
        audit: The audit.
        folder: Folder of the files.
        lookup: Finds images and captions; None: the page has none.
        contents: Id to the hash of image and caption; a picture that is no longer that of the row is left out.
    """
    for path in (folder / PICTURES).glob("*.png"):
        path.unlink()
    pictures = _write_pictures(audit, folder / PICTURES, lookup, contents) if lookup is not None else {}
    captions = {name: lookup.caption(name) or "" for name in _shown(audit)} if lookup is not None else {}
    write_text(folder / PAGE, _page(audit, pictures, captions))
    write_text(folder / MARKDOWN, audit_markdown(audit))
    write_manifest(folder / AUDIT, audit)


def audit_markdown(audit: BankAuditManifest) -> str:
    """The audit as Markdown."""
    parts = [f"# Audit of {escape(audit.bank.place)}\n\n", *(f"- {escape(line)}\n" for line in summary(audit))]
    parts += [f"\n{escape(note)}\n" for note in audit.notes]
    doubtful = [
        [escape(row.id), _label(row.label), _label(row.suggested), f"{row.probability:.3f}",
         ", ".join(f"{escape(other.id)} ({_label(other.label)}, {_share(other.share)})" for other in row.rows)]
        for row in audit.contradicted[:LISTED]
    ]  # fmt: skip
    header = ["row", "label", "suggested", "probability of its label", "rows that add most (label, share)"]
    parts += _section("Labels that the other rows contradict", header, doubtful, len(audit.contradicted))
    copies = [
        [found.kind, str(found.distance),
         ", ".join(f"{escape(row.id)} ({_label(row.label)}{', decided' * row.decided})" for row in found.rows)]
        for found in audit.duplicates[:LISTED]
    ]  # fmt: skip
    header = ["copies", "distance of 256", "rows (label)"]
    parts += _section("Copies with different labels", header, copies, len(audit.duplicates))
    unused = [[escape(name)] for name in audit.unused[:LISTED]]
    parts += _section("Rows without effect on the others", ["row"], unused, len(audit.unused))
    thin = [[escape(entry.source), str(entry.label), str(entry.rows)] for entry in audit.thin[:LISTED]]
    return "".join(parts + _section("Few rows", ["source", "class", "rows"], thin, len(audit.thin)))


def summary(audit: BankAuditManifest) -> list[str]:
    """The numbers of an audit, one sentence per list."""
    count, least = audit.rows, audit.arguments.get("thin")
    return [
        f"{len(audit.contradicted)} of {count} rows have a label that the others contradict.",
        f"{len(audit.duplicates)} groups of copies have different labels.",
        f"{len(audit.unused)} rows are in no other row's 20 largest shares and 20 nearest neighbours.",
        f"{len(audit.thin)} times a source has fewer than {least} rows of a class.",
    ]


def _section(title: str, header: list[str], lines: list[list[str]], count: int) -> list[str]:
    more = f"\n… and {count - len(lines)} more in {AUDIT}.\n" if count > len(lines) else ""
    return [f"\n## {title}\n\n", markdown_table(header, lines) if lines else "None.\n", more]


def _label(label: int | list[int]) -> str:
    return ",".join(map(str, label)) if isinstance(label, list) else str(label)


def _share(share: float | list[float]) -> str:
    return ", ".join(f"{value:+.3f}" for value in (share if isinstance(share, list) else [share]))


def _shown(audit: BankAuditManifest) -> dict[str, None]:
    """Ids of the memes whose pictures the page shows."""
    doubtful, copies = audit.contradicted[:LISTED], audit.duplicates[:LISTED]
    names = [name for row in doubtful for name in (row.id, *(other.id for other in row.rows))]
    return dict.fromkeys(names + [row.id for found in copies for row in found.rows])


def _write_pictures(
    audit: BankAuditManifest, folder: Path, lookup: MemeLookup, contents: Mapping[str, str]
) -> dict[str, str]:
    """Id to the name of the file with the meme's picture, of those that have one."""
    written = {}
    for name in _shown(audit):
        image = lookup.image(name)
        content = contents.get(name, "")
        if image is None or (content and content != content_hash(image, lookup.caption(name) or "")):
            continue
        file = f"{sha256_bytes(name.encode('utf-8', 'surrogatepass'))[:24]}.png"
        _write_thumbnail(image, folder / file)
        written[name] = file
    return written


def _write_thumbnail(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        ImageOps.contain(image.convert("RGB"), (_SIDE, _SIDE)).save(temporary, "PNG")


def _page(audit: BankAuditManifest, pictures: Mapping[str, str], captions: Mapping[str, str]) -> str:
    return (
        _templates()
        .get_template("audit.html")
        .render(
            audit=audit,
            summary=summary(audit),
            listed=LISTED,
            pictures=pictures,
            captions=captions,
            folder=PICTURES,
            file=AUDIT,
        )
    )


@cache
def _templates() -> Environment:
    environment = template_environment("ra_hmd.bank_review", keep_trailing_newline=True)
    filters: dict[str, Any] = {"label": _label, "share": _share, "text": well_formed}
    environment.filters.update(filters)
    return environment
