"""`ra-hmd data import` itself: validation, duplicates, resuming, what is written, and its command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_copies import TEXTS, hateful_memes, multioff
from engines import BIN, child_env, run
from meme_files import Imported, imported, jsonl, picture, table
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data import import_dataset
from ra_hmd.data.import_dataset import ImportOptions, import_data
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.readers import READERS, get_reader
from ra_hmd.data.resolve import resolve_memes


def own(root: Path, rows: list[dict[str, object]]) -> Path:
    """Rows of one's own, each with a picture."""
    for row in rows:
        if not (root / str(row["image"])).exists():
            picture(root / str(row["image"]))
    jsonl(root / "train.jsonl", rows)
    return root


def many(count: int) -> list[dict[str, object]]:
    return [
        {"id": f"m{i}", "image": f"p/{i % 40}.png", "text": f"{TEXTS[i % 4]} {i}", "label": i % 2} for i in range(count)
    ]


def test_an_import_is_read_by_the_rest_of_the_toolkit(tmp_path: Path) -> None:
    imported("multioff", multioff(tmp_path / "copy"), tmp_path / "out")
    memes = resolve_memes(str(tmp_path / "out"), "val", PromptTemplate(), Answers())
    assert [(meme.id, meme.text, meme.raw_text, meme.label, meme.split) for meme in memes] == [
        ("x101.jpg.png", "coffee is ready , 101", "coffee is ready , 101 ", 1, "val"),
        ("x102.jpg.png", "rain again on monday , 102", "rain again on monday , 102 ", 0, "val"),
        ("x103.jpg.png", "the sea is calm today , 103", "the sea is calm today , 103 ", 1, "val"),
        ("x104.jpg.png", "a cat reads the news , 104", "a cat reads the news , 104 ", 0, "val"),
    ]
    assert memes[0].extras == {"label": "offensive"}
    assert [row for _, row in open_data(tmp_path / "out").rows("val")] == read_memes(tmp_path / "out" / "val.jsonl")


def test_rows_that_cannot_be_records_are_rejected_with_place_and_reason(tmp_path: Path) -> None:
    rows = many(9)
    rows[1] |= {"label": "maybe"}
    rows[2] |= {"image": "gone.png"}
    rows[4] |= {"id": "m3"}
    rows[5] |= {"id": " "}
    rows[6] |= {"text": None}
    rows[7] |= {"image": "note.png"}
    root = own(tmp_path / "mine", rows)
    (root / "gone.png").unlink()
    (root / "note.png").write_text("no picture")
    with (root / "train.jsonl").open("a") as file:
        file.write("{oops\n[1]\n")
    data = imported("generic", root, tmp_path / "out")
    assert data.column("train", "id") == ["m0", "m3", "m8"]
    assert [(row["place"], row["id"], row["reason"].split(":")[0]) for row in data.rejected] == [
        ("train.jsonl, line 2", None, "label 'maybe' is no class index; say what it means, e.g. --labels maybe=1"),
        ("train.jsonl, line 3", "m2", "image missing"),
        ("train.jsonl, line 5", "m3", "id came before in its split"),
        ("train.jsonl, line 6", " ", "its id is empty"),
        ("train.jsonl, line 7", None, "its text is None, a text is needed"),
        ("train.jsonl, line 8", "m7", "not an image"),
        ("train.jsonl, line 10", None, "not valid JSON"),
        ("train.jsonl, line 11", None, "a list stands where an object is needed"),
    ]
    assert data.manifest["rejected"] == {"train": 8}


def test_no_usable_row_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    root = own(tmp_path / "mine", [{"id": "a", "image": "a.png", "text": "tea", "label": "x"}])
    with pytest.raises(UserError, match="no images|no row|No images"):
        imported("generic", root, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_the_same_import_twice_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    root = own(tmp_path / "mine", many(5))
    first = imported("generic", root, tmp_path / "out").manifest
    assert imported("generic", root, tmp_path / "out").manifest == first
    with pytest.raises(UserError, match="holds another import"):
        imported("generic", root, tmp_path / "out", options=ImportOptions("raw"))
    own(tmp_path / "mine", many(6))
    with pytest.raises(UserError, match="holds another import"):
        imported("generic", root, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no import"):
        imported("generic", root, tmp_path / "full")


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_dataset, "_CHUNK", 7)
    root = own(tmp_path / "mine", many(100))
    import_data(get_reader("generic"), root, tmp_path / "one")
    import_data(get_reader("generic"), root, tmp_path / "two", workers=2)
    assert (tmp_path / "one" / "train.jsonl").read_bytes() == (tmp_path / "two" / "train.jsonl").read_bytes()
    assert len(Imported(tmp_path / "one").rows["train"]) == 100


def test_a_stopped_import_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_dataset, "_CHUNK", 10)
    root = own(tmp_path / "mine", many(100))
    import_data(get_reader("generic"), root, tmp_path / "whole")
    looked: list[str] = []
    original = import_dataset._problem

    def stop_after(limit: int) -> None:
        def problem(meme: object) -> str:
            looked.append(meme.id)
            if len(looked) > limit:
                raise KeyboardInterrupt
            return original(meme)

        looked.clear()
        monkeypatch.setattr(import_dataset, "_problem", problem)

    stop_after(45)
    with pytest.raises(KeyboardInterrupt):
        import_data(get_reader("generic"), root, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    stop_after(1000)
    import_data(get_reader("generic"), root, tmp_path / "out")
    assert looked == [f"m{i}" for i in range(40, 100)]
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()
    assert not (tmp_path / "out" / ".import").exists()


def test_a_stopped_import_looks_again_for_images_that_were_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_dataset, "_CHUNK", 10)
    root = own(tmp_path / "mine", many(30))
    name = str(many(30)[0]["image"])
    content = (root / name).read_bytes()
    (root / name).write_bytes(b"half")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(import_dataset, "_merge", stop)
        with pytest.raises(KeyboardInterrupt):
            import_data(get_reader("generic"), root, tmp_path / "out")
    (root / name).write_bytes(content)
    data = import_data(get_reader("generic"), root, tmp_path / "out")
    assert (data.manifest.splits, data.manifest.rejected) == ({"train": 30}, {})


def test_chunks_of_another_import_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_dataset, "_CHUNK", 10)
    root = own(tmp_path / "mine", many(30))
    merge = import_dataset._merge

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_dataset, "_merge", stop)
    with pytest.raises(KeyboardInterrupt):
        import_data(get_reader("generic"), root, tmp_path / "out")
    monkeypatch.setattr(import_dataset, "_merge", merge)
    own(root, [row | {"text": f"new {row['id']}"} for row in many(30)])
    import_data(get_reader("generic"), root, tmp_path / "out")
    assert Imported(tmp_path / "out").column("train", "text")[:2] == ["new m0", "new m1"]


@pytest.fixture
def killed(tmp_path: Path) -> list[str]:
    """A command that imports 60,000 rows with two workers."""
    for i in range(40):
        picture(tmp_path / "mine" / "p" / f"{i}.png")
    rows = (json.dumps(row) for row in many(60_000))
    (tmp_path / "mine" / "train.jsonl").write_text("\n".join(rows))
    return [str(BIN / "ra-hmd"), "data", "import", "generic", "mine", "--output", "out", "--workers", "2"]


@pytest.mark.slow
def test_kill_minus_nine_loses_nothing(killed: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(
        killed,
        cwd=tmp_path,
        env=child_env(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while len(list((tmp_path / "out" / ".import").glob("chunk-*.jsonl"))) < 4:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".import").glob("chunk-*.jsonl")}
    assert 4 <= len(kept) < 30
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".import"]
    for _ in range(2):  # the second time there is nothing to do
        done = run(killed, tmp_path)
        assert done.returncode == 0, done.stdout
        assert "  train: 60000 memes" in done.stdout
    ids = Imported(tmp_path / "out").column("train", "id")
    assert ids == [f"m{i}" for i in range(60_000)]


def test_bad_annotation_files_are_an_error_with_the_place(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    (root / "train.jsonl").write_bytes((root / "train.jsonl").read_bytes() + b'\n{"id": 9, "text": "\xff\xfe"}')
    with pytest.raises(UserError, match=r"train\.jsonl is not UTF-8"):
        imported("hateful_memes", root, tmp_path / "out")


def test_the_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["data", "import", *arguments, "--output", str(tmp_path / "out")])
        assert done.exit_code == 2
        return " ".join(done.stderr.split())

    assert "There is no reader 'facebook'; there are hateful_memes, harm_c" in said("facebook", str(tmp_path))
    assert "is not a folder; give the one that MAMI" in said("mami", str(tmp_path / "gone"))
    assert "No files of PrideMM below" in said("pridemm", str(tmp_path))
    assert "--columns 'id': write name=value" in said("generic", str(tmp_path), "--columns", "id")
    assert "--labels 'yes=two': the right side is a class index" in said(
        "generic", str(tmp_path), "--labels", "yes=two"
    )
    assert "--columns: only for 'generic' data" in said("mami", str(tmp_path), "--columns", "id=key")
    (tmp_path / "img.tar.gz").write_bytes(b"")
    assert "Unpack img.tar.gz" in said("harm_c", str(tmp_path))


def test_reserved_split_names_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    jsonl(tmp_path / "mine" / "rejected.jsonl", [{"id": "a", "image": "a.png", "text": "tea", "label": 0}])
    with pytest.raises(UserError, match="cannot be named 'rejected'"):
        imported("generic", tmp_path / "mine", tmp_path / "out")


def test_val_fraction_is_refused_where_rows_name_a_dev_split(tmp_path: Path) -> None:
    table(tmp_path / "mine" / "all.csv", "image,text,label,split\na.png,tea,0,train\nb.png,tea,1,val\n")
    for name in ("a", "b"):
        picture(tmp_path / "mine" / f"{name}.png")
    with pytest.raises(UserError, match="has a dev split of its own, 'val'"):
        imported("generic", tmp_path / "mine", tmp_path / "out", options=ImportOptions(val_fraction=0.5))


def test_list_names_every_data_set_and_its_counts() -> None:
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["data", "list"])
    assert done.exit_code == 0
    for name in READERS:
        assert name in done.stdout
    for text in (
        "train 8500 (5481/3019)",
        "test 149 (91/58)",
        "train 687",
        "trial 100",
        "humour",
        "Zenodo",
        "CC BY 4.0",
    ):
        assert text in done.stdout


def test_the_manifest_tells_where_everything_came_from(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    manifest = imported("hateful_memes", root, tmp_path / "out").manifest
    assert manifest["kind"] == "dataset"
    assert manifest["dataset"] == "hateful_memes"
    assert manifest["layout"] == "phase 2, integer ids"
    assert manifest["root"] == str(root)
    assert [Path(path).name for path in manifest["files"]] == ["train.jsonl", "dev_seen.jsonl", "test_seen.jsonl"]
    assert all(len(digest) == 64 for digest in manifest["files"].values())
    assert manifest["options"] == {"text": "single_line", "val_fraction": 0.0, "seed": 0}
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
