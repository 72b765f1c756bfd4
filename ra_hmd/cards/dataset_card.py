"""Facts for the card of an imported data set, from its manifest, its records and its last check."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.cards.render import Markdown, code, short, table
from ra_hmd.core.manifests import CheckManifest, read_manifest
from ra_hmd.data.checks.check import CHECK
from ra_hmd.data.checks.report import REPORT
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import MemeData, open_data
from ra_hmd.data.readers.tasks import Task

if TYPE_CHECKING:
    from ra_hmd.cards.render import CardMetadata

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # as the hub calls them


def data_facts(folder: Path, stated: "CardMetadata") -> dict[str, Any]:
    """Variables of `dataset_card.md.j2`. Captions are counted and not shown.

    Raises:
        UserError: not an import, or one whose files are gone.
    """
    data = open_data(folder)
    manifest = data.manifest
    tasks = [task for task in data.reader.tasks if task.member_of is None]
    counts, facts = _count(data, tasks)
    title = stated.name or data.reader.title
    report = folder / CHECK / REPORT
    return {
        "card_data": _card_data(stated, title, sum(facts["rows"].values())),
        "stated": stated,
        "name": title,
        "manifest": manifest,
        "reader": data.reader,
        "splits": _splits(data, facts),
        "classes": [(task.name, _classes(task, counts[task.name], data.splits)) for task in tasks],
        "rejected": sum(manifest.rejected.values()),
        "files": table(
            ["annotation file", "sha256"],
            [[Path(path).name, code(digest)] for path, digest in manifest.files.items()],
        ),
        "options": table(["option", "value"], [[key, short(value)] for key, value in manifest.options.items()]),
        "notes": [short(note) for note in manifest.notes],
        "versions": table(["package", "version"], list(manifest.versions.items())),
        "fixed": len(manifest.fixed),
        "ocr": ", ".join(f"{split} by {source}" for split, source in manifest.ocr.items()),
        "check": _check(read_manifest(report, CheckManifest), facts["rows"]) if report.is_file() else None,
    }


def _count(data: MemeData, tasks: list[Task]) -> tuple[dict[str, dict[str, Counter[Any]]], dict[str, Any]]:
    """Counts of memes (task → split → class), and of rows, captions and bad rows, in one pass over the records."""
    counts: dict[str, dict[str, Counter[Any]]] = {
        task.name: {split: Counter() for split in data.splits} for task in tasks
    }
    facts: dict[str, Counter[str]] = {"rows": Counter(), "captions": Counter(), "bad": Counter()}
    for split in data.splits:
        for _, meme in data.rows(split):
            if not isinstance(meme, Meme):
                facts["bad"][split] += 1
                continue
            facts["rows"][split] += 1
            facts["captions"][split] += bool(meme.caption.strip())
            for task in tasks:
                value = data.value(task, meme)
                counts[task.name][split].update(
                    value if isinstance(value, list) and value else [None if isinstance(value, list) else value]
                )
    return counts, facts


def _splits(data: MemeData, facts: dict[str, Any]) -> Markdown:
    rejected = data.manifest.rejected
    header = ["split", "memes", "with a caption", "rows that cannot be read", "left out by the import"]
    rows = [
        [split, *(facts[key][split] for key in ("rows", "captions", "bad")), rejected.get(split, 0)]
        for split in data.splits
    ]
    others = sum(count for split, count in rejected.items() if split not in data.splits)
    return table(header, [*rows, ["of no split", "–", "–", "–", others]] if others else rows)


def _classes(task: Task, counts: dict[str, Counter[Any]], splits: tuple[str, ...]) -> Markdown:
    found = {value for split in splits for value in counts[split]}
    known = [*range(len(task.classes)), *sorted(value for value in found - {None} if value >= len(task.classes))]
    shown = [*known, *([None] if None in found else [])]
    names = {index: f"{index}: {name}" for index, name in enumerate(task.classes)} | {None: "none"}
    rows = [[names.get(value, f"{value}: unknown"), *(counts[split][value] for split in splits)] for value in shown]
    return table(["class", *splits], rows)


def _check(report: CheckManifest, rows: Counter[str]) -> dict[str, Any]:
    findings = [[one["severity"], one["kind"], one["count"], one["meaning"]] for one in report.findings]
    return {
        "created": report.created,
        "table": table(["severity", "finding", "count", "meaning"], findings) if findings else None,
        # Records may have been changed since.
        "stale": report.rows != dict(rows),
    }


def _card_data(stated: "CardMetadata", title: str, rows: int) -> Markdown:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        language=list(stated.languages) or None,
        license=stated.licence or "other",
        pretty_name=title,
        size_categories=[_SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)]],
        tags=["hateful-meme-detection", "memes"],
    )
    return Markdown(data.to_yaml())
