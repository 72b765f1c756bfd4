"""Captions read from images: with the real engine, and with a spy that counts, stops and misreads."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rapidocr
from meme_files import Imported, imported, jsonl, picture
from PIL import Image, ImageDraw, ImageFont
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import file_digest, load_image
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.data.ocr import fill_captions, open_ocr_engine, read_text

Lines = list[tuple[str, float]]


def words(path: Path, *lines: str) -> None:
    """A white picture with some lines of text."""
    image = Image.new("RGB", (360, 60 * len(lines) + 60), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((12, 30 + 60 * number), line, fill="black", font=ImageFont.load_default(32))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def same_in_both_files(folder: Path) -> Imported:
    """What is imported in a folder, after a look whether `.jsonl` and `.parquet` agree."""
    run = Imported(folder)
    for split, rows in run.rows.items():
        parquet = pq.read_table(folder / f"{split}.parquet").to_pylist()
        assert [{**row, "extras": json.loads(row["extras"])} for row in parquet] == rows
    return run


class Spy:
    """Stands for RapidOCR: reads a picture by its grey value, an index into `says`, and notes what it was shown.

    `stops` is the number of pictures after which it fails.
    """

    def __init__(self, *says: Lines, stops: int | None = None) -> None:
        self.says, self.stops, self.shown = says, stops, []

    def __call__(self, image: np.ndarray) -> SimpleNamespace:
        if len(self.shown) == self.stops:
            raise KeyboardInterrupt
        self.shown.append(int(image[0, 0, 0]))
        lines = self.says[self.shown[-1]]
        # RapidOCR has None where it finds nothing.
        texts, scores = zip(*lines, strict=True) if lines else (None, None)
        return SimpleNamespace(txts=texts, scores=scores)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Spy], Spy]:
    """Puts a spy in RapidOCR's place."""

    def put(spy: Spy) -> Spy:
        monkeypatch.setattr(rapidocr, "RapidOCR", lambda **_: spy)
        return spy

    return put


def grey_memes(root: Path, texts: list[str], **splits: list[str]) -> Path:
    """Import memes m0, m1, … of a split, each with a picture of its own grey value (train from 0, others go on)."""
    value = 0
    for split, captions in {"train": texts, **splits}.items():
        rows = []
        for caption in captions:
            picture(root / "data" / f"{value}.png")
            Image.new("RGB", (8, 8), (value, value, value)).save(root / "data" / f"{value}.png")
            rows.append(
                {"id": f"m{value}", "image": f"{value}.png", "text": caption, "label": value % 2, "note": "kept"}
            )
            value += 1
        jsonl(root / "data" / f"{split}.jsonl", rows)
    imported("generic", root / "data", root / "out")
    return root / "out"


@pytest.mark.slow
def test_real_pictures_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words(tmp_path / "data" / "coffee.png", "coffee is ready")
    words(tmp_path / "data" / "rain.png", "rain again", "on monday")
    words(tmp_path / "data" / "blank.png")
    words(tmp_path / "data" / "known.png", "never looked at")
    rows = [
        {"id": "coffee", "image": "coffee.png", "text": "", "label": 0, "note": 1},
        {"id": "blank", "image": "blank.png", "text": " \n", "label": 1, "note": 2},
        {"id": "known", "image": "known.png", "text": "a caption of its own", "label": 1, "note": 3},
    ]
    jsonl(tmp_path / "data" / "train.jsonl", rows)
    jsonl(tmp_path / "data" / "test.jsonl", [{"id": "rain", "image": "rain.png", "text": ""}])
    before = imported("generic", tmp_path / "data", tmp_path / "out")
    real, shown, said = rapidocr.RapidOCR, [], []

    def spy(**options: Any) -> Callable[[np.ndarray], Any]:
        engine = real(**options)
        # Lines under its own threshold would never reach `min_score`.
        assert engine.text_score == 0

        def read(image: np.ndarray) -> Any:
            shown.append(image.shape)
            return engine(image)

        return read

    monkeypatch.setattr(rapidocr, "RapidOCR", spy)
    listener = logging.Handler()
    listener.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("RapidOCR").addHandler(listener)
    assert fill_captions(tmp_path / "out") == {"test": 1, "train": 1}
    logging.getLogger("RapidOCR").removeHandler(listener)
    assert [record.getMessage() for record in said] == []
    assert shown == [(180, 360, 3), (120, 360, 3), (60, 360, 3)]

    run = same_in_both_files(tmp_path / "out")
    assert run.column("test", "text") == ["rain again on monday"]
    assert run.column("train", "text") == ["coffee is ready", "", "a caption of its own"]
    assert run.column("train", "raw_text") == ["", " \n", "a caption of its own"]
    coffee, blank, known = run.column("train", "extras")
    assert coffee.keys() == {"note", "text_source", "text_score", "text_image"}
    assert coffee["text_image"] == file_digest(tmp_path / "data/coffee.png")
    assert coffee["text_source"] == f"ocr:rapidocr-{version('rapidocr')}"
    assert 0.9 < coffee["text_score"] <= 1
    assert blank == {"note": 2, "text_source": coffee["text_source"], "text_score": 0.0,
                     "text_image": file_digest(tmp_path / "data/blank.png")}  # fmt: skip
    assert known == {"note": 3}
    assert run.manifest == {**before.manifest, "ocr": dict.fromkeys(("test", "train"), coffee["text_source"])}

    told = CliRunner().invoke(app, ["data", "ocr", str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    assert told.output == "Every meme has a caption, or was read before.\n"
    assert len(shown) == 3
    assert same_in_both_files(tmp_path / "out").rows == run.rows


def test_only_empty_captions_are_filled(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    folder = grey_memes(tmp_path, ["", "has one", " \u2028 "], test=["has one too"], val=[""])
    spy = use(Spy([("tea", 0.9)], [("wrong", 1.0)], [], [("wrong", 1.0)], [("two", 0.8), (" cups ", 0.95)]))
    before = Imported(folder)
    told = CliRunner().invoke(app, ["data", "ocr", str(folder)])
    assert told.exit_code == 0, told.output
    assert told.output.splitlines()[-2:] == ["train: 1 captions read", "val: 1 captions read"]
    assert spy.shown == [0, 2, 4]
    run = same_in_both_files(folder)
    assert run.column("train", "text") == ["tea", "has one", ""]
    assert run.column("val", "text") == ["two cups"]
    assert run.column("train", "raw_text") == ["", "has one", " \u2028 "]
    source = f"ocr:rapidocr-{version('rapidocr')}"
    images = [file_digest(tmp_path / f"data/{value}.png") for value in spy.shown]
    assert run.column("train", "extras") == [
        {"note": "kept", "text_source": source, "text_score": 0.9, "text_image": images[0]},
        {"note": "kept"},
        {"note": "kept", "text_source": source, "text_score": 0.0, "text_image": images[1]},
    ]
    last = {"note": "kept", "text_source": source, "text_score": 0.8, "text_image": images[2]}
    assert run.column("val", "extras") == [last]
    assert run.rows["test"] == before.rows["test"]
    assert run.manifest["ocr"] == {"train": source, "val": source}
    others = ("id", "image", "label", "split")
    assert [[row[key] for key in others] for row in run.rows["train"]] == [
        [row[key] for key in others] for row in before.rows["train"]
    ]
    assert fill_captions(folder) == {}
    assert spy.shown == [0, 2, 4]
    assert same_in_both_files(folder).rows == run.rows


def test_a_record_without_extras_gets_those_of_the_reading_alone(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    picture(tmp_path / "data" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    rows = [{"id": name, "image": "a.png", "text": text} for name, text in (("one", ""), ("two", "known"))]
    jsonl(tmp_path / "data" / "train.jsonl", rows)
    imported("generic", tmp_path / "data", tmp_path / "out")
    use(Spy([("tea", 0.9)]))
    fill_captions(tmp_path / "out")
    one, two = same_in_both_files(tmp_path / "out").column("train", "extras")
    assert sorted(one) == ["text_image", "text_score", "text_source"]
    assert two == {}


def test_lines_below_the_least_score_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [("tea", 0.91), ("t?a", 0.3), ("milk\ud800", 0.50004), ("noise", 0.1)]
    assert read_text(Spy(lines), load_image(tmp_path / "a.png")) == {"text": "tea milk\ufffd", "score": 0.5}
    assert read_text(Spy(lines), load_image(tmp_path / "a.png"), 0.2) == {"text": "tea t?a milk\ufffd", "score": 0.3}
    assert read_text(Spy(lines), load_image(tmp_path / "a.png"), 0.95) == {"text": "", "score": 0.0}


def test_the_least_score_of_the_command(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    folder = grey_memes(tmp_path, ["", ""])
    use(Spy([("tea", 0.4)], [("milk", 0.2)]))
    told = CliRunner().invoke(app, ["data", "ocr", str(folder), "--min-score", "0.3"])
    assert told.exit_code == 0, told.output
    assert Imported(folder).column("train", "text") == ["tea", ""]


def test_colours_reach_the_engine_as_blue_green_red(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (200, 100, 0)).save(tmp_path / "a.png")
    seen: list[list[int]] = []

    def engine(image: np.ndarray) -> SimpleNamespace:
        seen.append(image[0, 0].tolist())
        return SimpleNamespace(txts=None, scores=None)

    read_text(engine, load_image(tmp_path / "a.png"))
    Image.new("LA", (4, 4), (7, 128)).save(tmp_path / "grey.png")
    read_text(engine, load_image(tmp_path / "grey.png"))
    assert seen == [[0, 100, 200], [131, 131, 131]]  # half of it is the white ground


SAYS: list[Lines] = [[("café \U0001f600", 0.9)], [], [("猫", 0.8)], [("tea", 0.7)], [("rain", 0.6)]]
TEXTS = ["café \U0001f600", "", "猫", "tea", "rain"]


def test_stopped_in_the_middle_it_goes_on_with_the_rest(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    folder = grey_memes(tmp_path, [""] * 3, val=[""] * 2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first = use(Spy(*SAYS, stops=2))
    with pytest.raises(KeyboardInterrupt):
        fill_captions(folder)
    assert first.shown == [0, 1]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    second = use(Spy(*SAYS, stops=2))
    with pytest.raises(KeyboardInterrupt):
        fill_captions(folder)
    assert second.shown == [2, 3]
    assert same_in_both_files(folder).column("train", "text") == TEXTS[:3]
    third = use(Spy(*SAYS))
    assert fill_captions(folder) == {"val": 2}
    assert third.shown == [4]
    run = same_in_both_files(folder)
    assert run.column("train", "text") + run.column("val", "text") == TEXTS
    assert run.column("val", "extras.text_score") == [0.7, 0.6]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == before.keys()


def test_each_result_is_kept_before_the_next_picture_is_read(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    folder = grey_memes(tmp_path, [""] * 3)
    kept: list[list[str]] = []

    class Watching(Spy):
        def __call__(self, image: np.ndarray) -> SimpleNamespace:
            lines = (folder / ".ocr" / "train.jsonl").read_text().split("\n")
            kept.append([json.loads(line)["id"] for line in lines if line])
            return super().__call__(image)

    use(Watching(*SAYS))
    fill_captions(folder)
    assert kept == [[], ["m0"], ["m0", "m1"]]


def test_a_result_that_was_torn_while_written_is_read_again(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    folder = grey_memes(tmp_path, [""] * 3)
    use(Spy(*SAYS, stops=1))
    with pytest.raises(KeyboardInterrupt):
        fill_captions(folder)
    (kept,) = (folder / ".ocr").iterdir()
    content = kept.read_bytes()
    assert content.endswith(b"}\n")
    for length in range(len(content) + 1):
        copy = tmp_path / f"copy{length}"
        shutil.copytree(folder, copy)
        (copy / ".ocr" / kept.name).write_bytes(content[:length])
        rest = [1, 2] if length >= len(content) - 1 else [0, 1, 2]
        second = use(Spy(*SAYS, stops=1))
        with pytest.raises(KeyboardInterrupt):
            fill_captions(copy)
        third = use(Spy(*SAYS))
        assert fill_captions(copy) == {"train": 2}
        assert (second.shown, third.shown) == (rest[:1], rest[1:])
        assert same_in_both_files(copy).column("train", "text") == TEXTS[:3]


def test_a_picture_that_cannot_be_decoded_is_reported_after_all_others(
    tmp_path: Path, use: Callable[[Spy], Spy]
) -> None:
    folder = grey_memes(tmp_path, [""] * 3, val=[""])
    whole = (tmp_path / "data" / "0.png").read_bytes()
    (tmp_path / "data" / "0.png").write_bytes(whole[:45])
    (tmp_path / "data" / "2.png").unlink()
    spy = use(Spy(*SAYS))
    with pytest.raises(UserError, match=r"images that cannot be read, all others were \(2\)") as caught:
        fill_captions(folder)
    assert "  - m0: image " in str(caught.value)
    assert "  - m2: image " in str(caught.value)
    assert spy.shown == [1, 3]
    run = same_in_both_files(folder)
    assert (run.column("train", "text"), run.column("val", "text")) == (["", "", ""], ["tea"])
    assert [sorted(extras) for extras in run.column("train", "extras")] == [
        ["note"],
        ["note", "text_image", "text_score", "text_source"],
        ["note"],
    ]
    assert run.manifest["ocr"].keys() == {"train", "val"}
    (tmp_path / "data" / "0.png").write_bytes(whole)
    told = CliRunner().invoke(app, ["data", "ocr", str(folder)])
    assert told.exit_code == 2
    assert "m2: image" in told.output
    assert "m0: image" not in told.output
    assert spy.shown == [1, 3, 0]
    assert same_in_both_files(folder).column("train", "text") == [TEXTS[0], "", ""]


def test_without_the_extra_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = grey_memes(tmp_path, [""])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"needs the extra `ocr` \(.*rapidocr.* missing\): pip install 'ra-hmd\[ocr\]'"):
        fill_captions(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_is_no_import(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    picture(tmp_path / "a.png")
    jsonl(tmp_path / "train.jsonl", [{"id": 1, "img": "a.png", "text": ""}])
    use(Spy())
    with pytest.raises(UserError, match="was not made by `ra-hmd data import`"):
        fill_captions(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "train.jsonl"}


@pytest.mark.parametrize("size", [(1, 150), (5000, 20)])
def test_thin_pictures_reach_the_engine_padded(size: tuple[int, int]) -> None:
    """The engine stretches the short side to 736 pixels; 1 x 150 took minutes, and of 5000 x 20 it raises."""
    seen: list[tuple[int, ...]] = []

    def engine(pixels: np.ndarray) -> SimpleNamespace:
        seen.append(pixels.shape)
        assert (pixels == 9).all(axis=2).sum() == size[0] * size[1]
        return SimpleNamespace(txts=None, scores=None)

    assert read_text(engine, Image.new("RGB", size, (9, 9, 9)))["text"] == ""
    ((height, width, _),) = seen
    assert max(height, width) == max(size)
    assert max(height, width) <= 8 * min(height, width)


def test_what_an_engine_raises_is_told_of_the_picture() -> None:
    def engine(_: np.ndarray) -> SimpleNamespace:
        raise RuntimeError("no room")

    with pytest.raises(UserError, match=r"of 7 x 5 pixels \(RuntimeError: no room\); give its text"):
        read_text(engine, Image.new("RGB", (7, 5)))


def test_a_replaced_picture_is_read_anew(tmp_path: Path, use: Callable[[Spy], Spy]) -> None:
    folder = grey_memes(tmp_path, ["", "", "of its own"])
    says: list[Lines] = [[("tea", 0.9)], [("milk", 0.9)], [("cake", 0.9)], [("rain", 0.9)]]
    stopped = use(Spy(*says, stops=1))
    with pytest.raises(KeyboardInterrupt):
        fill_captions(folder)
    assert stopped.shown == [0]
    Image.new("RGB", (8, 8), (2, 2, 2)).save(tmp_path / "data/0.png")  # between stop and start
    spy = use(Spy(*says))
    assert fill_captions(folder) == {"train": 2}
    assert spy.shown == [2, 1]
    assert [meme.text for meme in open_data(folder).memes("train")] == ["cake", "milk", "of its own"]
    Image.new("RGB", (8, 8), (3, 3, 3)).save(tmp_path / "data/1.png")  # after the end
    Image.new("RGB", (8, 8), (3, 3, 3)).save(tmp_path / "data/2.png")  # its caption was not read from it
    spy = use(Spy(*says))
    assert fill_captions(folder) == {"train": 1}
    assert spy.shown == [3]
    assert [meme.text for meme in open_data(folder).memes("train")] == ["cake", "rain", "of its own"]
    assert fill_captions(folder) == {}


@pytest.mark.parametrize("mode", ["LA", "RGBA", "I;16"])
def test_words_on_a_transparent_ground_are_read(tmp_path: Path, mode: str) -> None:
    words(tmp_path / "plain.png", "coffee is ready")
    grey = Image.open(tmp_path / "plain.png").convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = Image.new("RGB", grey.size)  # black throughout: the words are in the alpha channel
        image.putalpha(Image.eval(grey, lambda value: 255 - value))
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    engine, _ = open_ocr_engine()
    assert read_text(engine, load_image(tmp_path / "a.png"))["text"] == "coffee is ready"
