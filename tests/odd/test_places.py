"""Outputs where links, mounts, umasks and full disks are."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ra_hmd.core.artifacts import atomic_path, new_folder, write_json
from ra_hmd.core.errors import UserError


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_files_have_the_modes_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    write_json(tmp_path / "a.json", {})
    with atomic_path(tmp_path / "secret", 0o600) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
    with new_folder(tmp_path / "folder"):
        pass
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"a.json": 0o666 & ~umask, "secret": 0o600, "folder": 0o777 & ~umask}


def _fill(output: Path) -> None:
    with new_folder(output) as folder:
        (folder / "a").write_text("a")
        (folder / "b").mkdir()


def test_a_new_folder_is_made_where_a_link_points(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, target in (("full", "there"), ("dangling", "missing")):
        (tmp_path / name).symlink_to(target)
        _fill(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert sorted(path.name for path in (tmp_path / target).iterdir()) == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "full", "missing", "there"]


def test_the_present_folder_is_filled_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    number = tmp_path.stat().st_ino
    _fill(Path())
    assert (tmp_path.stat().st_ino, sorted(path.name for path in tmp_path.iterdir())) == (number, ["a", "b"])


def test_what_came_into_a_folder_meanwhile_is_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made = new_folder(tmp_path / "out")
    (made.__enter__() / "a").write_text("mine")
    (tmp_path / "out" / "a").write_text("another's")
    with pytest.raises(UserError, match="not an empty folder"):
        made.__exit__(None, None, None)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"a": "another's"}


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)), atomic_path(tmp_path):
        pytest.fail("the work was begun")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        RuntimeError("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, error: Exception) -> None:
    for made in (atomic_path, new_folder):
        with pytest.raises(UserError, match=str(tmp_path / "a.bin")), made(tmp_path / "a.bin"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="another"), atomic_path(tmp_path / "a.bin"):
        raise RuntimeError("another")
    with pytest.raises(OSError, match="Input/output"), new_folder(tmp_path / "a"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
