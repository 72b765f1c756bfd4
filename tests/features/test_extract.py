"""Extraction: complete, resumable, and the same numbers however it is run."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from engines import BIN, child_env, run
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.resolve import resolve_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.checkpoint import open_backbone, open_run

pytestmark = pytest.mark.slow

COMMAND = [str(BIN / "ra-hmd"), "extract", "--workers", "0"]


@pytest.fixture(scope="module")
def reference(stage1_run: Path, memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Features:
    output = tmp_path_factory.mktemp("reference") / "a_train"
    extract_hidden_states(open_run(stage1_run), read_memes(memes / "a" / "train.jsonl"), output, num_workers=0)
    return read_features(output)


def assert_same(one: Features, other: Features, tolerance: float = 1e-4) -> None:
    assert one.ids == other.ids
    assert (one.labels == other.labels).all()
    for name in ("hidden", "embedding", "lrc_logit", "lmh_score"):
        assert np.abs(getattr(one, name) - getattr(other, name)).max() <= tolerance, name


def test_order_labels_and_shapes(reference: Features, memes: Path) -> None:
    expected = read_memes(memes / "a" / "train.jsonl")
    assert reference.ids == [meme.id for meme in expected]
    assert reference.labels.tolist() == [meme.label for meme in expected]
    assert reference.hidden.shape == (len(expected), 64)
    assert reference.embedding.shape == (len(expected), 32)
    assert reference.lrc_logit.shape == reference.lmh_score.shape == (len(expected), 1)


def test_training_and_extraction_give_the_same_scores(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    extract_hidden_states(open_run(stage1_run), read_memes(memes / "a" / "dev.jsonl"), tmp_path / "dev", num_workers=0)
    found = read_features(tmp_path / "dev")
    rows = dict(zip(found.ids, zip(found.lmh_score[:, 0], found.lrc_logit[:, 0], strict=True), strict=True))
    predicted = [json.loads(line) for line in (stage1_run / "predictions.jsonl").read_text().splitlines()]
    assert len(predicted) == len(found)
    for row in predicted:
        lmh, logit = rows[row["id"]]
        assert row["lmh_score"] == pytest.approx(lmh, abs=1e-4)
        assert row["lrc_score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 7, "shard_size": 10}, {"padding_side": "right"}, {"num_workers": 2}],
)
def test_results_do_not_depend_on_how(
    stage1_run: Path, memes: Path, reference: Features, tmp_path: Path, options: dict
) -> None:
    extract_hidden_states(
        open_run(stage1_run), read_memes(memes / "a" / "train.jsonl"), tmp_path / "f", **({"num_workers": 0} | options)
    )
    assert_same(read_features(tmp_path / "f"), reference)


def test_two_ranks(stage1_run: Path, memes: Path, reference: Features, tmp_path: Path) -> None:
    command = [
        str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone", "--no-python", *COMMAND,
        "--checkpoint", str(stage1_run), "--data", str(memes / "a"), "--output", "f", "--shard-size", "20",
    ]  # fmt: skip
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout
    assert_same(read_features(tmp_path / "f"), reference)


def test_killed_and_resumed(
    stage1_run: Path, memes: Path, reference: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        *COMMAND, "--checkpoint", str(stage1_run), "--data", str(memes / "a"), "--output", "f",
        "--shard-size", "5", "--batch-size", "5",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env=child_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "f").glob("part-*.parquet"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="is incomplete: run its `ra-hmd extract` command again"):
        read_features(tmp_path / "f")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "f").glob("part-*.parquet")}
    for name in kept:
        assert pq.read_table(tmp_path / "f" / name).num_rows == 5
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert {name: (tmp_path / "f" / name).stat().st_mtime_ns for name in kept} == kept
    assert_same(read_features(tmp_path / "f"), reference)


def test_another_source_is_refused(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    data = read_memes(memes / "a" / "dev.jsonl")
    extract_hidden_states(open_run(stage1_run), data, tmp_path / "f", num_workers=0)
    with pytest.raises(UserError, match="made from something else(?s:.*)adapter(?s:.*)head"):
        extract_hidden_states(open_run(stage1_run / "checkpoint-4"), data[:-1], tmp_path / "f")


def test_question_of_another_prompt_is_refused(memes: Path, tmp_path: Path) -> None:
    records = json.loads((memes / "confounders_a_dev.json").read_text())
    records[0]["messages"][0]["content"] = "<image> Is this funny?"
    (tmp_path / "x.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match="record 0: its question was not made by the prompt"):
        read_memes(tmp_path / "x.json")


def test_jsonl_is_split_at_line_ends_only(memes: Path, tmp_path: Path) -> None:
    image = next((memes / "a" / "img").iterdir())
    rows = [
        {"id": str(i), "img": str(image), "label": 0, "text": text} for i, text in enumerate(["a\u2028b", "c\x85d"])
    ]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    assert [meme.text for meme in read_memes(tmp_path / "x.jsonl")] == ["a\u2028b", "c\x85d"]
    (tmp_path / "x.jsonl").write_bytes(text.encode() + b"\n{broken")
    with pytest.raises(UserError, match="x.jsonl, line 3: not valid JSON"):
        read_memes(tmp_path / "x.jsonl")


def test_images_are_found_where_training_found_them(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    shutil.copy(memes / "confounders_a_dev.json", tmp_path / "x.json")
    assert Path(open_run(stage1_run).media_dir) == memes
    found = resolve_memes(str(tmp_path / "x.json"), "dev", PromptTemplate(), Answers(), media_dir=memes)
    assert all(meme.image.is_file() for meme in found)


def test_sharegpt_dataset_name_and_jsonl_are_the_same_memes(memes: Path) -> None:
    one = resolve_memes("confounders_a", "dev", PromptTemplate(), Answers(), memes)
    other = resolve_memes(str(memes / "a"), "dev", PromptTemplate(), Answers())
    assert [(m.id, m.text, m.label, m.image.name) for m in one] == [
        (m.id, m.text, m.label, m.image.name) for m in other
    ]
    with pytest.raises(UserError, match="has no data set nothing_dev"):
        resolve_memes("nothing", "dev", PromptTemplate(), Answers(), memes)


def test_unreadable_images_are_listed_before_the_model_is_loaded(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    shutil.copytree(memes / "a", tmp_path / "a")
    gone = read_memes(tmp_path / "a" / "dev.jsonl")[:2]
    for meme in gone:
        meme.image.unlink()
    with pytest.raises(UserError, match=r"Images that cannot be opened.*\(2\)"):
        extract_hidden_states(open_run(stage1_run), read_memes(tmp_path / "a" / "dev.jsonl"), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_truncated_image_is_named_without_a_traceback(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    shutil.copytree(memes / "a", tmp_path / "a")
    meme = read_memes(tmp_path / "a" / "dev.jsonl")[3]
    meme.image.write_bytes(meme.image.read_bytes()[:200])
    words = ["extract", "--checkpoint", str(stage1_run), "--data", str(tmp_path / "a"), "--split", "dev"]
    done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "f")])
    assert done.exit_code == 2
    assert f"Error: meme '{meme.id}': image" in done.output
    assert "Traceback" not in done.output


def test_backbone_only(tiny: object, memes: Path, tmp_path: Path) -> None:
    extract_hidden_states(
        open_backbone(str(tiny("qwen3_vl"))), read_memes(memes / "a" / "dev.jsonl"), tmp_path / "f", num_workers=0
    )
    found = read_features(tmp_path / "f")
    assert found.embedding is None
    assert found.lrc_logit is None
    assert found.hidden.shape[1] == 64
    assert ((found.lmh_score > 0) & (found.lmh_score < 1)).all()


def test_not_a_run(tmp_path: Path, tiny: object) -> None:
    with pytest.raises(UserError, match="is not a Stage 1 run.*--backbone-only"):
        open_run(tiny("qwen2_vl"))
    with pytest.raises(UserError, match="does not exist"):
        open_run(tmp_path / "none")
