"""Chunks of memes on a Ray cluster of two nodes: one is lost, another joins, and the files are those of one process."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from meme_files import imported
from ray_nodes import Nodes
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.manifests import AttackManifest, CheckManifest, read_manifest
from ra_hmd.data.meme_files import read_memes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path_factory.mktemp("ray"))
    try:
        cluster.add()
        cluster.add()
        yield cluster
    finally:
        cluster.stop()


def ra_hmd(*words: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, f"{words}\n{done.output}\n{done.exception!r}"
    return done.output


def test_a_node_is_lost_and_another_joins(served_clip: Path, memes: Path, tmp_path: Path, nodes: Nodes) -> None:
    given = read_memes(memes / "a" / "test.jsonl")
    rows = [
        {"id": f"{turn}-{meme.id}", "image": "gone.png" if number == 3 else str(meme.image), "text": meme.text}
        for turn in range(30)
        for number, meme in enumerate(given[:12])
    ]
    source = tmp_path / "many.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["predict", "--checkpoint", served_clip / "head", "--bank", served_clip / "bank", "--input", source,
             "--batch-size", "1"]  # fmt: skip
    ra_hmd(*words, "--output", tmp_path / "one.jsonl")

    def disturb() -> None:
        parts = tmp_path / "many.jsonl.out.parts"
        while len(list(parts.glob("chunk-*.jsonl"))) < 5:
            time.sleep(0.01)
        nodes.kill(nodes.added[0])
        nodes.add()

    other = threading.Thread(target=disturb, daemon=True)
    other.start()
    output = tmp_path / "many.jsonl.out"
    said = ra_hmd(*words, "--format", "jsonl", "--output", output, "--engine", "ray", "--ray-address", nodes.address)
    other.join(30)
    assert not other.is_alive(), "a node was killed"
    assert output.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    rejected = [Path(f"{path}.rejected.jsonl") for path in (output, tmp_path / "one.jsonl")]
    assert rejected[0].read_bytes() == rejected[1].read_bytes()
    assert "30 rows could not be judged" in said
    ids = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert ids == [row["id"] for row in rows if row["image"] != "gone.png"]


def test_checks_and_attacks_are_those_of_one_process(memes: Path, tmp_path: Path, nodes: Nodes) -> None:
    ray = ["--engine", "ray", "--ray-address", nodes.address]
    found = []
    for name, engine in (("one", []), ("two", ray)):
        data, attacked = tmp_path / name / "data", tmp_path / name / "attacked"
        imported("generic", memes / "a" / "test.jsonl", data)
        ra_hmd("data", "check", data, *engine)
        ra_hmd("attack", data, "--output", attacked, "--attacks", "typos", "colour", "--severities", "2", *engine)
        report = read_manifest(data / "check" / "report.json", CheckManifest)
        variants = read_manifest(attacked / "attack.json", AttackManifest).variants
        files = {
            path.relative_to(attacked).as_posix(): path.read_bytes().replace(str(tmp_path / name).encode(), b"")
            for path in attacked.rglob("*")
            if path.is_file() and path.suffix not in (".json", ".parquet")  # these hold absolute paths, compressed
        }
        found.append((report.rows, report.findings, variants, files))
    assert len(found[0][3]) > 10
    assert found[0] == found[1]


def test_what_does_not_go_with_ray(tmp_path: Path) -> None:
    ray = ["--engine", "ray", "--output", str(tmp_path / "output.jsonl")]
    for words, said in (
        (["predict", "--checkpoint", "run", "--queries", "store"], "--engine goes with --input, not with --queries"),
        (["attack", "data", "--white-box", "pgd", "--checkpoint", "run"], "leave --engine ray out"),
    ):
        assert said in CliRunner().invoke(app, [*words, *ray]).output
