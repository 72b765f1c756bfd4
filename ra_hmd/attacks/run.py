"""Attacked copies of a data set: `ra-hmd attack`."""

import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ra_hmd.attacks.apply import CHANGED, Taught
from ra_hmd.attacks.base import Variant
from ra_hmd.attacks.chunks import Chunk, open_attacker, rows_folder
from ra_hmd.attacks.settings import AttackSettings
from ra_hmd.attacks.teacher import TaughtCaptions, Teacher
from ra_hmd.core.artifacts import alone_in, plain, sha256_bytes, sha256_file
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
from ra_hmd.core.workers import WorkerSettings, run_units
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, REJECTED, MemeData, SplitWriter, open_data
from ra_hmd.data.readers.tree import absolute
from ra_hmd.data.rows import jsonl_rows

ATTACK_MANIFEST = "attack.json"
_FORMAT = 1  # raised when an attack makes other memes from the same ones
_CHUNK = 32  # memes
_TEACHER = "teacher"  # folder of the answers


def attack_data(
    folder: str | Path,
    output: str | Path,
    settings: AttackSettings | None = None,
    *,
    splits: Sequence[str] = (),
    teacher: Teacher | None = None,
    workers: int = 1,
    engine: WorkerSettings | None = None,
    show: bool = False,
    command: str = "",
) -> AttackManifest:
    """Write an attacked copy of a data set for each variant, `output/<variant>/`, and `output/attack.json`.

    Each copy is a data set as `ra-hmd data import` writes one. Pictures that an attack does not change are not copied.
    An interrupted run continues where it stopped. Variants that are there already are kept; further ones, and further
    splits, of the same data set and with the same seed are added.

    Args:
        folder: Imported data set.
        output: Folder of the copies.
        settings: Attacks and seed.
        splits: Splits to attack; () stands for all but `train`.
        teacher: Model that rephrases captions: attack `rephrase` is added. **Captions are sent to its endpoint.**
        workers: Number of processes, with the local engine.
        engine: Engine that chunks of memes are attacked on; default is this machine.
        show: Show a progress bar.
        command: Command line for the manifest.

    Raises:
        UserError: No such data, `output` holds attacks on other memes or with another seed, or a picture cannot be
            decoded.
    """
    settings, data = settings or AttackSettings(), open_data(folder)
    variants = settings.variants(taught=teacher is not None)

    def make(job: AttackJob) -> dict[str, Any] | None:
        taught = _ask(data, job.output, job.todo, teacher)
        _attack_all(data, job, settings.seed, taught.captions, engine, workers=workers, show=show)
        return taught.description

    return write_attacks(
        data, output, variants, make, splits=splits, suite=settings.suite, seed=settings.seed, command=command
    )


@dataclass(frozen=True)
class AttackJob:
    """What is left to do of a run.

    Attributes:
        output: Folder of the copies.
        clean: The clean data set.
        todo: Split to the variants that do not have it yet.
    """

    output: Path
    clean: CleanData
    todo: Mapping[str, Sequence[Variant]]

    @property
    def total(self) -> int:
        """Number of memes to attack, each variant counted."""
        return sum(self.clean.splits[split].rows * len(variants) for split, variants in self.todo.items())

    def chunks(self, data: MemeData, size: int) -> Iterator[tuple[str, Sequence[Variant], int, Sequence[Meme]]]:
        """Split, variants, first row, and memes of each chunk of `size` memes."""
        for split, variants in self.todo.items():
            memes, first = data.memes(split) if variants else iter(()), 0
            while chunk := tuple(islice(memes, size)):
                yield split, variants, first, chunk
                first += len(chunk)


def write_attacks(
    data: MemeData,
    output: str | Path,
    variants: Sequence[Variant],
    make: Callable[[AttackJob], dict[str, Any] | None],
    *,
    splits: Sequence[str],
    suite: str,
    seed: int,
    command: str,
) -> AttackManifest:
    """Write the copies of a data set whose rows `make` leaves as files of `Chunk`.

    Args:
        data: The clean data set.
        output: Folder of the copies.
        variants: The variants.
        make: Attacks what is left to do, and returns the description of a teacher, if there was one.
        splits: See `attack_data`.
        suite: Name for the manifest.
        seed: Seed of all random choices.
        command: Command line for the manifest.

    Raises:
        UserError: See `attack_data`.
    """
    output = absolute(Path(output))
    with alone_in(output):
        before = _before(output)
        clean = _describe(data, _chosen_splits(data, splits), before)
        _check_same(output, before, clean, seed)
        stated = AttackManifest.new(
            command=command,
            clean=clean,
            suite=suite,
            seed=seed,
            variants=[] if before is None else before.variants,
            teacher=None if before is None else before.teacher,
        )
        todo = _lacking(stated, variants, list(clean.splits))
        write_manifest(output / ATTACK_MANIFEST, stated)
        teacher = make(AttackJob(output, clean, todo))
        done = {one.name: one for one in stated.variants}
        for variant in variants:
            new = [split for split, lacking in todo.items() if variant in lacking]
            if new:
                done[variant.name] = _merge(data, output, variant, new, clean, seed, done.get(variant.name))
        stated = stated.model_copy(update={"variants": list(done.values()), "teacher": teacher or stated.teacher})
        write_manifest(output / ATTACK_MANIFEST, stated)
        for variant in variants:
            shutil.rmtree(rows_folder(output / variant.name), ignore_errors=True)
    return stated


def _chosen_splits(data: MemeData, splits: Sequence[str]) -> list[str]:
    missing = [split for split in splits if split not in data.splits]
    if missing:
        raise UserError(f"{data.folder} has no split {missing[0]!r}; it has {', '.join(data.splits)}.")
    chosen = list(dict.fromkeys(splits)) or [split for split in data.splits if split != "train"]
    if not chosen:
        raise UserError(f"{data.folder} has no split but train; name it with --splits train.")
    return chosen


def _before(output: Path) -> AttackManifest | None:
    """The manifest of attacks that `output` holds already.

    Raises:
        UserError: `output` holds something else.
    """
    path = output / ATTACK_MANIFEST
    if not path.is_file() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and holds no attacks; give another --output.")
    return read_manifest(path, AttackManifest) if path.is_file() else None


def _describe(data: MemeData, splits: Sequence[str], before: AttackManifest | None) -> CleanData:
    """The clean data set, with the splits that are asked for and those that were attacked before."""
    described = {}
    for split in dict.fromkeys([*(before.clean.splits if before is not None else ()), *splits]):
        path = data.folder / f"{split}.jsonl"
        if path.is_file():
            with path.open("rb") as lines:
                rows = sum(bool(line.strip()) for line in lines)
            described[split] = CleanSplit(rows=rows, sha256=sha256_file(path))
    return CleanData(
        folder=str(absolute(data.folder)),
        dataset=data.manifest.dataset,
        fingerprint=data.manifest.fingerprint,
        splits=described,
    )


def _check_same(output: Path, before: AttackManifest | None, clean: CleanData, seed: int) -> None:
    """Raise `UserError` where `output` holds attacks on other memes, or with another seed."""
    if before is None:
        return
    if not before.clean.splits.items() <= clean.splits.items():
        raise UserError(
            f"{output} holds attacks on other memes (splits {', '.join(before.clean.splits)} of "
            f"{before.clean.folder}); give another --output."
        )
    if before.seed != seed:
        raise UserError(f"{output} holds attacks with seed {before.seed}, not {seed}; give another --output.")


def _lacking(stated: AttackManifest, variants: Sequence[Variant], splits: Sequence[str]) -> dict[str, list[Variant]]:
    """Split to the variants that do not have it yet."""
    have = {one.name: one.rows for one in stated.variants}
    return {split: [variant for variant in variants if split not in have.get(variant.name, {})] for split in splits}


def _ask(
    data: MemeData, output: Path, todo: Mapping[str, Sequence[Variant]], teacher: Teacher | None
) -> TaughtCaptions:
    """What the teacher makes of the captions."""
    taught = {split: [variant for variant in variants if variant.attack.needs] for split, variants in todo.items()}
    variants = list({variant.name: variant for lacking in taught.values() for variant in lacking}.values())
    if teacher is None or not variants:
        return TaughtCaptions()
    captions = dict.fromkeys(
        meme.caption for split, lacking in taught.items() if lacking for meme in data.memes(split) if meme.text
    )
    from ra_hmd.attacks.rephrase import rephrase_all

    return rephrase_all(list(captions), variants, teacher, output / _TEACHER)


def _attack_all(
    data: MemeData,
    job: AttackJob,
    seed: int,
    taught: Mapping[str, Mapping[str, Taught]],
    engine: WorkerSettings | None,
    *,
    workers: int,
    show: bool,
) -> None:
    chunks = (
        Chunk(job.output, split, first, memes, tuple(variants), seed, taught)
        for split, variants, first, memes in job.chunks(data, _CHUNK)
    )
    if job.total:
        done = run_units(
            open_attacker,
            chunks,
            engine or WorkerSettings(),
            description="Attacking",
            total=job.total,
            noun="memes",
            show=show,
            processes=workers,
        )
        deque(done, maxlen=0)


def _merge(
    data: MemeData,
    output: Path,
    variant: Variant,
    splits: Sequence[str],
    clean: CleanData,
    seed: int,
    before: VariantDescription | None,
) -> VariantDescription:
    """Join the rows of a variant's new splits into its data set."""
    folder = output / variant.name
    changed = Counter[str]() if before is None else Counter(before.changed)
    unchanged = Counter[str]() if before is None else Counter(before.unchanged)
    for split in splits:
        changed[split] = 0
        with SplitWriter(folder, split) as writer:
            for path in sorted(rows_folder(folder).glob(f"{split}-????????.jsonl")):
                for row in jsonl_rows(path):
                    writer.write(row.values["record"])
                    changed[split] += row.values["record"]["extras"][CHANGED]
                    unchanged[row.values["unchanged"]] += bool(row.values["unchanged"])
    del unchanged[""]
    rows = {split: clean.splits[split].rows for split in changed}
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
