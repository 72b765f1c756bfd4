"""Attacked copies of a data set: `ra-hmd attack`."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from PIL import Image

from ra_hmd.attacks.apply import CHANGED, CleanMeme, attacked
from ra_hmd.attacks.base import Variant
from ra_hmd.attacks.settings import AttackSettings
from ra_hmd.core.artifacts import alone_in, atomic_path, plain, sha256_bytes, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import (
    AttackManifest,
    CleanData,
    CleanSplit,
    DatasetManifest,
    VariantDescription,
    read_manifest,
    write_manifest,
)
from ra_hmd.core.progress import track
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, REJECTED, MemeData, SplitWriter, json_line, open_data
from ra_hmd.data.readers.tree import absolute
from ra_hmd.data.rows import jsonl_rows

ATTACK_MANIFEST = "attack.json"
_FORMAT = 1  # raised when an attack makes other memes from the same ones
_CHUNK = 32  # memes
_ROWS = ".rows"


@dataclass(frozen=True)
class _Chunk:
    """Memes of a split that one process attacks by all variants.

    Attributes:
        output: Folder of all variants.
        split: The split.
        first: Row of the first meme in its split.
        memes: The memes.
        variants: The variants.
        seed: Seed of the random choices.
        taught: Variant name to what a teacher made of captions.
    """

    output: Path
    split: str
    first: int
    memes: tuple[Meme, ...]
    variants: tuple[Variant, ...]
    seed: int
    taught: Mapping[str, Mapping[str, str]]

    def rows(self, variant: Variant) -> Path:
        """File of the finished rows of a variant."""
        return self.output / variant.name / _ROWS / f"{self.split}-{self.first:08d}.jsonl"


def attack_data(
    folder: str | Path,
    output: str | Path,
    settings: AttackSettings | None = None,
    *,
    splits: Sequence[str] = (),
    workers: int = 1,
    show: bool = False,
    command: str = "",
) -> AttackManifest:
    """Write an attacked copy of a data set for each variant, `output/<variant>/`, and `output/attack.json`.

    Each copy is a data set as `ra-hmd data import` writes one. Pictures that an attack does not change are not copied.
    An interrupted run continues where it stopped, variants that are there already are kept, and further ones of the
    same memes and seed are added.

    Args:
        folder: Imported data set.
        output: Folder of the copies.
        settings: Attacks and seed.
        splits: Splits to attack; () stands for all but `train`.
        workers: Number of processes.
        show: Show a progress bar.
        command: Command line for the manifest.

    Raises:
        UserError: No such data, `output` holds attacks on other memes or with another seed, or a picture cannot be
            decoded.
    """
    settings, output = settings or AttackSettings(), absolute(Path(output))
    variants, data = settings.variants(), open_data(folder)
    clean = _describe(data, _chosen_splits(data, splits))
    with alone_in(output):
        before = _before(output, clean, settings.seed)
        kept = {one.name: one for one in before}
        todo = [variant for variant in variants if variant.name not in kept]
        stated = AttackManifest.new(
            command=command, clean=clean, suite=settings.suite, seed=settings.seed, variants=before
        )
        write_manifest(output / ATTACK_MANIFEST, stated)
        _attack_all(data, output, list(clean.splits), todo, settings.seed, clean, workers=workers, show=show)
        made = [_merge(data, output, variant, clean, settings.seed) for variant in todo]
        for variant in todo:
            shutil.rmtree(output / variant.name / _ROWS, ignore_errors=True)
        stated = stated.model_copy(update={"variants": [*before, *made]})
        write_manifest(output / ATTACK_MANIFEST, stated)
    return stated


def _chosen_splits(data: MemeData, splits: Sequence[str]) -> list[str]:
    missing = [split for split in splits if split not in data.splits]
    if missing:
        raise UserError(f"{data.folder} has no split {missing[0]!r}; it has {', '.join(data.splits)}.")
    chosen = list(dict.fromkeys(splits)) or [split for split in data.splits if split != "train"]
    if not chosen:
        raise UserError(f"{data.folder} has no split but train; name it with --splits train.")
    return chosen


def _describe(data: MemeData, splits: Sequence[str]) -> CleanData:
    described = {}
    for split in splits:
        path = data.folder / f"{split}.jsonl"
        with path.open("rb") as lines:
            rows = sum(bool(line.strip()) for line in lines)
        described[split] = CleanSplit(rows=rows, sha256=sha256_file(path))
    return CleanData(
        folder=str(absolute(data.folder)),
        dataset=data.manifest.dataset,
        fingerprint=data.manifest.fingerprint,
        splits=described,
    )


def _before(output: Path, clean: CleanData, seed: int) -> list[VariantDescription]:
    """The variants that are complete already.

    Raises:
        UserError: `output` holds something else.
    """
    path = output / ATTACK_MANIFEST
    if not path.is_file():
        if any(output.iterdir()):
            raise UserError(f"{output} is not empty and holds no attacks; give another --output.")
        return []
    stated = read_manifest(path, AttackManifest)
    if stated.clean.splits != clean.splits:
        raise UserError(
            f"{output} holds attacks on other memes (splits {', '.join(stated.clean.splits)} of "
            f"{stated.clean.folder}); give another --output."
        )
    if stated.seed != seed:
        raise UserError(f"{output} holds attacks with seed {stated.seed}, not {seed}; give another --output.")
    return stated.variants


def _attack_all(
    data: MemeData,
    output: Path,
    splits: Sequence[str],
    variants: Sequence[Variant],
    seed: int,
    clean: CleanData,
    *,
    workers: int,
    show: bool,
) -> None:
    def tasks() -> Iterator[Any]:
        for split in splits:
            memes, first = data.memes(split), 0
            while chunk := tuple(islice(memes, _CHUNK)):
                yield delayed(_attack_chunk)(_Chunk(output, split, first, chunk, tuple(variants), seed, {}))
                first += len(chunk)

    if not variants:
        return
    total = sum(split.rows for split in clean.splits.values()) * len(variants)
    done = Parallel(n_jobs=max(workers, 1), return_as="generator")(tasks())
    for _ in track(((size, None) for size in done), "Attacking", total, "memes", show=show):
        pass


def _attack_chunk(chunk: _Chunk) -> int:
    """Attack memes by all variants, and return their product. Variants whose rows are there are passed by."""
    todo = [variant for variant in chunk.variants if not chunk.rows(variant).is_file()]
    made: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in todo}
    for row, meme in enumerate(chunk.memes, chunk.first):
        clean = CleanMeme(meme)
        for variant in todo:
            outcome = attacked(clean, variant, chunk.seed, chunk.taught.get(variant.name))
            image = outcome.meme.image
            if isinstance(image, Image.Image):
                image = _save(image, chunk.output / variant.name / "images" / chunk.split, row)
            else:
                image = absolute(outcome.meme.path)
            record = replace(outcome.meme, image=image).to_row()
            made[variant.name].append({"record": plain(record), "unchanged": outcome.reason})
    for variant in todo:
        with atomic_path(chunk.rows(variant)) as temporary:
            temporary.write_text("".join(map(json_line, made[variant.name])), encoding="utf-8", newline="\n")
    return len(chunk.memes) * len(chunk.variants)


def _save(image: Image.Image, folder: Path, row: int) -> Path:
    folder = folder / f"{row // 1000:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row:07d}.png"
    image.save(path, "PNG")
    return path


def _merge(data: MemeData, output: Path, variant: Variant, clean: CleanData, seed: int) -> VariantDescription:
    """Join the rows of a variant into a data set."""
    folder, changed, unchanged = output / variant.name, Counter[str](), Counter[str]()
    for split in clean.splits:
        changed[split] = 0
        with SplitWriter(folder, split) as writer:
            for path in sorted((folder / _ROWS).glob(f"{split}-????????.jsonl")):
                for row in jsonl_rows(path):
                    writer.write(row.values["record"])
                    changed[split] += row.values["record"]["extras"][CHANGED]
                    if row.values["unchanged"]:
                        unchanged[row.values["unchanged"]] += 1
    rows = {split: described.rows for split, described in clean.splits.items()}
    described = VariantDescription(
        name=variant.name,
        attack=variant.attack.name,
        family=variant.attack.family,
        severity=variant.severity,
        channel=variant.channel,
        parameters=variant.attack.parameters[variant.severity - 1],
        classes=variant.attack.classes(len(data.task(None).classes)),
        folder=variant.name,
        rows=rows,
        changed=dict(changed),
        unchanged=dict(unchanged.most_common()),
    )
    (folder / REJECTED).touch()
    write_manifest(folder / DATASET_MANIFEST, _manifest(data.manifest, described, clean, seed))
    return described


def _manifest(clean: DatasetManifest, variant: VariantDescription, described: CleanData, seed: int) -> DatasetManifest:
    """Manifest of an attacked data set: that of the clean one, with what was done to it."""
    decides = [_FORMAT, variant.name, variant.parameters, seed, described.to_json()["splits"]]
    return DatasetManifest.new(
        dataset=clean.dataset,
        variant=clean.variant,
        layout=f"attacked: {variant.name}",
        files={str(Path(described.folder) / f"{name}.jsonl"): one.sha256 for name, one in described.splits.items()},
        options=clean.options,
        root=described.folder,
        splits=variant.rows,
        fingerprint=sha256_bytes(json.dumps(plain(decides), sort_keys=True).encode()),
        attack=variant,
        attack_seed=seed,
    )
