"""Extraction on a Ray cluster: nodes are lost and join, drivers are stopped and started again."""

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


def test_the_store_is_that_of_one_process_also_where_a_node_is_lost_and_another_joins(nodes, tiny, memes, tmp_path):
    expected = extract(tiny, memes, tmp_path / "local")
    store, lost = tmp_path / "store", []

    def lose_a_node():
        while not 1 < len(list(store.glob("part-*.parquet"))) < ROWS:
            time.sleep(0.005)
        nodes.kill(first)
        lost.append(len(list(store.glob("part-*.parquet"))))
        nodes.add()

    first = nodes.add()
    threading.Thread(target=lose_a_node, daemon=True).start()
    engine = WorkerSettings(engine="ray", ray_address=nodes.address)
    found = extract(tiny, memes, store, engine)
    assert lost
    assert lost[0] < ROWS  # the node that joined has made the others
    assert len(set(found.ids)) == ROWS
    assert found.content == expected.content
    assert found.manifest.fingerprint == expected.manifest.fingerprint
    assert not list(store.glob(".part-*"))  # what the lost node had begun to write

    parts = sorted(store.glob("part-*.parquet"))
    written = {part: part.stat().st_mtime_ns for part in parts[2:]}
    for part in parts[:2]:
        part.unlink()
    again = extract(tiny, memes, store, engine)  # as after a driver that was stopped
    assert again.content == expected.content
    assert written == {part: part.stat().st_mtime_ns for part in parts[2:]}


def test_a_second_writer_of_a_store_is_refused(tiny, memes, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "_PATIENCE_S", 0.1)
    (tmp_path / "store").mkdir()
    with FileLock(tmp_path / "store" / ".writer.lock"), pytest.raises(UserError, match="Another process writes"):
        extract(tiny, memes, tmp_path / "store")
