"""The public Python API: imported lazily, typed, and documented by a page that runs as it stands."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from documented import blocks
from engines import ROOT, run
from typer.testing import CliRunner

import ra_hmd
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes

NAMES = {"Bank", "Detector", "Features", "Meme", "Verdict", "create_bank", "evaluate", "extract"}


def test_import_is_light(tmp_path: Path) -> None:
    script = "import sys, ra_hmd; print(len(sys.modules), *sorted({name.split('.')[0] for name in sys.modules}))"
    count, *loaded = run([sys.executable, "-I", "-c", "import sys; print(len(sys.modules))"], tmp_path).stdout.split()
    bare = int(count)
    count, *loaded = run([sys.executable, "-c", script], tmp_path).stdout.split()
    assert int(count) < bare + 60
    assert {"torch", "numpy", "transformers", "pydantic", "typer", "PIL"}.isdisjoint(loaded)


def test_names_are_public_and_lazy() -> None:
    assert set(ra_hmd.__all__) == NAMES | {"__version__"}
    assert set(dir(ra_hmd)) >= NAMES
    assert ra_hmd.Meme is Meme
    with pytest.raises(AttributeError, match="Unknown"):
        _ = ra_hmd.Unknown
    from ra_hmd import api

    assert set(api.__all__) == NAMES
    stub = (ROOT / "ra_hmd" / "__init__.pyi").read_text(encoding="utf-8")
    assert all(f"import {name} as {name}\n" in stub for name in NAMES)
    assert (ROOT / "ra_hmd" / "py.typed").is_file()


def test_a_meme_needs_a_file_or_a_caption_only_where_they_are_used(memes: Path) -> None:
    known = read_memes(memes / "a" / "dev.jsonl")[0]
    assert Meme("x", str(known.path)).path == known.path
    in_memory = Meme("x", known.path.read_bytes())
    assert in_memory.load_image().size == known.load_image().size
    with pytest.raises(ValueError, match="'x' has its image in memory"):
        _ = in_memory.path
    with pytest.raises(ValueError, match="'x' has no caption"):
        _ = in_memory.caption


def test_the_page_runs_as_it_stands(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    for name, target in (("RUN", "head"), ("BANK", "bank"), ("ENCODER", "clip")):
        shutil.copytree(served_clip / target, tmp_path / name)
    rows = read_memes(memes / "b" / "train.jsonl")[:8]
    shutil.copy(rows[0].path, tmp_path / "cat.png")
    with (tmp_path / "memes.jsonl").open("w", encoding="utf-8") as file:
        for meme in rows:
            row = {"id": f"new-{meme.id}", "image": str(meme.path), "text": meme.text, "label": meme.label}
            file.write(json.dumps(row) + "\n")
    found = blocks("python", ("docs/python.md",))
    assert len(found) == 6
    with contextlib.chdir(tmp_path):
        for block in found:
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {})
    assert (tmp_path / "report" / "report.md").is_file()


def test_memes_are_added_to_the_bank_of_a_detector(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(served_clip / "bank", tmp_path / "bank"))
    detector = ra_hmd.Detector.from_run(served_clip / "head", folder, device="cpu")
    rows = read_memes(memes / "b" / "train.jsonl")[:4]
    before = detector(rows)
    entry = detector.add_to_bank(rows, author="ana", reason="a new trend", source="notebook")
    assert (entry.action, entry.author, entry.reason, entry.counts["added"]) == ("add", "ana", "a new trend", 4)
    assert detector.version["bank"]["version"] == entry.version
    after = detector(rows)
    assert [one.identical for one in before] == [None] * 4
    assert [(one.identical or {})["id"] for one in after] == [meme.id for meme in rows]
    assert [one.verdict for one in after] == [meme.label for meme in rows]
    with ra_hmd.Bank.open(folder) as bank:
        row = bank.row(bank.ids.index(rows[0].id))
    assert row["source"] == "notebook"
    assert row["image_hash"]
    with pytest.raises(UserError, match="The new memes: 1 of 1 rows have no label"):
        detector.add_to_bank([Meme("new", rows[0].path, "a caption")], author="ana", reason="none")
    with pytest.raises(UserError, match="Only an example bank can be changed"):
        ra_hmd.Detector.from_run(served_clip / "head", device="cpu").add_to_bank(rows, author="ana", reason="none")


def test_a_bank_is_created_as_the_command_creates_it(served_clip: Path, tmp_path: Path) -> None:
    head, features = served_clip / "head", served_clip / "features" / "train"
    with ra_hmd.create_bank(tmp_path / "one", head, features, author="ana", reason="first", views=["hidden"]) as bank:
        assert (bank.version, list(bank.views), bank.log[0].author) == (1, ["hidden"], "ana")
        command = ["bank", "create", str(tmp_path / "two"), "--checkpoint", str(head), "--features", str(features)]
        done = CliRunner().invoke(app, [*command, "--views", "hidden"])
        assert done.exit_code == 0, done.output
        with ra_hmd.Bank.open(tmp_path / "two") as other:
            assert other.ids == bank.ids
            assert other.fingerprint == bank.fingerprint
