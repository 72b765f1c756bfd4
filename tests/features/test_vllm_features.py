"""`extract` and `predict` by a vLLM server: the same rows and verdicts, whatever happens to the servers."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from vllm_server import PoolingModel, VllmServer, vllm_server

from ra_hmd.cli.app import app
from ra_hmd.features.store import STORE_MANIFEST, Features, read_features
from ra_hmd.models.checkpoint import open_run


@pytest.fixture(scope="module")
def model(served_lmm: Path) -> PoolingModel:
    run = open_run(served_lmm / "run")
    return PoolingModel(run.base_model, run.adapter)


@pytest.fixture
def serve(model: PoolingModel) -> Iterator[Callable[..., VllmServer]]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(vllm_server(model, **settings))


def command(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


def extract(served_lmm: Path, memes: Path, output: Path, *servers: VllmServer) -> tuple[int, str]:
    return command("extract", "--checkpoint", served_lmm / "run", "--data", memes / "a", "--split", "test", "--output",
                   output, "--workers", "0", "--batch-size", "4", "--shard-size", "8", "--backend", "vllm",
                   "--engine-url", ",".join(one.url for one in servers), "--engine-timeout", "20")  # fmt: skip


def assert_same(found: Features, expected: Features) -> None:
    assert found.ids == expected.ids
    for name in ("hidden", "embedding", "lrc_logit", "lmh_score"):
        assert np.abs(getattr(found, name) - getattr(expected, name)).max() < 1e-4, name


def test_a_dead_server_is_replaced_and_a_dead_fleet_is_gone_on_from(
    served_lmm: Path, memes: Path, serve: Callable[..., VllmServer], tmp_path: Path
) -> None:
    expected = read_features(served_lmm / "features" / "test")
    dying = serve(misbehave=lambda number: "die" if number >= 6 else None)
    assert extract(served_lmm, memes, tmp_path / "fleet", dying, serve())[0] == 0
    assert_same(read_features(tmp_path / "fleet"), expected)

    last = serve(misbehave=lambda number: "die" if number >= 18 else None)
    code, said = extract(served_lmm, memes, tmp_path / "alone", last)
    assert code == 2
    assert "No vLLM server answers" in said
    assert "goes on from there" in said
    again = serve()
    assert extract(served_lmm, memes, tmp_path / "alone", again)[0] == 0
    assert len(again.bodies) == 1 + len(expected) - 16  # a drawn picture, and the shards that were missing
    assert_same(read_features(tmp_path / "alone"), expected)


def test_a_store_says_which_engine_made_it_and_has_one(
    served_lmm: Path, memes: Path, serve: Callable[..., VllmServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert extract(served_lmm, memes, tmp_path / "store", serve())[0] == 0
    written = (tmp_path / "store" / STORE_MANIFEST).read_text()
    assert json.loads(written)["fingerprint"]["engine"] == "vllm 0.33.0"
    assert "127.0.0.1" not in written
    code, said = extract(served_lmm, memes, tmp_path / "store", serve(version="0.34.0"))
    assert code == 2
    assert "engine" in said
    with caplog.at_level(logging.WARNING):
        code, said = command("predict", "--checkpoint", served_lmm / "run", "--bank", served_lmm / "features" / "train",
                             "--queries", tmp_path / "store", "--head", "rkc",
                             "--output", tmp_path / "rows.jsonl")  # fmt: skip
    assert code == 0, said
    assert "by vllm 0.33.0" in caplog.text
    assert "hidden states of two engines differ by rounding" in caplog.text


def test_verdicts_are_the_same(served_lmm: Path, memes: Path, serve: Callable[..., VllmServer], tmp_path: Path) -> None:
    server = serve()
    rows = {}
    for backend, more in (("transformers", []), ("vllm", ["--backend", "vllm", "--engine-url", server.url])):
        output = tmp_path / f"{backend}.jsonl"
        code, said = command("predict", "--checkpoint", served_lmm / "run", "--bank", served_lmm / "bank", "--input",
                             memes / "a" / "test.jsonl", "--output", output, *more)  # fmt: skip
        assert code == 0, said
        rows[backend] = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(server.bodies) > 1
    for found, expected in zip(rows["vllm"], rows["transformers"], strict=True):
        assert (found["id"], found["verdict"]) == (expected["id"], expected["verdict"])
        assert set(found["scores"]) == {"lmh", "lrc", "rkc", "krr"}
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    manifest = json.loads((tmp_path / "vllm.jsonl.manifest.json").read_text())
    assert manifest["arguments"]["engine"] == "vllm 0.33.0"


def test_an_encoders_head_has_no_vllm(served_clip: Path, memes: Path) -> None:
    code, said = command("predict", "--checkpoint", served_clip / "head", "--backend", "vllm", "--engine-url",
                         "http://127.0.0.1:9", next((memes / "a").rglob("*.png")))  # fmt: skip
    assert code == 2
    assert "is of an encoder, which vLLM does not run" in " ".join(said.split())
