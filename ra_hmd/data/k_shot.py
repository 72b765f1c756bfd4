"""K-shot lists, the labelled memes that few-shot experiments may use: drawing (`ra-hmd data k-shot`) and reading."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import KShotManifest, ShotList, read_manifest, write_manifest
from ra_hmd.data.meme_dataset import MemeData, open_data
from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.tasks import Task


def write_k_shot(
    folder: str | Path,
    shots: list[int],
    *,
    seeds: int = 5,
    per_class: bool = True,
    split: str = "train",
    task: str | None = None,
    output: str | Path | None = None,
) -> Path:
    """Draw lists of ids for every number of shots and every seed 0 … `seeds` - 1, and write them as one JSON file.

    Memes are ordered by a hash of seed and id. The lists therefore do not depend on the order of rows, on the version
    of a random generator or on the other lists, and a smaller list is part of the larger one with the same seed.

    Args:
        folder: Imported data set.
        shots: Numbers of memes K, per class or in total (see `per_class`).
        seeds: Number of lists of each size.
        per_class: Draw K memes of each class; otherwise K of all memes.
        split: Split to draw from.
        task: Task that defines the classes, not a multi-label one; default is the data set's first.
        output: The file; default `k_shot/<split>[_<task>].json` in the folder. Lists that it already holds are kept.

    Returns:
        Path of the file.

    Raises:
        UserError: A number is not positive, the split or task is unknown, or a class has too few memes.
    """
    data = open_data(folder)
    chosen = data.task(task)
    if split not in data.splits:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(data.splits)}.")
    if not shots or min(shots) < 1 or seeds < 1:
        raise UserError(f"--shots {shots} and --seeds {seeds} must be 1 or more.")
    if chosen.multi_label and per_class:
        raise UserError(f"Task {chosen.name!r} gives a meme several classes: draw with --no-per-class, or name a task.")
    pools = _pools(data, chosen, split, per_class=per_class)
    wanted = chosen.classes if per_class else ("all",)
    few = [f"{name}: {len(pools[name])} memes, {max(shots)} wanted" for name in wanted if len(pools[name]) < max(shots)]
    raise_all(few, f"{folder}, {split}, task {chosen.name!r}: too few memes")
    lists = [
        ShotList(shots=count, seed=seed, ids=[name for pool in wanted for name in _order(pools[pool], seed)[:count]])
        for count in sorted(set(shots))
        for seed in range(seeds)
    ]
    path = Path(output or default_lists(data.folder, split, task))
    manifest = _manifest(data.manifest.dataset, split, chosen.name, wanted, pools, per_class=per_class)
    lists += [one for one in _lists_before(path, manifest) if one not in lists]
    lists.sort(key=lambda one: (one.shots, one.seed))
    write_manifest(path, manifest.model_copy(update={"lists": lists}))
    return path


def default_lists(folder: str | Path, split: str = "train", task: str | None = None) -> Path:
    """Path of the lists that `write_k_shot` writes where no other is given."""
    return Path(folder) / "k_shot" / f"{split}{'' if task is None else f'_{task}'}.json"


def _pools(data: MemeData, task: Task, split: str, *, per_class: bool) -> dict[str, list[str]]:
    """Return class name → ids of its memes, or `all` → ids of all labelled memes."""
    pools: dict[str, list[str]] = defaultdict(list)
    for meme in data.memes(split):
        value = data.value(task, meme)
        if value is None:
            continue
        if isinstance(value, int) and value >= len(task.classes):
            raise UserError(
                f"Meme {meme.id!r} is of class {value}, but task {task.name!r} has {len(task.classes)} classes."
            )
        pools[task.classes[value] if per_class and isinstance(value, int) else "all"].append(meme.id)
    return pools


def _lists_before(path: Path, manifest: KShotManifest) -> list[ShotList]:
    """Return the lists that a file already holds.

    Raises:
        UserError: They were drawn from other memes or with other settings.
    """
    if not path.is_file():
        return []
    old = read_manifest(path, KShotManifest)
    for key in ("dataset", "split", "task", "per_class", "fingerprint"):
        if getattr(old, key) != getattr(manifest, key):
            raise UserError(f"{path} was drawn from other memes or otherwise ({key}); remove it, or give --output.")
    return old.lists


def _order(names: list[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())


def _manifest(
    dataset: str | None,
    split: str,
    task: str,
    classes: tuple[str, ...],
    pools: dict[str, list[str]],
    *,
    per_class: bool,
) -> KShotManifest:
    pool = sha256_bytes(*(f"{name}\0{member}".encode() for name in classes for member in sorted(pools[name])))
    return KShotManifest.new(
        dataset=dataset,
        split=split,
        task=task,
        per_class=per_class,
        classes=list(classes),
        pool={name: len(pools[name]) for name in classes},
        fingerprint=pool,
    )


def read_shot_lists(
    path: str | Path, split: str | None = None, wanted: Sequence[int] | None = None
) -> dict[int, dict[int, list[str]]]:
    """Read shots K → seed → ids, in order of K.

    Args:
        path: The file that `ra-hmd data k-shot` wrote.
        split: Split that the lists must be drawn from; None accepts any.
        wanted: Numbers of shots to read, all of which must exist; None reads all.

    Raises:
        UserError: The file holds no K-shot lists, or lists of another split, or lacks a wanted K.
    """
    manifest = read_manifest(path, KShotManifest)
    if split is not None and manifest.split != split:
        raise UserError(
            f"The lists in {path} were drawn from split {manifest.split!r}, examples come from {split!r}; draw "
            f"them again with `--split {split}`."
        )
    lists: dict[int, dict[int, list[str]]] = {}
    for one in manifest.lists:
        lists.setdefault(one.shots, {})[one.seed] = one.ids
    absent = sorted(set(wanted or ()) - set(lists))
    if absent:
        raise UserError(
            f"{path} has lists of {sorted(lists)} shots, not of {absent}; draw them with `ra-hmd data k-shot`, or ask "
            "for other shots."
        )
    return {count: lists[count] for count in sorted(wanted or lists)}


def read_shot_list(path: str | Path, shots: int, seed: int, split: str | None = None) -> list[str]:
    """Read the ids of one list.

    Raises:
        UserError: See `read_shot_lists`; or there is no list with this seed.
    """
    lists = read_shot_lists(path, split, [shots])[shots]
    if seed not in lists:
        raise UserError(
            f"{path} has {shots}-shot lists of seeds {sorted(lists)}, not of {seed}; draw more with "
            f"`ra-hmd data k-shot --shots {shots} --seeds {seed + 1}`, or choose one of these."
        )
    return lists[seed]


def shot_rows(listed: Sequence[str], ids: Sequence[str], list_place: str | Path, store_place: str | Path) -> list[int]:
    """Return the rows of the listed memes among `ids`, in the order of `ids`: a list is an unordered set.

    Args:
        listed: Ids of the list.
        ids: Ids of the feature store.
        list_place: Path of the list, for the message.
        store_place: Path of the store, for the message.

    Raises:
        UserError: Listed memes are missing from `ids`.
    """
    absent = sorted(set(listed) - set(ids))
    if absent:
        raise UserError(
            f"{list_place} names {len(absent)} memes that {store_place} lacks, for example {absent[:3]}; make the "
            "features of the data that the lists were drawn from, without --limit."
        )
    chosen = set(listed)
    return [row for row, name in enumerate(ids) if name in chosen]


def check_same_data(path: str | Path, place: str | Path, stored: str | None) -> None:
    """Raise `UserError` if K-shot lists were drawn from another data set than a feature store was made of.

    Args:
        path: K-shot lists.
        place: Folder of the store.
        stored: Name of the data set in the store's manifest; None if it names none.
    """
    drawn = read_manifest(path, KShotManifest).dataset
    if {drawn, stored} <= set(READERS) and drawn != stored:  # names of other data are the user's own
        raise UserError(
            f"The lists in {path} were drawn from {drawn}, and {place} holds {stored}; give lists of {stored} "
            "(`ra-hmd data k-shot`)."
        )
