"""Reading K-shot lists (`ra-hmd data k-shot`): which labelled memes a few-shot experiment may use."""

from collections.abc import Sequence
from pathlib import Path

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.readers import READERS


def read_shot_lists(
    path: str | Path, split: str | None = None, wanted: Sequence[int] | None = None
) -> dict[int, dict[int, list[str]]]:
    """Shots K → seed → ids, in order of K.

    Args:
        path: The file that `ra-hmd data k-shot` wrote.
        split: Split that the examples must come from; None: any.
        wanted: Only these K, all of which must be there; None: all.

    Raises:
        UserError: no K-shot manifest, drawn from another split, or without a wanted K.
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
    """The ids of one list.

    Raises:
        UserError: see `read_shot_lists`; or no list of this seed.
    """
    lists = read_shot_lists(path, split, [shots])[shots]
    if seed not in lists:
        raise UserError(
            f"{path} has {shots}-shot lists of seeds {sorted(lists)}, not of {seed}; draw more with "
            f"`ra-hmd data k-shot --shots {shots} --seeds {seed + 1}`, or choose one of these."
        )
    return lists[seed]


def shot_rows(listed: Sequence[str], ids: Sequence[str], list_place: str | Path, store_place: str | Path) -> list[int]:
    """Where the listed memes are among `ids`, in the order of `ids`: a list is a set, its order means nothing.

    Raises:
        UserError: memes that are not there; the places name list and store.
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
    """Raise `UserError` where the lists in `path` were drawn from another data set than that of the store at `place`.

    Args:
        path: K-shot lists.
        place: The store's folder.
        stored: The data set that its manifest says it is of; None where it does not.
    """
    drawn = read_json(path).get("dataset")
    if {drawn, stored} <= set(READERS) and drawn != stored:  # names of other data are the user's own
        raise UserError(
            f"The lists in {path} were drawn from {drawn}, and {place} holds {stored}; give lists of {stored} "
            "(`ra-hmd data k-shot`)."
        )
