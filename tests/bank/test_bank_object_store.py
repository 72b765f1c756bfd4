"""Banks on an object store: what a folder gives, with writers that only conditional writes keep apart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_banks import SAID, make_rows
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import atomic_path
from ra_hmd.core.errors import UserError
from ra_hmd.retrieval.embeddings import Embeddings

RNG = np.random.default_rng(0)
EMBEDDING = RNG.standard_normal((40, 8)).astype(np.float32)
QUERIES = Embeddings(["q", "r"], np.zeros(2, int), RNG.standard_normal((2, 8)).astype(np.float32))


def rows_of(numbers):
    return make_rows([f"m{number}" for number in numbers], [number % 2 for number in numbers])


def filled(place) -> Bank:
    bank = Bank.create(place, rows_of(range(30)), EMBEDDING[:30], fingerprint={}, **SAID)
    bank.add(rows_of(range(30, 40)), EMBEDDING[30:], **SAID)
    bank.remove(["m3"], **SAID)
    bank.relabel({"m4": 1 - int(bank.labels[bank.ids.index("m4")])}, **SAID)
    bank.rollback(2, author="other", reason="again")
    return bank


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_bank_on_an_object_store_is_that_of_a_folder(bucket, tmp_path):
    here, there = filled(tmp_path / "bank"), filled(bucket / "a" / "bank")
    again = Bank.open(f"{bucket}/a/bank")
    for bank in (there, again):
        assert bank.ids == here.ids
        assert bank.labels.tolist() == here.labels.tolist()
        found, expected = bank.nearest(QUERIES, 5), here.nearest(QUERIES, 5)
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.similarity.tolist() == expected.similarity.tolist()
        assert [(entry.author, entry.action) for entry in bank.log] == [(one.author, one.action) for one in here.log]
    assert again.info()["bytes"] > 0
    again.add(rows_of(range(50, 51)), EMBEDDING[:1], **SAID)
    assert there.newest() == there.version + 1
    assert there.refresh() == again.version
    assert "m50" in there.ids


def test_commands_take_the_address_of_a_bank(bucket):
    filled(bucket / "b" / "bank").close()
    place = f"{bucket}/b/bank"
    done = CliRunner().invoke(app, ["bank", "remove", place, "m7", "--author", "cli", "--reason", "cut off"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["bank", "log", place, "--json"])
    entries = json.loads(done.output)
    assert [entry["author"] for entry in entries][-2:] == ["other", "cli"]


def test_the_index_of_a_bank_on_an_object_store_is_kept_on_this_machine(bucket, tmp_path):
    Bank.create(bucket / "ivf", rows_of(range(40)), EMBEDDING, fingerprint={}, index="ivf", **SAID).info()
    assert len(list((tmp_path / "cache").rglob("*.faiss"))) == 1
    assert {path.name for path in (bucket / "ivf").iterdir()} == {"ra_hmd.json", "versions"}


def test_nothing_is_a_bank_where_no_manifest_is(bucket):
    with pytest.raises(UserError, match="is not an example bank"):
        Bank.open(f"{bucket}/nothing")


@pytest.mark.slow
def test_two_writers_on_an_object_store_lose_no_update(bucket):
    script = Path(__file__).with_name("bank_processes.py")
    command = [sys.executable, "-W", "ignore", str(script), "writers", f"{bucket}/both", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["versions"] == list(range(2, 14))
    assert result["version"] == 13


def test_an_object_that_is_there_is_not_replaced_by_an_exclusive_write(bucket, tmp_path):
    for folder in (bucket, tmp_path):
        with atomic_path(folder / "one", exclusive=True) as path:
            path.write_text("first")
        with pytest.raises(FileExistsError), atomic_path(folder / "one", exclusive=True) as path:
            path.write_text("second")
        assert (folder / "one").read_text() == "first"
    (tmp_path / "same").write_text("first")
    (bucket / "one").upload(tmp_path / "same", exclusive=True)  # a request that was sent twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "same"]
