"""A hand-made folder of attacked data sets, as `ra-hmd attack` writes it, for studies of a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import sha256_file, write_json, write_jsonl
from ra_hmd.core.manifests import AttackManifest, write_manifest

Change = Callable[[str], str]


def wide(text: str) -> str:
    """The letters in their wide shapes, which folding undoes."""
    return "".join(chr(ord(one) + 0xFEE0) if one.isalpha() else one for one in text)


CHANGES: dict[str, tuple[str, list[int] | None, tuple[Change, Change, Change]]] = {
    "shout": ("characters", None, (str.capitalize, str.title, str.upper)),
    "wide": (
        "characters",
        None,
        (lambda text: wide(text[:3]) + text[3:], lambda text: wide(text[:6]) + text[6:], wide),
    ),
    "empty": ("words", [1], (lambda text: text[: len(text) // 2], lambda text: text[:3], lambda text: "")),
}
"""Attack → family, classes (None: both), and the change of the caption at each severity."""


def attack_by_hand(data: Path, output: Path, splits: tuple[str, ...] = ("dev", "test")) -> Path:
    """Attack the captions of a data set of `<split>.jsonl` files; pictures stay where they are."""
    variants: list[dict[str, Any]] = []
    for name, (family, classes, changes) in CHANGES.items():
        for severity, change in enumerate(changes, 1):
            variant = f"{name}-{severity}"
            counted = {split: _write(data, output / variant, split, change, classes, variant) for split in splits}
            variants.append(
                {"name": variant, "attack": name, "family": family, "severity": severity, "channel": "field",
                 "classes": classes, "folder": variant, "rows": counted, "changed": counted}
            )  # fmt: skip
    described = {
        split: {"rows": len(_rows(data, split)), "sha256": sha256_file(data / f"{split}.jsonl")} for split in splits
    }
    stated = AttackManifest.new(
        clean={"folder": str(data), "splits": described}, suite="by hand", seed=0, variants=variants
    )
    write_manifest(output / "attack.json", stated)
    return output


def _rows(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def _write(data: Path, folder: Path, split: str, change: Change, classes: list[int] | None, variant: str) -> int:
    rows = _rows(data, split)
    for row in rows:
        row["id"] = f"{row['id']}@{variant}"
        row["img"] = str((data / row["img"]).absolute())
        if classes is None or row["label"] in classes:
            row["text"] = change(row["text"])
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / f"{split}.jsonl", rows)
    write_json(folder / "dataset_info.json", {})
    return len(rows)
