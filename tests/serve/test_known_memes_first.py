"""Known memes are answered before the model runs: in Python, in files, over the API and at the desk."""

import csv
import json
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from copies import jpeg
from PIL import Image
from servers import as_json, encoded, in_thread, queries
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.texts import Texts
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.inference.batch import predict_files
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.options import DetectorOptions
from ra_hmd.inference.types import Explanation
from ra_hmd.serve.app import create_app
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, wait_for_all
from ra_hmd.serve.case_service import margin, threshold_probabilities

pytest.importorskip("pdqhash")
SAID = {"author": "ana", "reason": "seen"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the models of encoders do from now on: `encode` on a meme, and memes in forward passes."""
    from ra_hmd.models.clip_encoder import Encoder

    counts: Counter[str] = Counter()
    encode, columns = Encoder.encode, Encoder.columns

    def counted_encode(self: Any, *args: Any) -> Any:
        counts["encoded"] += 1
        return encode(self, *args)

    def counted_columns(self: Any, batch: Any) -> Any:
        made = columns(self, batch)
        counts["forward"] += len(next(iter(made.values())))
        return made

    monkeypatch.setattr(Encoder, "encode", counted_encode)
    monkeypatch.setattr(Encoder, "columns", counted_columns)
    return counts


def opened(served: Path, bank: Path | None, **options: Any) -> Detector:
    return Detector.from_run(served / "head", bank, **{"known_memes": 31, **options})


def image_of(meme: Meme) -> Image.Image:
    assert isinstance(meme.image, Path)
    return Image.open(meme.image).convert("RGB")


def row_of(bank: Path, name: str) -> dict[str, Any]:
    with Bank.open(bank) as held:
        return held.row(held.ids.index(name))


def test_the_model_does_not_see_known_memes(served_clip: Path, memes: Path, calls: Counter[str]) -> None:
    """New memes among them get the verdicts that they get by themselves."""
    bank = served_clip / "bank"
    known, new = queries(memes, "train")[:3], queries(memes)[:2]
    copies = [replace(meme, id=f"copy-{meme.id}", image=jpeg(image_of(meme), 80)) for meme in known]
    expected = opened(served_clip, bank, known_memes=None)(new)
    detector = opened(served_clip, bank)
    calls.clear()
    verdicts = detector([copies[0], new[0], copies[1], new[1], copies[2]])
    assert calls == {"encoded": 2, "forward": 2}
    assert [verdict.id for verdict in verdicts] == [copies[0].id, new[0].id, copies[1].id, new[1].id, copies[2].id]
    for verdict, meme in zip(verdicts[::2], known, strict=True):
        assert verdict.known is not None
        assert (verdict.known["id"], verdict.known["decides"]) == (meme.id, True)
        assert verdict.verdict == verdict.known["label"] == row_of(bank, meme.id)["label"]
        assert (verdict.scores, verdict.probabilities, verdict.verdicts) == ({}, {}, {})
        assert (verdict.neighbours, verdict.threshold, verdict.head) == (None, None, "rkc")
    for verdict, same in zip(verdicts[1::2], expected, strict=True):
        assert verdict.known is None or not verdict.known["decides"]
        assert (verdict.verdict, verdict.scores) == (same.verdict, pytest.approx(same.scores))


def test_the_images_of_known_memes_that_wait_are_small(
    served_clip: Path, memes: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, meme = opened(served_clip, served_clip / "bank"), queries(memes, "train")[0]
    assert detector.prepare(meme).picture is not None
    monkeypatch.setattr("ra_hmd.inference.detector._KEPT_PIXELS", 100)
    prepared = detector.prepare(meme)
    assert prepared.picture is None
    (verdict,) = detector.judge([prepared])
    assert verdict.scores == {}
    assert calls == {"encoded": 1}


def test_another_caption_is_evidence_and_the_heads_decide(served_clip: Path, memes: Path, calls: Counter[str]) -> None:
    meme = replace(queries(memes, "train")[0], id="new", text="another caption")
    (plain,) = opened(served_clip, served_clip / "bank", known_memes=None)([meme])
    calls.clear()
    (verdict,) = opened(served_clip, served_clip / "bank")([meme])
    assert calls["forward"] == 1
    assert replace(verdict, known=None) == plain
    assert verdict.known is not None
    assert (verdict.known["same_caption"], verdict.known["decides"], verdict.known["distance"]) == (False, False, 0)
    assert "known" not in plain.to_dict()


def test_the_row_of_a_person_is_named_as_identical(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    meme = queries(memes, "train")[0]
    label = 1 - row_of(clip_bank, meme.id)["label"]
    with Bank.open(clip_bank) as bank:
        bank.relabel({meme.id: label}, **SAID)
    (verdict,) = opened(served_clip, clip_bank)([meme])
    assert (verdict.verdict, verdict.scores) == (label, {})
    assert verdict.identical is not None
    assert verdict.identical["id"] == meme.id


def test_the_label_of_a_person_for_this_very_meme_goes_first(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    """Also where its row has no hashes, and another row would decide."""
    meme = queries(memes, "train")[0]
    copy = replace(meme, id="copy", image=jpeg(image_of(meme), 80))
    label = 1 - row_of(clip_bank, meme.id)["label"]
    detector = opened(served_clip, clip_bank)
    plain = opened(served_clip, clip_bank, known_memes=None)
    prepared = plain.prepare(copy)
    row = BankRows(["row"], np.array([label]), contents=[prepared.content], decided=np.ones(1, bool))
    with Bank.open(clip_bank) as bank:
        bank.add(row, plain.score([prepared]).queries.embedding, **SAID)
    detector.refresh()
    (verdict,) = detector([copy])
    assert verdict.known is not None
    assert (verdict.known["id"], verdict.known["decides"], verdict.verdict) == (meme.id, True, label)


def test_a_feature_store_and_a_hash_list_hold_known_memes(
    served_clip: Path, memes: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    meme = queries(memes, "train")[0]
    label = row_of(served_clip / "bank", meme.id)["label"]
    (by_store,) = opened(served_clip, served_clip / "features" / "train")([meme])
    done = CliRunner().invoke(app, ["bank", "export-hashes", str(served_clip / "bank"), str(tmp_path / "list.csv")])
    assert done.exit_code == 0, done.output
    (by_list,) = opened(served_clip, None, hash_lists=[tmp_path / "list.csv"])([meme])
    assert calls["forward"] == 0
    for verdict in (by_store, by_list):
        assert verdict.known is not None
        assert (verdict.known["id"], verdict.verdict) == (meme.id, label)
    assert by_list.known is not None
    assert (by_list.head, by_list.known["source"]) == ("lrc", "list.csv")
    with pytest.raises(UserError, match="--bank, or a hash list"):
        opened(served_clip, None)


def test_options_that_do_not_go_together(served_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="go with --known-memes"):
        DetectorOptions(known_turned=True)
    head, bank = served_clip / "head", served_clip / "bank"
    stores = ["--queries", served_clip / "features" / "dev", "--output", tmp_path / "x.jsonl"]
    done = CliRunner().invoke(
        app, ["predict", *map(str, ["--checkpoint", head, *stores, "--bank", bank, "--known-memes", 31])]
    )
    assert done.exit_code == 2
    assert "--known-memes goes with IMAGE or --input" in done.stderr


def test_in_files(served_clip: Path, memes: Path, tmp_path: Path, calls: Counter[str]) -> None:
    """Training memes under new ids, and one with another caption; in every format."""
    lines = [json.loads(line) for line in (memes / "a" / "train.jsonl").read_text().splitlines()[:4]]
    lines = [line | {"id": f"again-{line['id']}", "img": str(memes / "a" / line["img"])} for line in lines]
    lines[3]["text"] = "another caption"
    source = tmp_path / "memes.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    detector = opened(served_clip, served_clip / "bank")
    for suffix in ("jsonl", "csv", "parquet"):
        calls.clear()
        done = predict_files(detector, source, tmp_path / f"out.{suffix}", show=False)
        assert calls["forward"] == 1
        assert done["notes"][-1].startswith("3 of 4 memes are known")
        assert done["fingerprint"]["known"]["limit"] == 31
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["known"]["decides"] for row in rows] == [True, True, True, False]
    assert [row["verdict"] for row in rows[:3]] == [line["label"] for line in lines[:3]]
    assert (rows[0]["score"], rows[0]["probability"], rows[3]["score"] is None) == (None, None, False)
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["known_id"] for row in table] == [row["known"]["id"] for row in rows]
    assert [row["known_same_caption"] for row in table] == [True, True, True, False]
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(row["rkc_score"] == "", row["known_decides"]) for row in cells] == [(True, "True")] * 3 + [
        (False, "False")
    ]
    with pytest.raises(UserError, match="a known meme has none"):
        predict_files(detector, source, tmp_path / "x.csv", style="hateclipper-csv", show=False)


def test_on_the_command_line(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    meme = queries(memes, "train")[0]
    path = tmp_path / "mirrored.png"
    image_of(meme).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    words = ["predict", "--checkpoint", served_clip / "head", path, "--text", meme.text, "--bank", served_clip / "bank"]
    words += ["--known-memes", 31, "--known-turned"]
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    row = json.loads(done.stdout.splitlines()[0])
    assert (row["known"]["transform"], row["known"]["decides"], row["score"]) == ("flip_left_right", True, None)
    shown = " ".join(CliRunner().invoke(app, [*map(str, words)]).stdout.split())
    assert "known: copy of" in shown


def test_over_the_api_while_the_bank_changes(
    served_clip: Path, clip_bank: Path, memes: Path, calls: Counter[str]
) -> None:
    service = BatchingService(opened(served_clip, clip_bank))
    meme = queries(memes)[0]
    content = BytesIO()
    jpeg(image_of(meme), 80).save(content, "PNG")
    sent = {"memes": [as_json(meme, id="copy") | {"image": encoded(content.getvalue())}]}
    with in_thread(create_app(service, BankService(service))) as client:

        def judged() -> dict[str, Any]:
            return client.post("/v1/classify", json=sent).json()["results"][0]

        before = judged()
        assert (before.get("known") or {"decides": False})["decides"] is False
        label = 1 - before["verdict"]
        with Bank.open(clip_bank) as other:
            rows, prepared = BankService(service)._rows([meme], [label], "elsewhere")
            other.add(rows, service.detector.score(prepared).queries.embedding, **SAID)
            calls.clear()
            after = judged()
            assert (after["verdict"], after["scores"], after["known"]["id"]) == (label, {}, meme.id)
            assert (after["known"]["source"], after["version"]["bank"]["version"]) == ("elsewhere", 2)
            assert calls["forward"] == 0
            other.remove([meme.id], **SAID)
        again = judged()
        assert (again["verdict"], again.get("known")) == (before["verdict"], before.get("known"))
        metrics = client.get("/metrics").text
    assert "ra_hmd_known_memes_total 1.0" in metrics
    assert "ra_hmd_memes_total 3.0" in metrics
    service.close()


def test_a_row_that_is_removed_before_its_copy_is_judged(
    served_clip: Path, clip_bank: Path, memes: Path, calls: Counter[str]
) -> None:
    """Then the model is asked after all."""
    detector, meme = opened(served_clip, clip_bank), queries(memes, "train")[0]
    prepared = detector.prepare(meme)
    assert calls["encoded"] == 0
    with Bank.open(clip_bank) as bank:
        bank.remove([name for name in bank.ids if name == meme.id], **SAID)
    detector.refresh()
    (verdict,) = detector.judge([prepared])
    assert calls == {"encoded": 1, "forward": 1}
    assert "rkc" in verdict.scores
    (plain,) = opened(served_clip, clip_bank, known_memes=None)([meme])
    assert verdict.scores == pytest.approx(plain.scores)


def test_at_the_desk(served_clip: Path, memes: Path) -> None:
    detector = opened(served_clip, served_clip / "bank")
    known, new = queries(memes, "train")[0], queries(memes)[0]
    evidence = replace(known, id="new", text="another caption")
    words = VerdictWords(ClassNames(detector.problem), Texts("en"))
    with BatchingService(detector) as service:
        served = wait_for_all(service.submit([known, evidence, new]), 60)
        thresholds = {head: threshold_probabilities(service, head).tolist() for head in ("lrc", "rkc", "krr")}
        shown = [words.view(one.to_dict(), thresholds) for one in served]
        margins = [margin(one.verdict, service) for one in served]
    assert shown[0].reason == "A copy of a labelled meme with the same caption; the model was not asked."
    assert (shown[0].head, shown[0].others) == (None, [])
    assert shown[1].head is not None, "another caption does not decide"
    assert margins[0] == 1.0
    assert margins[1] < 1


@pytest.mark.slow
def test_a_known_meme_is_explained_from_the_picture_that_the_model_would_see(served_lmm: Path, memes: Path) -> None:
    shown: list[Image.Image] = []

    def explain(verdicts: Any, images: Any) -> list[Explanation]:
        shown.extend(images)
        return [Explanation(one.id, "words", "", [], "fake", None) for one in verdicts]

    meme = queries(memes, "train")[0]
    plain = Detector.from_run(served_lmm / "run", served_lmm / "bank")
    known = Detector.from_run(served_lmm / "run", served_lmm / "bank", known_memes=31)
    plain([meme], explain)
    (verdict,) = known([meme], explain)
    assert (verdict.rationale, verdict.scores) == ("words", {})
    assert shown[0].tobytes() == shown[1].tobytes()
