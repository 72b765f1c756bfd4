"""Repairs of `ra-hmd data check --fix`: remove unusable rows, and rewrite Parquet files that differ."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ra_hmd.core.artifacts import atomic_path
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import DatasetManifest, read_manifest, write_manifest
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, REJECTED, MemeData, SplitWriter, json_line


def fix_data(data: MemeData, bad: Mapping[tuple[str, int], str], kinds: list[str]) -> list[str]:
    """Repair an imported data set, and return what was done.

    The rows of `bad` are moved to `rejected.jsonl`, whole and with the reason; nothing is deleted, and no image is
    changed. Splits whose Parquet file differs are rewritten. All other findings need a decision by the user.

    Args:
        data: The data set.
        bad: (split, row number) → reason of the removal.
        kinds: Kinds of findings of the check.

    Raises:
        UserError: The folder is no import.
    """
    path = data.folder / DATASET_MANIFEST
    if not path.is_file():
        raise UserError(f"--fix: {data.folder} was not made by `ra-hmd data import`; import it first.")
    torn = "parquet_differs" in kinds
    manifest = read_manifest(path, DatasetManifest)
    fix = manifest.fixes + 1
    if bad:
        _append_rejected(data, bad, fix)
    for split in data.splits:
        if torn or any(key[0] == split for key in bad):
            _rewrite(data, split, bad)
    moved = [row for row in data.rejected() if row.get("fix") == fix]
    done = [f"{row['place']} ({row['id']}) moved to {REJECTED} ({row['reason']})" for row in moved]
    done += ["Parquet files written anew from the .jsonl files"] if torn else []
    if done:
        counts = {split: sum(1 for _ in _lines(data.folder / f"{split}.jsonl")) for split in data.splits}
        fixed = [*manifest.fixed, *done]
        write_manifest(path, manifest.model_copy(update={"splits": counts, "fixes": fix, "fixed": fixed}))
    return done


def _rewrite(data: MemeData, split: str, bad: Mapping[tuple[str, int], str]) -> None:
    """Rewrite a split without its bad rows."""
    with SplitWriter(data.folder, split) as writer:
        for number, (_, meme) in enumerate(data.rows(split)):
            if isinstance(meme, Meme) and (split, number) not in bad:
                writer.write(meme.to_row())


def _append_rejected(data: MemeData, bad: Mapping[tuple[str, int], str], fix: int) -> None:
    path = data.folder / REJECTED
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(before + ("\n" if before and not before.endswith("\n") else ""))
        for split in sorted({split for split, _ in bad}):
            for number, line in enumerate(_lines(data.folder / f"{split}.jsonl")):
                if (split, number) in bad:
                    row = {"split": split, "place": f"{split}.jsonl, row {number + 1}", "id": _id(line)}
                    rejected = json_line(row | {"reason": bad[split, number], "fix": fix, "line": line})
                    if rejected not in before:  # written by a repair that was interrupted
                        file.write(rejected)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        yield from (line.rstrip("\r\n") for line in file if line.strip())


def _id(line: str) -> str | None:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError):
        return None
