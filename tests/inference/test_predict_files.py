"""`ra-hmd predict` on memes themselves: the numbers of extraction, formats, bad rows, stops, ranks."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engines import BIN, child_env, run
from json_files import read_json
from PIL import Image
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import known_formats
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.inference import batch
from ra_hmd.inference.batch import predict_files
from ra_hmd.inference.batch_judging import judge_chunks
from ra_hmd.inference.batch_reader import BatchRow, read_batch
from ra_hmd.inference.detector import Detector
from ra_hmd.scoring.operating_point import OFFICIAL_NOTE


def ra_hmd(*words: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, f"{words}\n{done.output}\n{done.exception!r}"
    return done.output


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of_memes(memes: list[Meme]) -> list[dict[str, Any]]:
    return [{"id": meme.id, "image": str(meme.image), "text": meme.text} for meme in memes]


@pytest.fixture(scope="module")
def lab(served_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fused head on a tiny CLIP, `head`, and stores `train`, `dev` and `test` of its features."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("head", "features/train", "features/dev", "features/test"):
        shutil.copytree(served_clip / name, folder / Path(name).name)
    return folder


@pytest.fixture(scope="module")
def test_memes(memes: Path) -> list[Meme]:
    return read_memes(memes / "a" / "test.jsonl")


@pytest.fixture
def detector(lab: Path) -> Detector:
    return Detector.from_run(lab / "head", lab / "train", batch_size=4)


@pytest.mark.parametrize("head", ["lrc", "rkc"])
def test_scores_are_those_of_the_store(lab: Path, memes: Path, tmp_path: Path, head: str) -> None:
    common = ["--checkpoint", lab / "head", "--head", head]
    bank = ["--bank", lab / "train"]
    ra_hmd("predict", *common, "--queries", lab / "test", "--output", tmp_path / "store.jsonl",
           *(bank if head == "rkc" else []))  # fmt: skip
    ra_hmd("predict", *common, *bank, "--input", memes / "a" / "test.jsonl", "--output", tmp_path / "out.jsonl",
           "--batch-size", "3")  # fmt: skip
    expected, found = lines_of(tmp_path / "store.jsonl"), lines_of(tmp_path / "out.jsonl")
    assert [one["id"] for one in found] == [one["id"] for one in expected]
    assert len(found) > 8
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
        assert (one["head"], one["verdict"]) == (head, other["verdict"])
        assert one["scores"][head] == one["score"]
        if head == "rkc":
            assert {near["id"] for near in one["neighbours"]} == {near["id"] for near in other["neighbours"]}


def test_each_format_says_the_same(lab: Path, detector: Detector, test_memes: list[Meme], tmp_path: Path) -> None:
    rows = rows_of_memes(test_memes)
    rows[0]["text"] = 'a "quoted", text\nof two lines'
    source = write_rows(tmp_path / "memes.jsonl", rows)
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        predict_files(detector, source, tmp_path / name, show=False)
    predict_files(detector, source, tmp_path / "hc.csv", style="hateclipper-csv", show=False)
    known = lines_of(tmp_path / "out.jsonl")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    with (tmp_path / "hc.csv").open(newline="", encoding="utf-8") as file:
        short = list(csv.DictReader(file))
    columns = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(known) == len(rows)
    assert {one["verdict"] for one in known} <= {0, 1}
    for line, row, column, pair in zip(known, table, columns, short, strict=True):
        assert list(row) == list(column)
        assert column["text"] == row["text"] == line["text"]
        assert float(row["lrc_score"]) == column["lrc_score"] == line["scores"]["lrc"]
        assert (row["lmh_score"], column["lmh_score"]) == ("", None)
        assert int(row["verdict"]) == column["verdict"] == column["rkc_verdict"] == line["verdict"]
        assert json.loads(row["neighbours"]) == line["neighbours"]
        assert [{key: near[key] for key in ("id", "label", "vote")} for near in column["neighbours"]] == [
            {key: near[key] for key in ("id", "label", "vote")} for near in line["neighbours"]
        ]
        assert pair == {"id": line["id"], "prob_hate": str(line["probability"]), "pred_label": str(line["verdict"])}
    with pytest.raises(UserError, match="contradict each other"):
        predict_files(detector, source, tmp_path / "x.parquet", style="csv", show=False)
    with pytest.raises(UserError, match=r"x.txt.*--format"):
        predict_files(detector, source, tmp_path / "x.txt", show=False)
    careful = Detector.from_run(lab / "head", head="lrc", abstain=0.1)
    with pytest.raises(UserError, match="left to a person"):
        predict_files(careful, source, tmp_path / "x.csv", style="hateclipper-csv", show=False)


def test_each_kind_of_input_gives_the_same(detector: Detector, test_memes: list[Meme], tmp_path: Path) -> None:
    rows = rows_of_memes(test_memes)[:6]
    for number, row in enumerate(rows):
        row["id"] = f"p/{number}.png"
        (tmp_path / "folder/p").mkdir(parents=True, exist_ok=True)
        shutil.copy(row["image"], tmp_path / "folder" / row["id"])
        row["image"] = f"folder/{row['id']}"  # beside the file
    (tmp_path / "folder/notes.txt").write_text("no picture")
    write_rows(tmp_path / "m.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    with (tmp_path / "m.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    outputs = []
    for kind in ("jsonl", "csv", "parquet"):
        predict_files(detector, tmp_path / f"m.{kind}", tmp_path / f"{kind}.jsonl", show=False)
        outputs.append((tmp_path / f"{kind}.jsonl").read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    assert [one["id"] for one in lines_of(tmp_path / "csv.jsonl")] == [row["id"] for row in rows]
    asked = list(read_batch(tmp_path / "folder"))
    expected = [Meme(row["id"], tmp_path / row["image"]) for row in rows]
    assert [one.meme for one in asked] == [Meme("notes.txt", tmp_path / "folder/notes.txt"), *expected]


def test_bad_rows_are_set_aside_with_their_reason(
    detector: Detector, test_memes: list[Meme], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ra_hmd.data.rows._LONGEST_LINE", 4000)
    good = rows_of_memes(test_memes)[:5]
    picture = good[0]["image"]
    (tmp_path / "torn.png").write_bytes(Path(picture).read_bytes()[:60])
    shutil.copy(picture, tmp_path / "fine.png")
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"
    (tmp_path / "run.png").write_text(program)
    bad = {
        "not valid JSON": b'{"id": "a", ',
        "not UTF-8": b'{"id": "b\xff", "image": "fine.png", "text": "x"}',
        "longer than 4000 bytes": json.dumps({"id": "c", "image": picture, "text": "x" * 12_500}).encode(),
        "a list stands where an object is needed": b"[1]",
        "it has no `id`": b'{"image": "fine.png", "text": "x"}',
        "it has no `image` (or `img`)": b'{"id": "d", "text": "x"}',
        "its text is of type list": b'{"id": "e", "image": "fine.png", "text": ["x"]}',
        "its id came before": json.dumps(good[1]).encode(),
        "does not exist": b'{"id": "f", "image": "gone.png", "text": "x"}',
        "cannot be decoded": b'{"id": "g", "image": "torn.png", "text": "x"}',
        "PostScript is not decoded": b'{"id": "i", "image": "run.png", "text": "x"}',
        "null": b'{"id": "h", "image": "nul\\u0000.png", "text": "x"}',
    }
    lines = [json.dumps(row).encode() for row in good]
    content = lines[:2] + list(bad.values()) + [b"", *lines[2:4]] + [json.dumps(good[4]).encode()]
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(content))
    done = predict_files(detector, tmp_path / "m.jsonl", tmp_path / "out.jsonl", chunk_size=4, show=False)
    assert [one["id"] for one in lines_of(tmp_path / "out.jsonl")] == [row["id"] for row in good]
    rejected = lines_of(tmp_path / "out.jsonl.rejected.jsonl")
    assert [one["place"] for one in rejected] == [f"m.jsonl, line {number}" for number in range(3, 3 + len(bad))]
    for one, reason in zip(rejected, bad, strict=True):
        assert reason in one["reason"]
    assert [one["id"] for one in rejected[5:]] == ["d", "e", good[1]["id"], "f", "g", "i", "h"]
    assert (done["rows"], done["judged"], done["rejected"]) == (17, 5, 12)
    assert sum(done["reasons"].values()) == 12
    assert sum(done["verdicts"].values()) == 5
    stored = read_json(tmp_path / "out.jsonl.manifest.json")
    assert stored.output_sha256 == sha256_file(tmp_path / "out.jsonl")
    assert stored.memes_per_second > 0
    assert stored.bank.sha256 == detector.version["bank"]["sha256"]
    assert not (tmp_path / "out.jsonl.parts").exists()
    # The good rows alone have the same numbers to float accuracy: a bad neighbour changes nothing.
    predict_files(detector, write_rows(tmp_path / "good.jsonl", good), tmp_path / "good.out.jsonl", show=False)
    for one, other in zip(lines_of(tmp_path / "good.out.jsonl"), lines_of(tmp_path / "out.jsonl"), strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_a_run_in_which_no_row_could_be_judged_fails(lab: Path, test_memes: list[Meme], tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    rows = [{"id": name, "image": str(tmp_path / "no.png"), "text": ""} for name in "ab"]
    source, output = write_rows(tmp_path / "m.jsonl", rows), tmp_path / "out.jsonl"
    words = ["predict", "--checkpoint", lab / "head", "--input", source, "--output", output]
    for _ in range(2):  # the second time from what the first one wrote
        assert "None of the 2 rows" in " ".join(ra_hmd(*words, code=2).split())
    assert [one["id"] for one in lines_of(tmp_path / "out.jsonl.rejected.jsonl")] == ["a", "b"]
    write_rows(source, [*rows, *rows_of_memes(test_memes[:1])])
    assert "1 memes" in ra_hmd(*words[:-1], tmp_path / "other.jsonl")


def test_what_has_no_meme_is_refused_before_work(detector: Detector, tmp_path: Path) -> None:
    for source, said in (
        (write_rows(tmp_path / "a.jsonl", [{"id": 1, "picture": "x"}]), "line 1: it has no `image`"),
        (write_rows(tmp_path / "b.jsonl", []), "has no rows"),
        (tmp_path / "gone.csv", "does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            predict_files(detector, source, tmp_path / "out.jsonl", show=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images"):
        predict_files(detector, tmp_path / "empty", tmp_path / "out.jsonl", show=False)
    assert not list(tmp_path.glob("out*"))


def test_a_replaced_picture_is_judged_anew(lab: Path, test_memes: list[Meme], tmp_path: Path) -> None:
    """Old numbers are never told of new batch, whether the run was ended or stopped; the input file stays the same."""
    detector = Detector.from_run(lab / "head", lab / "train", batch_size=1)
    rows = [row | {"image": f"{number}.bmp"} for number, row in enumerate(rows_of_memes(test_memes)[:20])]
    for number, meme in enumerate(test_memes[:20]):
        Image.open(meme.image).convert("RGB").save(tmp_path / f"{number}.bmp")
    whole = (tmp_path / "3.bmp").read_bytes()
    (tmp_path / "3.bmp").write_bytes(whole[:90])
    source, output = write_rows(tmp_path / "m.jsonl", rows), tmp_path / "out.jsonl"

    def judge(name: str = "out.jsonl") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        predict_files(detector, source, tmp_path / name, chunk_size=5, show=False)
        return lines_of(tmp_path / name), lines_of(tmp_path / f"{name}.rejected.jsonl")

    first, rejected = judge()
    assert [one["id"] for one in rejected] == [rows[3]["id"]]
    stamp = (tmp_path / "8.bmp").stat()
    (tmp_path / "3.bmp").write_bytes(whole)  # mended
    (tmp_path / "8.bmp").write_bytes((tmp_path / "12.bmp").read_bytes())  # replaced; size and time stay
    os.utime(tmp_path / "8.bmp", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second, rejected = judge()
    assert rejected == []
    assert second == judge("fresh.jsonl")[0]
    assert second[8]["scores"] != first[7]["scores"]
    before = output.stat().st_mtime_ns
    assert judge()[0] == second
    assert output.stat().st_mtime_ns == before, "nothing changed: nothing is done"


def test_of_a_stopped_run_only_chunks_of_replaced_pictures_are_made_again(
    lab: Path, test_memes: list[Meme], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.from_run(lab / "head", lab / "train", batch_size=1)
    for number, meme in enumerate(test_memes[:6]):
        Image.open(meme.image).convert("RGB").save(tmp_path / f"{number}.bmp")
    rows = [row | {"image": f"{number}.bmp"} for number, row in enumerate(rows_of_memes(test_memes)[:6])]
    source, output = write_rows(tmp_path / "m.jsonl", rows), tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(batch, "_finish", lambda *_, **__: {})  # stopped before the parts are merged
        predict_files(detector, source, output, chunk_size=2, show=False)
    parts = sorted((tmp_path / "out.jsonl.parts").glob("chunk-*.jsonl"))
    kept = {path.name: path.stat().st_mtime_ns for path in parts}
    shutil.copy(tmp_path / "5.bmp", tmp_path / "2.bmp")
    with monkeypatch.context() as patched:
        patched.setattr(batch, "_finish", lambda *_, **__: {})
        predict_files(detector, source, output, chunk_size=2, show=False)
    assert [path.stat().st_mtime_ns != kept[path.name] for path in parts] == [False, True, False]
    predict_files(detector, source, output, chunk_size=2, show=False)
    predict_files(detector, source, tmp_path / "fresh.jsonl", chunk_size=2, show=False)
    assert output.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_every_file_of_a_folder_is_judged_or_listed(
    lab: Path, detector: Detector, test_memes: list[Meme], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "phone"
    folder.mkdir()
    picture = Image.open(test_memes[0].image).convert("RGB")
    known_formats()
    picture.save(folder / "a.heic", "HEIF")
    picture.save(folder / "b", "PNG")  # no suffix
    picture.save(folder / "c.dat", "PNG")  # an unknown one
    picture.save(folder / "d.jpg", "WEBP")  # a wrong one
    picture.save(folder / "e.avif", "AVIF")
    (folder / "f.jxl").write_bytes(b"\xff\x0a\xfa\x7f\x01")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    rows = [{"id": "x", "image": str(test_memes[0].image), "text": "tea"}]
    predict_files(detector, write_rows(tmp_path / "m.jsonl", rows), tmp_path / "known.jsonl", show=False)
    monkeypatch.setattr(Detector, "_read", lambda *_: ("tea", "stub"))
    output = folder / "verdicts.jsonl"  # its own files are no rows
    done = predict_files(detector, folder, output, show=False)
    assert (done["rows"], done["judged"], done["rejected"]) == (10, 5, 5)
    found = {one["id"]: one for one in lines_of(output)}
    assert set(found) == {"a.heic", "b", "c.dat", "d.jpg", "e.avif"}
    assert found["b"]["scores"] == found["c.dat"]["scores"]
    assert found["b"]["scores"]["lrc"] == pytest.approx(
        lines_of(tmp_path / "known.jsonl")[0]["scores"]["lrc"], abs=1e-5
    )
    reasons = {one["id"]: one["reason"] for one in lines_of(folder / "verdicts.jsonl.rejected.jsonl")}
    assert set(reasons) == {"f.jxl", "notes.txt", ".hidden", "pipe", "link"}
    assert "JPEG XL is not decoded" in reasons["f.jxl"]
    before = output.stat().st_mtime_ns
    assert predict_files(detector, folder, output, show=False)["rows"] == 10
    assert output.stat().st_mtime_ns == before
    (tmp_path / "words").mkdir()
    (tmp_path / "words/a.txt").write_text("no picture")
    with pytest.raises(UserError, match="a.txt: no image format"):
        predict_files(detector, tmp_path / "words", tmp_path / "w.jsonl", show=False)


def test_rows_are_read_as_they_are_judged(detector: Detector, test_memes: list[Meme]) -> None:
    taken = 0

    def chunks() -> Iterator[tuple[int, list[BatchRow]]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number, [BatchRow("here", meme.id, Meme(meme.id, meme.image, meme.text)) for meme in test_memes[:5]]

    judged = judge_chunks(detector, chunks(), workers=1)  # four pictures ahead: less than a chunk
    for done in range(1, 6):
        number, _, lines = next(judged)
        assert (number, len(lines)) == (done - 1, 5)
        assert taken <= done + 2
    judged.close()
    assert taken < 10


@pytest.fixture(scope="module")
def many(test_memes: list[Meme], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred rows; each seventh cannot be judged."""
    rows = [
        row | {"id": f"{turn}-{row['id']}", "image": "gone.png" if number % 7 == 3 else row["image"]}
        for turn in range(40)
        for number, row in enumerate(rows_of_memes(test_memes)[:12])
    ]
    return write_rows(tmp_path_factory.mktemp("many") / "many.jsonl", rows)


@pytest.fixture(scope="module")
def undisturbed(lab: Path, many: Path) -> Path:
    detector = Detector.from_run(lab / "head", lab / "train", batch_size=1)
    predict_files(detector, many, many.parent / "whole.jsonl", show=False)
    assert len(lines_of(many.parent / "whole.jsonl")) == 400
    return many.parent / "whole.jsonl"


@pytest.mark.slow
def test_killed_and_resumed(lab: Path, many: Path, undisturbed: Path, tmp_path: Path) -> None:
    output, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    words = [str(BIN / "ra-hmd"), "predict", "--checkpoint", str(lab / "head"), "--bank", str(lab / "train")]
    words += ["--input", str(many), "--batch-size", "1", "--output", str(output)]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=child_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while len(list(parts.glob("chunk-*.jsonl"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("chunk-*.jsonl")}
    assert 3 <= len(kept) < 60
    assert not output.exists()
    other = Detector.from_run(lab / "head", lab / "train", head="lrc", batch_size=1)
    with pytest.raises(UserError, match="unfinished work of another run; what differs: head"):
        predict_files(other, many, output, options=read_json(parts / "fingerprint.json").options, show=False)
    (parts / "chunk-0000001.jsonl").unlink()  # the marks of the others tell that they are not made again
    first = json.loads((parts / "chunk-0000000.jsonl").read_text().splitlines()[0])
    (parts / "chunk-0000000.jsonl").write_text(
        (parts / "chunk-0000000.jsonl").read_text().replace(str(first["seconds"]), "1000.0")
    )
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stdout
    assert output.read_bytes() == undisturbed.read_bytes()
    rejects = [Path(f"{path}.rejected.jsonl").read_bytes() for path in (output, undisturbed)]
    assert rejects[0] == rejects[1]
    assert len(rejects[0].splitlines()) == 80
    manifest = read_json(f"{output}.manifest.json")
    assert manifest.seconds > 1000
    assert not parts.exists()
    before = output.stat().st_mtime_ns
    ra_hmd(*words[1:])  # done already: nothing happens
    assert output.stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_ranks(lab: Path, many: Path, undisturbed: Path, tmp_path: Path) -> None:
    words = [
        str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone", "--no-python", str(BIN / "ra-hmd"),
        "predict", "--checkpoint", str(lab / "head"), "--bank", str(lab / "train"), "--input", str(many),
        "--batch-size", "1", "--output", "out.jsonl",
    ]  # fmt: skip
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stdout
    found, expected = lines_of(tmp_path / "out.jsonl"), lines_of(undisturbed)
    assert [one["id"] for one in found] == [one["id"] for one in expected]
    for one, other in zip(found, expected, strict=True):  # other processes: equal but for the last digits
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)
        assert one["verdict"] == other["verdict"]
    assert done.stdout.count("out.jsonl: 400 memes") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.jsonl", "out.jsonl.manifest.json", "out.jsonl.rejected.jsonl"
    ]  # fmt: skip


def test_pictures_on_the_command_line(lab: Path, test_memes: list[Meme]) -> None:
    one, two = test_memes[:2]
    words = ["predict", "--checkpoint", lab / "head", "--bank", lab / "train", one.image, two.image]
    words += ["--text", one.text, "--text", two.text]
    printed = CliRunner().invoke(app, [str(word) for word in [*words, "--json"]])
    found = [json.loads(line) for line in printed.stdout.splitlines()]  # nothing else on stdout
    expected = Detector.from_run(lab / "head", lab / "train")([Meme(one.id, one.image, one.text)])[0]
    assert [line["id"] for line in found] == [str(one.image), str(two.image)]
    assert found[0]["scores"] == pytest.approx(expected.scores, abs=1e-4)
    shown = ra_hmd(*words)
    assert "nearest neighbours" in shown
    assert OFFICIAL_NOTE in shown
    assert all(str(meme.image) in shown.splitlines() for meme in (one, two))
    assert f"{found[0]['scores']['rkc']:.3f}" in shown


def test_options_that_contradict_each_other(lab: Path, test_memes: list[Meme], tmp_path: Path) -> None:
    picture, output = test_memes[0].image, ["--output", tmp_path / "o.jsonl"]
    for words, said in (
        ([], "none is given"),
        ([picture, "--input", tmp_path, *output], "IMAGE and --input are given"),
        (["--input", tmp_path], "--input needs --output"),
        (["--queries", lab / "test", "--batch-size", "2", *output], "--batch-size goes with IMAGE or --input"),
        ([picture, *output], "--output goes with --input or --queries"),
        ([picture, "--topk", "3"], "The options of the vote need --bank"),
        ([picture, "--text", "a", "--text", "b"], "2 --text for 1 "),
        (["--input", tmp_path, "--text", "a", *output], "--text goes with IMAGE"),
        ([tmp_path], "is a folder"),
        ([tmp_path / "none.png", "--text", "a"], "none.png does not exist; check its path"),
        ([picture, "--dtype", "int3"], "`dtype`: 'int3' is not one of"),
    ):
        assert said in ra_hmd("predict", "--checkpoint", lab / "head", *words, code=2)
    assert not list(tmp_path.iterdir())
