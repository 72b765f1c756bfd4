"""`ra-hmd encode`: complete, resumable, the same numbers however it is run, and nothing mixed that must not be."""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from engines import BIN, child_env, run
from meme_files import imported, jsonl, picture
from PIL import Image
from typer.testing import CliRunner, Result

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.compatibility import check_same_origin, store_fingerprint
from ra_hmd.features.extract_clip import encode
from ra_hmd.features.store import Features, FeatureWriter, read_features
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.clip_encoder import Encoder, EncoderSettings
from ra_hmd.models.tiny_clip import make_tiny_encoder

pytestmark = pytest.mark.slow

ALTCLIP_WIDTHS = (128, 64)


@pytest.fixture(scope="module")
def altclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder("altclip", tmp_path_factory.mktemp("encoder") / "altclip")


@pytest.fixture(scope="module")
def train(memes: Path) -> list[Meme]:
    return read_memes(memes / "a" / "train.jsonl", split="train")


@pytest.fixture(scope="module")
def reference(altclip: Path, train: list[Meme], tmp_path_factory: pytest.TempPathFactory) -> Features:
    output = tmp_path_factory.mktemp("reference") / "train"
    encode(Encoder(EncoderSettings(path=str(altclip))), train, output, split="train", num_workers=0)
    return read_features(output)


def command(*words: str) -> Result:
    return CliRunner().invoke(app, ["encode", *words])


def assert_same(one: Features, other: Features, tolerance: float = 1e-5) -> None:
    assert one.ids == other.ids
    assert (one.labels == other.labels).all()
    assert one.modalities == other.modalities
    assert one.texts == other.texts
    assert one.extras == other.extras
    assert (one.image_hashes == other.image_hashes).all()
    assert np.abs(one.hidden - other.hidden).max() <= tolerance


def test_rows_are_the_memes_with_both_features(altclip: Path, train: list[Meme], reference: Features) -> None:
    assert reference.ids == [meme.id for meme in train]
    assert reference.labels.tolist() == [meme.label for meme in train]
    assert reference.texts == [meme.text for meme in train]
    assert reference.extras == [meme.extras for meme in train]
    assert reference.image_hashes.tolist() == [perceptual_hash(Image.open(meme.image)) or 0 for meme in train]
    assert reference.modalities == ALTCLIP_WIDTHS
    assert reference.embedding is reference.lmh_score is None
    encoder = Encoder(EncoderSettings(path=str(altclip))).load(torch.device("cpu"))
    for row in (0, len(train) - 1):
        with Image.open(train[row].image) as image:
            columns = encoder.columns(encoder.collate([encoder.encode(train[row].text, image)]))
        image, text = (columns[f"{name}_features"][0].numpy() for name in ("image", "text"))
        assert np.abs(np.concatenate([image, text]) - reference.hidden[row]).max() <= 1e-5
    assert np.abs(reference.hidden - reference.hidden[0]).max(axis=1)[1:].min() > 1e-4


def test_the_manifest_tells_how_to_encode_another_meme(altclip: Path, reference: Features) -> None:
    manifest = reference.manifest
    assert manifest.encoder.to_json() == EncoderSettings(path=str(altclip)).to_dict()
    assert manifest.split == "train"
    encoder = Encoder(EncoderSettings(**manifest.encoder.to_json()))
    assert manifest.fingerprint["model"] == encoder.fingerprint()["model"]
    assert (manifest.captions.limit, manifest.captions.over_limit) == (512, 0)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7, "shard_size": 10}, {"num_workers": 2}])
def test_results_do_not_depend_on_how(
    altclip: Path, train: list[Meme], reference: Features, tmp_path: Path, options: dict[str, Any]
) -> None:
    encode(Encoder(EncoderSettings(path=str(altclip))), train, tmp_path / "f", **({"num_workers": 0} | options))
    assert_same(read_features(tmp_path / "f"), reference)


def test_more_threads_give_the_same_and_are_given_back(
    altclip: Path, train: list[Meme], reference: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(EncoderSettings(path=str(altclip)))
    seen = set()
    columns = encoder.columns
    monkeypatch.setattr(
        encoder, "columns", lambda batch: seen.add((encoder.parts, torch.get_num_threads())) or columns(batch)
    )
    torch.set_num_threads(3)
    try:
        encode(encoder, train, tmp_path / "f", num_workers=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert seen == {(3, 1)}
    assert encoder.parts == 1
    assert_same(read_features(tmp_path / "f"), reference)


def test_order_of_the_memes_does_not_matter(
    altclip: Path, train: list[Meme], reference: Features, tmp_path: Path
) -> None:
    encode(Encoder(EncoderSettings(path=str(altclip))), train[::-1], tmp_path / "f", num_workers=0)
    assert_same(read_features(tmp_path / "f").select(np.arange(len(train))[::-1]), reference)


def test_two_ranks(altclip: Path, memes: Path, reference: Features, tmp_path: Path) -> None:
    words = [
        str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone", "--no-python", str(BIN / "ra-hmd"),
        "encode", "--encoder", str(altclip), "--data", str(memes / "a"), "--output", "f", "--shard-size", "20",
        "--workers", "0",
    ]  # fmt: skip
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stdout
    assert_same(read_features(tmp_path / "f"), reference)


def test_killed_and_resumed(altclip: Path, memes: Path, reference: Features, tmp_path: Path) -> None:
    words = ["--encoder", str(altclip), "--data", str(memes / "a"), "--workers", "0"]
    words += ["--shard-size", "1", "--batch-size", "1"]
    process = subprocess.Popen(
        [str(BIN / "ra-hmd"), "encode", *words, "--output", "f"],
        cwd=tmp_path,
        env=child_env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "f").glob("part-*.parquet"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="is incomplete: run its `ra-hmd encode` command again"):
        read_features(tmp_path / "f")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "f").glob("part-*.parquet")}
    assert 3 <= len(kept) < len(reference)
    for output in (tmp_path / "f", tmp_path / "whole"):
        done = command(*words, "--output", str(output))
        assert done.exit_code == 0, done.output
    assert {name: (tmp_path / "f" / name).stat().st_mtime_ns for name in kept} == kept
    assert_same(read_features(tmp_path / "f"), reference)
    names = sorted(path.name for path in (tmp_path / "whole").glob("part-*.parquet"))
    assert names == sorted(path.name for path in (tmp_path / "f").glob("part-*.parquet"))
    for name in names:
        assert pq.read_table(tmp_path / "f" / name).equals(pq.read_table(tmp_path / "whole" / name))
    contents = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("f", "whole")]
    assert [content.pop("created") is not None for content in contents] == [True, True]
    assert contents[0] == contents[1]


def test_a_complete_store_is_not_made_again(altclip: Path, train: list[Meme], tmp_path: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(altclip)))
    encode(encoder, train[:5], tmp_path / "f", num_workers=0)
    encoder.model = None
    encode(encoder, train[:5], tmp_path / "f", num_workers=0)
    assert encoder.model is None, "the weights are not loaded for nothing"


def test_what_changed_is_made_anew_and_the_rest_is_kept(altclip: Path, train: list[Meme], tmp_path: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(altclip)))
    some = []
    for meme in train[:6]:
        path = tmp_path / "images" / f"{meme.id}.bmp"  # BMP files of one width and height have one size
        path.parent.mkdir(exist_ok=True)
        Image.open(meme.image).convert("RGB").save(path)
        some.append(replace(meme, image=path))
    encode(encoder, some, tmp_path / "f", num_workers=0, shard_size=2)
    before = read_features(tmp_path / "f")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "f").glob("part-*.parquet")}
    stamp = some[2].image.stat()
    content = some[5].image.read_bytes()
    some[2].image.write_bytes(content)  # another picture of the same size,
    os.utime(some[2].image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # and the same time
    some[4] = replace(some[4], extras={"target": 1})
    encode(encoder, some, tmp_path / "f", num_workers=0, shard_size=2)
    encode(encoder, some, tmp_path / "fresh", num_workers=0, shard_size=2)
    now, fresh = read_features(tmp_path / "f"), read_features(tmp_path / "fresh")
    assert_same(now, fresh, 0.0)
    assert now.manifest.fingerprint == fresh.manifest.fingerprint
    assert not np.array_equal(now.hidden[2], before.hidden[2])
    assert now.extras[4] == {"target": 1}
    changed = {name for name, time in kept.items() if (tmp_path / "f" / name).stat().st_mtime_ns != time}
    assert changed == {"part-00001.parquet", "part-00002.parquet"}
    other = [replace(meme, id=f"x{meme.id}") for meme in some]
    with pytest.raises(UserError, match="was made from something else"):
        encode(encoder, other, tmp_path / "f", num_workers=0, shard_size=2)


def test_a_stop_while_shards_are_taken_out_leaves_no_old_one(
    altclip: Path, train: list[Meme], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(EncoderSettings(path=str(altclip)))
    encode(encoder, train[:4], tmp_path / "f", num_workers=0, shard_size=2)
    changed = [replace(meme, text="another caption") for meme in train[:4]]

    def stop(*_: Any) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FeatureWriter, "shard_path", stop)
        with pytest.raises(KeyboardInterrupt):
            encode(encoder, changed, tmp_path / "f", num_workers=0, shard_size=2)
    with pytest.raises(UserError, match="incomplete"):
        read_features(tmp_path / "f")
    encode(encoder, changed, tmp_path / "f", num_workers=0, shard_size=2)
    assert read_features(tmp_path / "f").texts == ["another caption"] * 4


def test_what_must_not_be_mixed_is_refused(altclip: Path, train: list[Meme], tiny: Any, tmp_path: Path) -> None:
    def make(name: str, path: Path = altclip, **changes: Any) -> Features:
        encode(Encoder(EncoderSettings(path=str(path), **changes)), train[:4], tmp_path / name, num_workers=0)
        return read_features(tmp_path / name)

    make_tiny_encoder("altclip", tmp_path / "other", seed=1)
    stores = {
        "pooled": make("pooled"),
        "projected": make("projected", features="projected"),
        "averaged": make("averaged", long_text="average"),
        "other": make("other_features", tmp_path / "other"),
        "bfloat16": make("bfloat16", dtype="bfloat16"),
    }
    fingerprints = {name: store_fingerprint(store) for name, store in stores.items()}
    fingerprints["lmm"] = open_backbone(str(tiny("qwen2_vl"))).fingerprint()
    refused = {"projected": "encoder.features", "averaged": "encoder.long_text", "other": "model", "lmm": "model"}
    for name, key in refused.items():
        with pytest.raises(UserError, match=f"These were not made alike(?s:.*)- {key}: "):
            check_same_origin({"pooled": fingerprints["pooled"], name: fingerprints[name]})
    check_same_origin({"pooled": fingerprints["pooled"], "bfloat16": fingerprints["bfloat16"]})
    with pytest.raises(UserError, match=r"adapter: None in pooled, 'abc' in run"):
        check_same_origin({"pooled": fingerprints["pooled"], "run": {"adapter": "abc"}})
    for changes, key in (({"features": "projected"}, "encoder.features"), ({"dtype": "bfloat16"}, "dtype")):
        with pytest.raises(UserError, match=f"was made from something else(?s:.*)- {key}: the store has"):
            make("pooled", **changes)
    with pytest.raises(UserError, match=r"was made from something else(?s:.*)- data: (?s:.*)- rows: the store has 4"):
        encode(Encoder(EncoderSettings(path=str(altclip))), train[:3], tmp_path / "pooled")


def test_long_captions_are_counted_and_told(memes: Path, tmp_path: Path) -> None:
    make_tiny_encoder("siglip", tmp_path / "siglip")
    words = "the cat is on the boat " * 30
    rows = [{"id": f"m{n}", "img": str(next((memes / "a" / "img").iterdir())), "text": text}
            for n, text in enumerate([words, "a", "", words + "and more", "the end"])]  # fmt: skip
    jsonl(tmp_path / "long.jsonl", rows)
    counts, stores = [], {}
    for rule in ("truncate", "average"):
        done = command(
            "--encoder", str(tmp_path / "siglip"), "--data", str(tmp_path / "long.jsonl"), "--workers", "0",
            "--output", str(tmp_path / rule), "--long-text", rule, "--batch-size", "2",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "2 captions have more than 64 tokens, the longest " in done.stderr
        assert ("cut off (--long-text average" in done.stderr) == (rule == "truncate")
        stores[rule] = read_features(tmp_path / rule)
        counts.append(stores[rule].manifest.captions)
    assert counts[0] == counts[1]
    assert counts[0].over_limit == 2
    assert counts[0].longest == max(
        Encoder(EncoderSettings(path=str(tmp_path / "siglip"))).count_tokens(stores["average"].texts)
    )
    difference = np.abs(stores["truncate"].hidden - stores["average"].hidden).max(axis=1)
    assert (difference[[1, 2, 4]] <= 1e-6).all()
    assert (difference[[0, 3]] > 1e-4).all()


def test_labels_of_a_task_of_an_imported_folder(altclip: Path, tmp_path: Path) -> None:
    targets = [[], ["society", "individual"], ["community"]]
    rows = []
    for number, names in enumerate(targets):
        picture(tmp_path / "harm_c" / "images" / f"covid_memes_{number}.png")
        kind = "very harmful" if names else "not harmful"
        rows.append({"id": f"covid_memes_{number}", "image": f"covid_memes_{number}.png", "labels": [kind, *names],
                     "text": f"the cat is number {number}"})  # fmt: skip
    for split in ("train", "val", "test"):
        jsonl(tmp_path / "harm_c" / "annotations" / f"{split}.jsonl", rows)
    imported("harm_c", tmp_path / "harm_c", tmp_path / "imported")
    found = {}
    for task in ("hate", "intensity", "target"):
        done = command("--encoder", str(altclip), "--data", str(tmp_path / "imported"), "--task", task, "--workers",
                       "0", "--output", str(tmp_path / task))  # fmt: skip
        assert done.exit_code == 0, done.output
        found[task] = read_features(tmp_path / task)
    assert found["hate"].labels.tolist() == [0, 1, 1]
    assert found["intensity"].labels.tolist() == [0, 2, 2]
    assert found["target"].labels.tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]]
    assert np.array_equal(found["hate"].hidden, found["target"].hidden)


def test_data_set_names_and_files_are_the_same_memes(altclip: Path, memes: Path, tmp_path: Path) -> None:
    sources = {
        "name": ["--data", "confounders_a", "--dataset-dir", str(memes)],
        "folder": ["--data", str(memes / "a")],
        "file": ["--data", str(memes / "a" / "dev.jsonl")],
    }
    stores = []
    for name, words in sources.items():
        done = command("--encoder", str(altclip), *words, "--split", "dev", "--output", str(tmp_path / name), "--limit",
                       "5", "--workers", "0")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert done.stdout.endswith(": 5 memes\n")
        stores.append(read_features(tmp_path / name))
    for store in stores:
        assert store.ids == stores[0].ids
        assert np.array_equal(store.hidden, stores[0].hidden)


# -- what is wrong is told in words ----------------------------------------------------------------------------------


def test_unreadable_images_are_listed_before_the_weights_are_loaded(altclip: Path, memes: Path, tmp_path: Path) -> None:
    shutil.copytree(memes / "a", tmp_path / "a")
    data = read_memes(tmp_path / "a" / "dev.jsonl")
    data[0].image.unlink()
    data[1].image.write_text("no picture")
    encoder = Encoder(EncoderSettings(path=str(altclip)))
    with pytest.raises(UserError, match=rf"Images that cannot be opened.*\(2\)(?s:.*){data[0].id}(?s:.*){data[1].id}"):
        encode(encoder, data, tmp_path / "f")
    assert encoder.model is None
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_images_are_named(altclip: Path, memes: Path, tmp_path: Path, workers: str) -> None:
    shutil.copytree(memes / "a", tmp_path / "a")
    meme = read_memes(tmp_path / "a" / "dev.jsonl")[3]
    for content, problem in (
        (meme.image.read_bytes()[:200], "cannot be decoded"),
        (None, "has 2 x 500 pixels; one side may be 200 times the other"),
    ):
        if content is None:
            Image.new("RGB", (2, 500)).save(meme.image)
        else:
            meme.image.write_bytes(content)
        done = command("--encoder", str(altclip), "--data", str(tmp_path / "a"), "--split", "dev", "--output",
                       str(tmp_path / problem[:6]), "--workers", workers)  # fmt: skip
        assert done.exit_code == 2
        assert f"Error: meme '{meme.id}': " in done.stderr
        assert problem in done.stderr


def test_the_command_refuses_what_it_does_not_know(altclip: Path, memes: Path, tmp_path: Path, tiny: Any) -> None:
    def problem(**changes: str) -> str:
        options = {"encoder": str(altclip), "data": str(memes / "a"), "output": str(tmp_path / "f")} | changes
        done = command(*[word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)])
        assert done.exit_code == 2
        assert not (tmp_path / "f").exists()
        return done.stderr

    assert "presets clip-vit-l-14, clip-vit-l-14-336" in problem(encoder="clip-vit-b")
    assert "is a qwen2_vl model" in problem(encoder=str(tiny("qwen2_vl")))
    assert "`features`: 'both' is not one of 'pooled', 'projected'" in problem(features="both")
    assert "`long_text`: 'drop' is not one of 'truncate', 'average'" in problem(long_text="drop")
    assert "`dtype`: 'int8' is not one of" in problem(dtype="int8")
    assert "eval.jsonl does not exist" in problem(split="eval")
    assert "is not an imported folder" in problem(task="hate")
    assert "--revision is for names on the hub" in problem(revision="main")
