"""Reading K-shot lists: what `ra-hmd data k-shot` wrote comes back, and what does not fit is refused."""

from pathlib import Path

import pytest
from meme_files import imported, jsonl, picture

from ra_hmd.core.artifacts import read_json, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.k_shot import write_k_shot
from ra_hmd.data.k_shot_lists import read_shot_list, read_shot_lists, shot_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Lists of 2 and 4 shots with three seeds, from twenty memes of two classes."""
    picture(tmp_path / "data" / "a.png")
    rows = [{"id": f"m{n}", "image": "a.png", "text": f"cup {n}", "label": n % 2} for n in range(20)]
    jsonl(tmp_path / "data" / "train.jsonl", rows)
    imported("generic", tmp_path / "data", tmp_path / "out")
    return write_k_shot(tmp_path / "out", [4, 2], seeds=3)


def test_what_was_drawn_is_read(path: Path) -> None:
    lists = read_shot_lists(path)
    assert list(lists) == [2, 4]
    for shots, of_seeds in lists.items():
        assert list(of_seeds) == [0, 1, 2]
        for seed, ids in of_seeds.items():
            (drawn,) = [one.ids for one in read_json(path).lists if (one.shots, one.seed) == (shots, seed)]
            assert ids == drawn == read_shot_list(path, shots, seed, "train")
            assert len(ids) == 2 * shots
    assert list(read_shot_lists(path, "train", [4])) == [4]


def test_what_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"has lists of \[2, 4\] shots, not of \[3\]"):
        read_shot_list(path, 3, 0)
    with pytest.raises(UserError, match=r"2-shot lists of seeds \[0, 1, 2\], not of 7.*--seeds 8"):
        read_shot_list(path, 2, 7)
    with pytest.raises(UserError, match=r"from split 'train', examples come from 'dev'.*--split dev"):
        read_shot_list(path, 2, 0, "dev")
    write_json(path.with_name("other.json"), {"kind": "features"})
    with pytest.raises(UserError, match=r"other\.json holds no K-shot lists"):
        read_shot_lists(path.with_name("other.json"))
    with pytest.raises(UserError, match="does not exist"):
        read_shot_lists(path.with_name("none.json"))


def test_rows_are_in_the_order_of_the_store() -> None:
    assert shot_rows(["d", "a"], ["a", "b", "c", "d"], "list", "store") == [0, 3]
    with pytest.raises(UserError, match=r"list names 2 memes that store lacks, for example \['x', 'y'\]"):
        shot_rows(["y", "a", "x"], ["a", "b"], "list", "store")
