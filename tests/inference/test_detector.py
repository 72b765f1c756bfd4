"""The detector: one forward pass per meme, and the numbers of extraction and evaluation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.evaluation.request import OperatingPointSettings
from ra_hmd.features.store import read_features
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import Verdict
from ra_hmd.scoring.scorer import Scorer

HEADS = {"lmm": ("lmh", "lrc", "rkc", "krr"), "stage2": ("lmh", "lrc", "rkc", "krr"), "encoder": ("lrc", "rkc", "krr")}


def ra_hmd(*words: str | Path) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"


def queries(memes: list[Meme]) -> list[Meme]:
    return [Meme(meme.id, meme.image, meme.text) for meme in memes]


@pytest.fixture(scope="module")
def lab(served_lmm: Path, served_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stage 1 run, a Stage 2 output, a fused head on a tiny CLIP; stores of each in features/."""
    folder = tmp_path_factory.mktemp("lab")
    for source, target in (
        (served_lmm / "run", "lmm"),
        (served_lmm / "features", "features/lmm"),
        (served_clip / "clip", "clip"),
        (served_clip / "features", "features/encoder"),
        (served_clip / "head", "encoder"),
    ):
        shutil.copytree(source, folder / target)
    (folder / "features" / "stage2").symlink_to(folder / "features" / "lmm")
    (folder / "stage2.yaml").write_text(f"init_head: {folder}/lmm\nepochs: 2\nlr: 1.0e-3\n")
    stores = [f"{split}={folder}/features/lmm/{split}" for split in ("train", "dev")]
    ra_hmd("stage2", folder / "stage2.yaml", *stores, f"output_dir={folder / 'stage2'}")
    return folder


def judged(lab: Path, kind: str, output: Path) -> dict[str, dict[str, float]]:
    """Id → head → score, by `evaluate` on the stores."""
    stores = lab / "features" / kind
    evaluate(lab / kind, stores / "train", [stores / "test"], output, bootstrap_samples=0, final=True,
             operating_point=OperatingPointSettings(dev=stores / "dev"))  # fmt: skip
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return {line["id"]: {head: line[f"{head}_score"] for head in HEADS[kind]} for line in lines}


@pytest.mark.parametrize("kind", HEADS)
def test_scores_are_those_of_extraction_and_evaluation(lab: Path, kind: str, memes: Path, tmp_path: Path) -> None:
    expected = judged(lab, kind, tmp_path / "evaluation")
    detector = Detector.from_run(lab / kind, lab / "features" / kind / "train")
    found = detector(queries(read_memes(memes / "a" / "test.jsonl")))
    assert [one.id for one in found] == list(expected)
    for one in found:
        assert one.scores == pytest.approx(expected[one.id], abs=1e-4)
        assert one.text_source == "given"
        assert one.verdict == one.verdicts["rkc"] == int(one.scores["rkc"] >= one.threshold)
        assert sum(neighbour["vote"] for neighbour in one.neighbours) == pytest.approx(one.scores["rkc"])
        json.dumps(one.to_dict())
    ra_hmd("predict", "--checkpoint", lab / kind, "--queries", lab / "features" / kind / "test", "--head", "lrc",
           "--output", tmp_path / "lrc.jsonl")  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "lrc.jsonl").read_text().splitlines()]
    assert [line["probability"] for line in lines] == pytest.approx(
        [one.probabilities["lrc"] for one in found], abs=1e-4
    )


def test_a_run_of_four_bits_scores_as_its_extraction(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stage1_run, run, ignore=shutil.ignore_patterns("checkpoint-*"))
    manifest = json.loads((run / "ra_hmd.json").read_text())
    manifest["base_model"]["loading"] = {"quantization_bit": 4}
    (run / "ra_hmd.json").write_text(json.dumps(manifest))
    ra_hmd("extract", "--checkpoint", run, "--data", memes / "a", "--split", "dev", "--workers", "0", "--output",
           tmp_path / "dev")  # fmt: skip
    expected = Scorer.open(run)("dev", read_features(tmp_path / "dev"))
    found = Detector.from_run(run)(queries(read_memes(memes / "a" / "dev.jsonl")))
    for head in ("lmh", "lrc"):
        np.testing.assert_allclose([one.scores[head] for one in found], expected.scores[head][:, 0], atol=1e-4)
    whole = Detector.from_run(stage1_run)(queries(read_memes(memes / "a" / "dev.jsonl")))
    assert [one.scores["lrc"] for one in found] != [one.scores["lrc"] for one in whole]


@pytest.mark.parametrize("kind", ["stage2", "encoder"])
def test_a_verdict_depends_on_no_other_meme(lab: Path, kind: str, memes: Path) -> None:
    detector = Detector.from_run(lab / kind, lab / "features" / kind / "train", batch_size=5)
    some = queries(read_memes(memes / "a" / "dev.jsonl"))[:7]
    together, reverse = detector(some), detector(some[::-1])[::-1]
    for one, alone, other in zip(together, (detector([query])[0] for query in some), reverse, strict=True):
        assert one.scores == pytest.approx(alone.scores, abs=1e-4)
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
        assert [near["id"] for near in one.neighbours] == [near["id"] for near in alone.neighbours]
    assert detector([]) == []


def test_a_picture_in_memory_and_its_file_are_one(lab: Path, memes: Path) -> None:
    meme = read_memes(memes / "a" / "dev.jsonl")[0]
    detector = Detector.from_run(lab / "encoder")
    assert detector.head == "lrc"
    with Image.open(meme.image) as image:
        image.load()
    by_path, by_image = detector([Meme("x", meme.image, meme.text), Meme("x", image, meme.text)])
    assert by_path.scores == pytest.approx(by_image.scores, abs=1e-6)
    assert by_path.neighbours is None
    assert "rkc" not in by_path.scores


def test_caption_is_read_from_the_picture_when_it_is_missing(lab: Path, memes: Path) -> None:
    meme = read_memes(memes / "a" / "dev.jsonl")[0]
    big = Image.open(meme.image).convert("RGB").resize((448, 448))
    (one,) = Detector.from_run(lab / "encoder")([Meme("x", big, None)])
    assert one.text_source.startswith("ocr:rapidocr-")
    assert set(one.text.lower().split()) & set(meme.text.lower().split())


def test_an_example_bank_tells_where_neighbours_are_from(lab: Path, memes: Path, tmp_path: Path) -> None:
    stores = lab / "features" / "encoder"
    ra_hmd("bank", "create", tmp_path / "bank", "--checkpoint", lab / "encoder", "--features", stores / "train",
           "--reason", "start")  # fmt: skip
    some = queries(read_memes(memes / "a" / "dev.jsonl"))[:3]
    stored = Detector.from_run(lab / "encoder", tmp_path / "bank")
    plain = Detector.from_run(lab / "encoder", stores / "train")
    assert stored.version["bank"]["version"] == 1
    for one, other in zip(stored(some), plain(some), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
        assert [near["id"] for near in one.neighbours] == [near["id"] for near in other.neighbours]
        assert all(near["source"] for near in one.neighbours)


def test_memes_near_the_threshold_are_left_to_a_person(lab: Path, memes: Path) -> None:
    some = queries(read_memes(memes / "a" / "dev.jsonl"))
    sure = Detector.from_run(lab / "encoder", head="lrc", thresholds="official")(some)
    distance = np.abs(np.array([one.probabilities["lrc"] for one in sure]) - 0.5)
    band = float(np.median(distance))
    careful = Detector.from_run(lab / "encoder", head="lrc", thresholds="official", abstain=band)(some)
    assert [one.verdict is None for one in careful] == (distance < band).tolist()
    assert {one.verdict is None for one in careful} == {True, False}
    assert [replace(one, verdict=None) for one in careful] == [replace(one, verdict=None) for one in sure]
    assert all(isinstance(one, Verdict) for one in careful)


def test_a_model_that_moved_is_named_and_another_is_refused(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "clip", tmp_path / "moved")
    Detector.from_run(lab / "encoder", backbone=tmp_path / "moved")
    ra_hmd("tiny-encoder", "--family", "clip", "--seed", "1", "--output", tmp_path / "other")
    with pytest.raises(UserError, match="not made alike"):
        Detector.from_run(lab / "encoder", backbone=tmp_path / "other")
    with pytest.raises(UserError, match="make the features with the head's encoder"):
        Detector.from_run(lab / "encoder", lab / "features" / "lmm" / "train")
    with pytest.raises(UserError, match="does not exist"):
        Detector.from_run(lab / "stage2", backbone=tmp_path / "gone")


def test_what_cannot_be_is_refused_in_words(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a bank"):
        Detector.from_run(lab / "encoder", head="rkc")
    with pytest.raises(UserError, match="abstain is 0.7"):
        Detector.from_run(lab / "encoder", abstain=0.7)
    detector = Detector.from_run(lab / "encoder", head="lmh")
    picture = Image.new("RGB", (40, 40), "white")
    with pytest.raises(UserError, match="`lmh` has no answer"):
        detector([Meme("x", picture, "a cat")])
    with pytest.raises(UserError, match=r"meme 'y': image .* does not exist"):
        detector([Meme("x", picture, "a cat"), Meme("y", tmp_path / "none.png", "a cat")])
    with pytest.raises(UserError, match="200 times"):
        detector.prepare(Meme("z", Image.new("RGB", (4000, 3)), ""))
