"""The same command twice at a time, a scheduler's SIGTERM, and terminals that are not UTF-8."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from meme_files import Imported, imported, picture
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.data import import_dataset, sharegpt_export
from ra_hmd.data.sharegpt_export import write_sharegpt
from ra_hmd.serve import auth
from ra_hmd.serve.auth import KeyRing, make_key

pytestmark = pytest.mark.slow


def _slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, after a time in which another thread comes to the same place."""

    def slow(*values: Any, **named: Any) -> Any:
        time.sleep(0.1)
        return function(*values, **named)

    return slow


def test_keys_that_are_made_at_the_same_time_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_write", _slowed(auth._write))
    path, names = tmp_path / "keys.json", [f"person {number}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda name: make_key(path, name, "reader"), names))
    ring = KeyRing.open(path)
    assert [found.name for found in map(ring.find, made) if found] == names
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


def _memes(folder: Path) -> Path:
    for number in range(4):
        picture(folder / f"{number}.png")
    rows = [f"{number},{number}.png,x,{number % 2}\n" for number in range(4)]
    (folder / "train.csv").write_text("id,image,text,label\n" + "".join(rows))
    return folder


def test_the_same_import_twice_at_a_time_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _memes(tmp_path / "memes")
    monkeypatch.setattr(import_dataset, "_check_counts", _slowed(import_dataset._check_counts))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: imported("generic", folder, tmp_path / "out"), range(2)))
    assert [got.column("train", "id") for got in both] == [["0", "1", "2", "3"]] * 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["dataset.json", "rejected.jsonl", "train.jsonl", "train.parquet"]


def test_data_sets_that_are_written_at_the_same_time_are_all_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: Imported = imported("generic", _memes(tmp_path / "memes"), tmp_path / "data")
    monkeypatch.setattr(sharegpt_export, "_write_file", _slowed(sharegpt_export._write_file))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: write_sharegpt(got.folder, tmp_path / "sharegpt", name=name), ("a", "b", "c")))
    assert set(json.loads((tmp_path / "sharegpt" / "dataset_info.json").read_text())) == {"a", "b", "c"}


_WAITING = """
import sys, tempfile, time
from pathlib import Path
from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import atomic_path, new_folder

@app.command("wait")
def wait(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder), atomic_path(folder / "a"), new_folder(folder / "b"):
        print("ready", flush=True)
        time.sleep(60)

app()
"""


def test_sigterm_leaves_no_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", _WAITING, "wait", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert list((tmp_path / "out").iterdir()) == []


def test_a_caption_in_another_encoding_is_read_as_rows_are(served_clip: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    words = ["predict", "--checkpoint", str(served_clip / "head"), str(image), "--json", "--text"]
    latin, replaced, other = (
        json.loads(CliRunner().invoke(app, [*words, text]).stdout)
        for text in ("gr\udcf6sse", "gr\ufffdsse", "another caption")
    )
    assert latin["score"] == replaced["score"] != other["score"]
    assert latin["text"] == "gr\ufffdsse"


@pytest.mark.parametrize("option", ["--reason", "--author"])
def test_the_banks_log_refuses_what_is_not_utf_8(clip_bank: Path, option: str) -> None:
    words = ["bank", "rollback", str(clip_bank), "--to", "1", "--reason", "why", "--author", "me"]
    words[words.index(option) + 1] = "gr\udcf6sse"
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, option in done.output, "UTF-8" in done.output) == (2, True, True)
