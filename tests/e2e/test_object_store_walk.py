"""A walk whose pictures, data, stores and predictions are in an object store, against the same walk in folders."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meme_files import jsonl, picture
from object_stores import CREDENTIALS, upload_folder
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.storage import RemotePath, as_path
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.store import read_features
from ra_hmd.models.tiny_clip import make_tiny_encoder

ROWS = 24
pytestmark = pytest.mark.slow


def run(*words: str | Path, code: int = 0) -> str:
    """Run `ra-hmd`, and return what it prints."""
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, bucket: RemotePath) -> dict[str, Any]:
    """Results of both walks by the place of their data: `local` and `remote`."""
    work = tmp_path_factory.mktemp("walk")
    encoder = make_tiny_encoder("clip", work / "encoder")
    local = work / "data"
    for split in ("train", "dev_seen"):
        rows = []
        for number in range(ROWS):
            name = f"img/{split}{number}.png"
            picture(local / name)
            rows.append({"id": f"{split}{number}", "image": name, "text": f"words {number}", "label": number % 2})
        jsonl(local / f"{split}.jsonl", rows)
    upload_folder(local, bucket / "data")
    results: dict[str, Any] = {"work": work, "bucket": bucket, "encoder": encoder}
    for name, data, stores in (("local", local, work / "stores"), ("remote", bucket / "data", bucket / "stores")):
        results[name] = walk(work / name, encoder, data, stores)
    return results


def walk(folder: Path, encoder: Path, data: Path, stores: Path) -> dict[str, Any]:
    folder.mkdir()
    for split in ("train", "dev_seen"):
        run(
            *("encode", "--encoder", encoder, "--data", data, "--split", split, "--output", stores / split),
            *("--shard-size", 10, "--workers", 2),
        )
    (folder / "head.yaml").write_text("epochs: 2\nbatch_size: 8\nproj_dim: 16\nseed: 0\n")
    head, bank = folder / "head", stores.parent / f"bank-{folder.name}"
    run(
        *(
            "train-head",
            folder / "head.yaml",
            f"train={stores / 'train'}",
            f"dev={stores / 'dev_seen'}",
            f"output_dir={head}",
        ),
    )
    run(
        *("evaluate", "--checkpoint", head, "--bank", stores / "train", "--queries", stores / "dev_seen"),
        *("--output", folder / "report", "--bootstrap-samples", 100),
    )
    run("bank", "create", bank, "--checkpoint", head, "--features", stores / "train")
    output = (stores.parent if isinstance(stores, RemotePath) else folder) / "verdicts.jsonl"
    run(
        *(
            "predict",
            "--checkpoint",
            head,
            "--bank",
            bank,
            "--input",
            data / "dev_seen.jsonl",
            "--output",
            output,
        ),
    )
    return {"folder": folder, "data": data, "stores": stores, "output": output}


def without_origin(verdict: dict[str, Any]) -> dict[str, Any]:
    """A verdict without place and time of its neighbours, which differ between the walks."""
    neighbours = [{**one, "source": "", "time": ""} for one in verdict["neighbours"]]
    return {**verdict, "neighbours": neighbours}


def test_stores_are_the_same_wherever_they_are(walked: dict[str, Any]) -> None:
    for split in ("train", "dev_seen"):
        ours, theirs = (read_features(walked[name]["stores"] / split) for name in ("local", "remote"))
        assert ours.ids == theirs.ids
        np.testing.assert_array_equal(ours.hidden, theirs.hidden)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert (ours.contents, ours.pdqs, ours.texts) == (theirs.contents, theirs.pdqs, theirs.texts)


def test_what_is_trained_measured_and_predicted_is_the_same(walked: dict[str, Any]) -> None:
    local, remote = walked["local"], walked["remote"]
    metrics = [json.loads((one["folder"] / "report" / "metrics.json").read_text()) for one in (local, remote)]
    assert metrics[0] == metrics[1]
    verdicts = [[without_origin(json.loads(line)) for line in one["output"].read_text().splitlines()]
                for one in (local, remote)]  # fmt: skip
    assert verdicts[0] == verdicts[1]
    manifest = json.loads((walked["bucket"] / "verdicts.jsonl.manifest.json").read_text())
    assert manifest["judged"] == ROWS
    assert not (walked["bucket"] / "verdicts.jsonl.parts").exists()


def test_nothing_of_a_url_became_a_local_folder_and_no_secret_was_written(walked: dict[str, Any]) -> None:
    files = [path for path in walked["work"].rglob("*") if path.is_file()]
    assert not [path for path in walked["work"].rglob("*") if path.name.startswith(("s3:", "gs:"))]
    written = [path.read_bytes() for path in files if path.suffix in (".json", ".jsonl", ".yaml", ".md", ".html")]
    written += [as_path(walked["bucket"] / name).read_bytes() for name in walked["bucket"].files_below()]
    secrets = [secret.encode() for secret in CREDENTIALS.values()]
    assert not [content for content in written for secret in secrets if secret in content]
    described = json.loads((walked["remote"]["folder"] / "head" / "ra_hmd.json").read_text())
    assert str(walked["bucket"] / "stores" / "train") in json.dumps(described)


def test_a_replaced_picture_is_encoded_again_and_nothing_else(walked: dict[str, Any]) -> None:
    data, store = walked["remote"]["data"], walked["remote"]["stores"] / "dev_seen"
    first = read_memes(data / "dev_seen.jsonl")[0]
    other = read_memes(data / "dev_seen.jsonl")[1]
    before = {path.name: path.version() for path in store.glob("part-*.parquet")}
    old = first.path.read_bytes()
    run_again = (
        *("encode", "--encoder", walked["encoder"], "--data", data, "--split", "dev_seen", "--output", store),
        *("--shard-size", 10),
    )
    try:
        replacement = walked["work"] / "replacement"
        replacement.write_bytes(other.path.read_bytes())
        first.path.upload(replacement)  # type: ignore[attr-defined]
        run(*run_again)
        after = {path.name: path.version() for path in store.glob("part-*.parquet")}
        assert {name for name in before if before[name] != after[name]} == {"part-00000.parquet"}
    finally:
        replacement.write_bytes(old)
        first.path.upload(replacement)  # type: ignore[attr-defined]
    run(*run_again)
    np.testing.assert_array_equal(
        read_features(store).hidden, read_features(walked["local"]["stores"] / "dev_seen").hidden
    )


def test_a_missing_picture_is_named_before_a_model_is_opened(walked: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"id": "1", "image": f"{walked['bucket']}/none.png", "text": "a", "label": 0}) + "\n")
    output = run(
        *("encode", "--encoder", walked["encoder"], "--data", data, "--output", walked["bucket"] / "none"), code=2
    )
    assert f"{walked['bucket']}/none.png is missing" in output
    assert not (walked["bucket"] / "none").exists()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in output
