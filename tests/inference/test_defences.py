"""Defences of the detector: captions checked against the words on the picture, means over changed pictures."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from served import ra_hmd
from servers import as_json, in_thread

from ra_hmd.core.errors import UserError
from ra_hmd.data.benign_transforms import MOST_COPIES, benign_copies
from ra_hmd.data.caption_agreement import caption_agreement
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.inference.batch import predict_files
from ra_hmd.inference.defences import Defences, mean_over_copies
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.options import DetectorOptions, ServedDetectorOptions
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.serve.app import create_app
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService


@pytest.fixture
def some(memes: Path) -> list[Meme]:
    return [Meme(meme.id, meme.image, meme.text) for meme in read_memes(memes / "a" / "dev.jsonl")[:4]]


@pytest.fixture
def words_on_pictures(monkeypatch: pytest.MonkeyPatch, memes: Path) -> dict[bytes, str]:
    """The caption of each dev meme is read from its picture, without the time that an engine takes."""
    read = {meme.load_image().tobytes(): meme.caption for meme in read_memes(memes / "a" / "dev.jsonl")}
    monkeypatch.setattr(Detector, "_read", lambda self, image: (read[image.tobytes()], "ocr:stub"))
    return read


@pytest.mark.parametrize(
    ("one", "other", "agreement"),
    [
        ("When the CAT wakes you", "when the cat, wakes you!", 1.0),
        ("Whеn thе сat", "When the\u200b cat", 1.0),
        ("", "", 1.0),
        ("a caption", "", 0.0),
        ("abc", "xyz", 0.0),
        ("abcd", "abxd", 0.75),
        ("привет мир", "ПРИВЕТ, МИР", 1.0),
    ],
)
def test_agreement_of_captions(one: str, other: str, agreement: float) -> None:
    assert caption_agreement(one, other) == caption_agreement(other, one) == pytest.approx(agreement)


def test_long_captions_are_compared_in_bounded_time() -> None:
    assert caption_agreement("ab" * 100_000, "ba" * 100_000) > 0.9


def test_verdicts_say_how_far_captions_agree(
    served_clip: Path, some: list[Meme], words_on_pictures: dict[bytes, str]
) -> None:
    memes = [some[0], replace(some[1], text="quite another text")]
    plain = Detector.from_run(served_clip / "head")(memes)
    flagged = Detector.from_run(served_clip / "head", defences=Defences(check_captions="flag"))(memes)
    careful = Detector.from_run(served_clip / "head", defences=Defences(check_captions="abstain"))(memes)
    assert all("caption_check" not in one.to_dict() for one in plain)
    assert flagged[0].caption_check == {"read": some[0].text, "agreement": 1.0, "agrees": True}
    assert flagged[1].caption_check is not None
    assert flagged[1].caption_check["agrees"] is False
    assert [replace(one, caption_check=None) for one in flagged] == plain
    assert careful[0] == flagged[0]
    assert careful[1] == replace(flagged[1], verdict=None)
    lenient = Defences(check_captions="abstain", min_agreement=0.0)
    assert Detector.from_run(served_clip / "head", defences=lenient)(memes)[1].verdict is not None


def test_a_caption_that_was_read_is_not_compared_with_itself(
    served_clip: Path, some: list[Meme], words_on_pictures: dict[bytes, str]
) -> None:
    detector = Detector.from_run(served_clip / "head", defences=Defences(check_captions="abstain"))
    (one,) = detector([replace(some[0], text=None)])
    assert one.caption_check is None
    assert one.verdict is not None


def test_a_label_of_a_person_outweighs_the_check(
    clip_bank: Path, served_clip: Path, some: list[Meme], words_on_pictures: dict[bytes, str], tmp_path: Path
) -> None:
    meme = replace(some[0], text="quite another text")
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({**meme.to_row(), "label": 1}) + "\n")
    ra_hmd("encode", "--encoder", served_clip / "clip", "--data", file, "--workers", "0", "--output", tmp_path / "one")
    ra_hmd("bank", "add", clip_bank, "--checkpoint", served_clip / "head", "--features", tmp_path / "one",
           "--reason", "a person decided", "--decided")  # fmt: skip
    detector = Detector.from_run(served_clip / "head", clip_bank, defences=Defences(check_captions="abstain"))
    (verdict,) = detector([meme])
    assert verdict.caption_check is not None
    assert not verdict.caption_check["agrees"]
    assert verdict.verdict == 1


def test_the_engine_reads_the_picture(served_clip: Path, some: list[Meme]) -> None:
    big = Image.open(some[0].path).convert("RGB").resize((448, 448))
    detector = Detector.from_run(served_clip / "head", defences=Defences(check_captions="flag"))
    right, wrong = detector([Meme("x", big, some[0].text), Meme("y", big, "0123456789")])
    assert right.caption_check is not None
    assert wrong.caption_check is not None
    assert right.caption_check["agreement"] > 0.6 > wrong.caption_check["agreement"]


def test_copies_are_close_to_the_picture_and_always_the_same(some: list[Meme]) -> None:
    image = some[0].load_image()
    copies, again = benign_copies(image, MOST_COPIES), benign_copies(image, MOST_COPIES)
    assert [one.tobytes() for one in copies] == [one.tobytes() for one in again]
    assert len({one.tobytes() for one in (image.convert("RGB"), *copies)}) == MOST_COPIES + 1
    for copy in copies:
        near = np.asarray(copy.resize(image.size)).astype(float) - np.asarray(image.convert("RGB")).astype(float)
        assert np.abs(near).mean() < 30
    assert benign_copies(Image.new("L", (1, 1)), MOST_COPIES)[2].size == (1, 1)
    with pytest.raises(ValueError, match="6 copies"):
        benign_copies(image, MOST_COPIES + 1)


def test_scores_are_means_over_changed_pictures(served_clip: Path, some: list[Meme]) -> None:
    head, bank = served_clip / "head", served_clip / "features" / "train"
    plain = Detector.from_run(head, bank)
    one_by_one = [
        [Meme(m.id, image, m.text) for image in (m.load_image(), *benign_copies(m.load_image(), 2))] for m in some
    ]
    expected = [[verdict.scores for verdict in plain(versions)] for versions in one_by_one]
    found = Detector.from_run(head, bank, defences=Defences(transforms=2))(some)
    for verdict, versions in zip(found, expected, strict=True):
        mean = {name: np.mean([one[name] for one in versions]) for name in versions[0]}
        assert verdict.scores == pytest.approx(mean, abs=1e-5)
        assert verdict.scores != pytest.approx(versions[0], abs=1e-9)
        assert [near["id"] for near in verdict.neighbours or []]


def test_copies_on_which_the_vote_abstains_do_not_count(served_clip: Path) -> None:
    from ra_hmd.features.store import read_features

    store = served_clip / "features" / "dev"
    scored = Scorer.open(served_clip / "head", served_clip / "features" / "train")(store, read_features(store))
    other = replace(scored, scores={head: values + 0.5 for head, values in scored.scores.items()})
    half = np.arange(len(scored)) % 2 == 0
    mean = mean_over_copies(scored, [replace(other, abstained=half)])
    assert not mean.abstained.any()
    assert mean.scores["lrc"] == pytest.approx(scored.scores["lrc"] + 0.25)
    assert mean.scores["rkc"] == pytest.approx(scored.scores["rkc"] + np.where(half, 0.0, 0.25)[:, None])
    nobody = np.ones(len(scored), dtype=bool)
    assert mean_over_copies(replace(scored, abstained=nobody), [replace(other, abstained=nobody)]).abstained.all()


def test_files_have_the_checks_and_the_manifest_the_defences(
    served_clip: Path, some: list[Meme], words_on_pictures: dict[bytes, str], tmp_path: Path
) -> None:
    given = tmp_path / "memes.jsonl"
    checked = [some[0], replace(some[1], text="quite another text")]
    given.write_text("".join(json.dumps(meme.to_row()) + "\n" for meme in checked))
    for suffix in ("jsonl", "csv", "parquet"):
        output = tmp_path / f"out.{suffix}"
        ra_hmd("predict", "--checkpoint", served_clip / "head", "--input", given, "--output", output,
               "--check-captions", "abstain", "--transforms", "1")  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["caption_check"]["agrees"] for row in rows] == [True, False]
    assert [row["verdict"] is None for row in rows] == [False, True]
    table = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["caption_agrees"] for row in table] == ["True", "False"]
    assert pq.read_table(tmp_path / "out.parquet").column("caption_read").to_pylist() == [m.text for m in some[:2]]
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["arguments"]["check_captions"] == "abstain"
    assert manifest["arguments"]["transforms"] == 1
    assert manifest["text_sources"] == {"given": 2}
    careful = Detector.from_run(served_clip / "head", defences=Defences(check_captions="abstain"))
    with pytest.raises(UserError, match="--check-captions abstain"):
        predict_files(careful, given, tmp_path / "out2.csv", style="hateclipper-csv", show=False)


def test_a_service_answers_with_the_check(
    served_clip: Path, some: list[Meme], words_on_pictures: dict[bytes, str]
) -> None:
    options = ServedDetectorOptions(bank=str(served_clip / "bank"), check_captions="abstain", transforms=1)
    service = BatchingService(options.open(served_clip / "head"))
    sent = {"memes": [as_json(some[0], id="right"), as_json(some[1], id="wrong") | {"text": "quite another text"}]}
    with in_thread(create_app(service, BankService(service))) as client:
        right, wrong = client.post("/v1/classify", json=sent).json()["results"]
    service.close()
    assert right["caption_check"] == {"read": some[0].text, "agreement": 1.0, "agrees": True}
    assert wrong["caption_check"]["agrees"] is False
    assert (right["verdict"] is None, wrong["verdict"] is None) == (False, True)
    assert wrong["verdicts"]["rkc"] is not None


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match="--min-agreement goes with --check-captions"):
        DetectorOptions(min_agreement=0.7)
    with pytest.raises(UserError, match="transforms"):
        DetectorOptions(transforms=6)
    assert Defences().described() == {}
    assert Defences(check_captions="flag").described() == {"check_captions": "flag", "min_agreement": 0.5}
