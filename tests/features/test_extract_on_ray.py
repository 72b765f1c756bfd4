"""Extraction on a Ray cluster: a node is lost and another joins, a driver was stopped before."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from ray_nodes import Nodes

from ra_hmd.core import writer_lock
from ra_hmd.core.errors import UserError
from ra_hmd.core.workers import WorkerSettings
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_backbone

pytestmark = pytest.mark.slow
ROWS = 40


@pytest.fixture
def nodes(tmp_path_factory):
    pytest.importorskip("ray")
    nodes = Nodes(tmp_path_factory.mktemp("r"))
    yield nodes
    nodes.stop()


def extract(tiny, memes, output: Path, engine: WorkerSettings | None = None):
    rows = read_memes(memes / "a" / "train.jsonl")[:ROWS]
    run = open_backbone(str(tiny("qwen2_vl")))
    extract_hidden_states(run, rows, output, shard_size=1, num_workers=0, engine=engine)
    return read_features(output)


def test_a_store_is_that_of_one_process_where_the_only_node_is_lost_and_another_joins(nodes, tiny, memes, tmp_path):
    expected = extract(tiny, memes, tmp_path / "local")
    store, lost = tmp_path / "store", []
    shutil.copytree(tmp_path / "local", store)  # as a driver that was stopped leaves it
    parts = sorted(store.glob("part-*.parquet"))
    kept = {part: part.stat().st_mtime_ns for part in parts[:3]}
    for part in parts[3:]:
        part.unlink()

    def lose_a_node():
        while not 5 < len(list(store.glob("part-*.parquet"))) < ROWS:
            time.sleep(0.005)
        nodes.kill(first)
        lost.append(len(list(store.glob("part-*.parquet"))))
        nodes.add()

    first = nodes.add()
    threading.Thread(target=lose_a_node, daemon=True).start()
    found = extract(tiny, memes, store, WorkerSettings(engine="ray", ray_address=nodes.address))
    assert lost
    assert lost[0] < ROWS  # the node that joined has made the others
    assert len(set(found.ids)) == ROWS
    assert found.content == expected.content
    assert found.manifest.fingerprint == expected.manifest.fingerprint
    assert kept == {part: part.stat().st_mtime_ns for part in kept}
    assert not list(store.glob(".part-*"))  # what the lost node had begun to write


def test_a_second_writer_of_a_store_is_refused(tiny, memes, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "_PATIENCE_S", 0.1)
    (tmp_path / "store").mkdir()
    with FileLock(tmp_path / "store" / ".writer.lock"), pytest.raises(UserError, match="Another process writes"):
        extract(tiny, memes, tmp_path / "store")
