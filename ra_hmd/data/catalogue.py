"""Overview of all data sets: the table of `ra-hmd data list`, and the shipped `data/dataset_info.json`."""

from typing import Any

from rich.table import Table

from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.base import Reader
from ra_hmd.data.readers.tasks import Expected
from ra_hmd.data.training_records import dataset_info_entry


def catalogue_table() -> Table:
    """Build the table of data sets: splits, expected rows (and classes of the first task), tasks, licence, owner."""
    table = Table(title="Data sets (rows and classes of a whole copy)", show_lines=True)
    for column in ("name", "splits", "tasks", "terms, as we read them", "from"):
        table.add_column(column, overflow="fold")
    for reader in READERS.values():
        table.add_row(reader.name, _splits(reader), _tasks(reader), reader.licence, reader.owner)
    return table


def catalogue() -> list[dict[str, Any]]:
    """What is known of each data set: name, title, terms, origin, tasks, and the splits of each whole copy."""
    return [
        {
            "name": reader.name,
            "title": reader.title,
            "terms": reader.licence,
            "from": reader.owner,
            "tasks": {task.name: list(task.classes) for task in reader.tasks},
            "splits": {
                variant or "whole": {split: whole.rows for split, whole in splits.items()}
                for variant, splits in reader.expected.items()
            },
        }
        for reader in READERS.values()
    ]


def dataset_info() -> dict[str, Any]:
    """Return the `dataset_info.json` entries of every public data set, under the official names where they exist."""
    named = [entry for reader in READERS.values() for entry in reader.sharegpt.values()]
    return {name: dataset_info_entry(file) for name, file in named}


def _splits(reader: type[Reader]) -> str:
    lines = []
    for variant, splits in reader.expected.items():
        if len(reader.expected) > 1:
            lines.append(f"{variant}:")
        lines += [f"{split} {_counts(whole, reader.tasks[0].name)}" for split, whole in splits.items()]
    return "\n".join(lines) or "yours"


def _counts(whole: Expected, task: str) -> str:
    classes = whole.tasks.get(task, ())
    return f"{whole.rows} ({'/'.join(map(str, classes))})" if 0 < len(classes) < 5 else str(whole.rows)


def _tasks(reader: type[Reader]) -> str:
    named = [task.name for task in reader.tasks if task.member_of is None]
    members = [task for task in reader.tasks if task.member_of is not None]
    more = [f"and one per class of {members[0].member_of[0]}"] if members and members[0].member_of else []
    return ", ".join([*named, *more])
