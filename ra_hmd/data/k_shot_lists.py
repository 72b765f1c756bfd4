"""Reading K-shot lists, which `k_shot` draws: the labelled memes that a few-shot experiment may use."""

from collections.abc import Sequence
from pathlib import Path

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.readers import READERS


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
    manifest = read_json(path)
    if manifest.get("kind") != "k_shot":
        raise UserError(f"{path} holds no K-shot lists; write them with `ra-hmd data k-shot`.")
    if split is not None and manifest.get("split") != split:
        raise UserError(
            f"The lists in {path} were drawn from split {manifest.get('split')!r}, examples come from {split!r}; draw "
            f"them again with `--split {split}`."
        )
    lists: dict[int, dict[int, list[str]]] = {}
    for one in manifest.lists:
        lists.setdefault(one["shots"], {})[one["seed"]] = list(one["ids"])
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
    drawn = read_json(path).get("dataset")
    if {drawn, stored} <= set(READERS) and drawn != stored:  # names of other data are the user's own
        raise UserError(
            f"The lists in {path} were drawn from {drawn}, and {place} holds {stored}; give lists of {stored} "
            "(`ra-hmd data k-shot`)."
        )
