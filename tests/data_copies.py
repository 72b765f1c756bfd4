"""A small synthetic copy of every data set, in the layout of its owner.

Every function writes a copy below `root` and returns it. `text` gives the caption of the meme with a number; without it
captions differ in the ways in which those of the data set do: line breaks, outer blanks, links, capitals.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from meme_files import jsonl, picture, table

TEXTS = ("a cat reads the news", "coffee is ready", "rain again on monday", "the sea is calm today")
Caption = Callable[[int], str] | None


def _rows(header: str, rows: Iterable[tuple[object, ...]], delimiter: str = ",") -> str:
    """A header and quoted rows as one text."""
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(rows)
    return lines.getvalue()


def hateful_memes(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4]} {n}")
    for start, split in ((1, "train"), (101, "dev_seen"), (201, "test_seen")):
        numbers = range(start, start + 4)
        for number in numbers:
            picture(root / "img" / f"{number:05d}.png")
        rows = [{"id": n, "img": f"img/{n:05d}.png", "label": n % 2, "text": text(n)} for n in numbers]
        jsonl(root / f"{split}.jsonl", rows, escape=True, end=False)
    return root


def _harmeme(root: Path, folder: str, prefix: str, stem: str, text: Caption) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4]}\n{n}\n")
    for start, split in ((1, "train"), (101, "val"), (201, "test")):
        rows = []
        for number in range(start, start + 4):
            name = f"{prefix}{number}"
            picture(root / "images" / f"{name}.png")
            labels = ["not harmful"] if number % 2 else ["somewhat harmful", "community"]
            rows.append({"id": name, "image": f"{name}.png", "labels": labels, "text": text(number)})
        jsonl(root / "Annotations" / folder / f"{split}{stem}.jsonl", rows, crlf=True)
    return root


def harm_c(root: Path, text: Caption = None) -> Path:
    return _harmeme(root, "Harm-C", "covid_memes_", "", text)


def harm_p(root: Path, text: Caption = None) -> Path:
    return _harmeme(root, "Harm-P", "memes_", "_v1", text)


def mami(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4].upper()} {n}")
    rows = []
    for number in range(1, 5):
        picture(root / "TRAINING" / f"{number}.jpg")
        rows.append((f"{number}.jpg", number % 2, 0, number % 2, 0, 0, text(number)))
    header = "file_name,misogynous,shaming,stereotype,objectification,violence,Text Transcription"
    table(root / "TRAINING" / "training.csv", _rows(header, rows, "\t"), bom=True)
    for number in (15001, 15002):
        picture(root / "test" / f"{number}.jpg")
    rows = [(f"{number}.jpg", text(number)) for number in (15001, 15002)]
    table(root / "test" / "Test.csv", _rows("file_name,Text Transcription", rows, "\t"))
    table(root / "test_labels.txt", "15002.jpg\t0\t0\t0\t0\t0\n15001.jpg\t1\t0\t1\t0\t0\n")
    return root


def multioff(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4]} , {n} ")
    for start, split in ((1, "Training"), (101, "Validation"), (201, "Testing")):
        rows = []
        for number in range(start, start + 4):
            picture(root / "Labelled Images" / f"x{number}.jpg.png", "PNG")
            rows.append((f"x{number}.jpg.png", text(number), "offensive" if number % 2 else "Non-offensiv"))
        path = root / "Split Dataset" / f"{split}_meme_dataset.csv"
        table(path, _rows("image_name,sentence,label", rows), crlf=True)
    return root


def pridemm(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4]} {n} ")
    rows = []
    for number in range(1, 13):
        picture(root / "Images" / f"img_{number}.png")
        split, hate = ("train", "val", "test")[(number - 1) // 4], number % 2
        target = 2 if hate else "NA"
        rows.append((f"img_{number}.png", hate, target, number % 3, number % 2, split, text(number)))
    table(root / "PrideMM.csv", _rows("name,hate,target,stance,humour,split,text", rows))
    return root


def memotion(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4]} {n}")
    train, rows = root / "memotion_dataset_7k", []
    for number in range(12):
        name = f"image_{number}.jpg"
        picture(train / "images" / name)
        grade = "slight" if number % 2 else "not_offensive"
        rows.append((number, name, "X", text(number), "funny", "general", grade, "not_motivational", "neutral"))
    header = ",image_name,text_ocr,text_corrected,humour,sarcasm,offensive,motivational,overall_sentiment"
    table(train / "labels.csv", _rows(header, rows))
    rows, truth = [], []
    for number in range(2):
        name = f"t_{number}.webp"
        picture(root / "test" / "2000_data" / name)
        rows.append((name, "u", "X", text(100 + number)))
        truth.append((name, f"-1_10{number}0_20{number}0"))
    header = "Image_name,Image_URL,OCR_extracted_text,corrected_text"
    table(root / "test" / "2000_testdata.csv", _rows(header, rows))
    table(root / "test" / "Meme_groundTruth.csv", _rows("Image_name,Labels", truth))
    return root


def mmhs150k(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"@b {TEXTS[n % 4]} {n} https://t.co/x")
    tweets = {}
    for number in range(12):
        name = str(1_110_000_000_000_000_000 + number)
        picture(root / "img_resized" / f"{name}.jpg")
        votes = [0, 1, 2] if number % 2 else [0, 0, 3]
        tweets[name] = {"tweet_text": text(number), "labels": votes, "labels_str": ["", "", ""], "tweet_url": "",
                        "img_url": ""}  # fmt: skip
    table(root / "MMHS150K_GT.json", json.dumps(tweets))
    names = list(tweets)
    for split, part in (("train", names[:6]), ("val", names[6:9]), ("test", names[9:])):
        table(root / "splits" / f"{split}_ids.txt", "\n".join(part) + "\n")
    return root


def propaganda(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4]}\n\n{n}")
    for start, split in ((1, "train"), (101, "val"), (201, "test")):
        rows = []
        for number in range(start, start + 4):
            name = f"{number}_image_batch_2.png"
            picture(root / "defaults" / "images" / name, "JPEG")
            labels = ["Smears", "Slogans"] if number % 2 else []
            rows.append({"id": f"{number}_batch_2", "labels": labels, "text": text(number), "image": name})
        jsonl(root / "defaults" / "annotations" / f"{split}.jsonl", rows)
    return root


def generic(root: Path, text: Caption = None) -> Path:
    text = text or (lambda n: f"{TEXTS[n % 4]} {n}")
    rows = []
    for number in range(12):
        picture(root / "pictures" / f"{number}.png")
        split = ("train", "dev", "test")[number // 4]
        rows.append((f"m{number}", f"pictures/{number}.png", text(number), ("no", "yes")[number % 2], split))
    table(root / "mine.csv", _rows("key,file,words,hateful,part", rows))
    return root


COPIES: dict[str, Callable[..., Path]] = {
    copy.__name__: copy
    for copy in (hateful_memes, harm_c, harm_p, mami, multioff, pridemm, memotion, mmhs150k, propaganda, generic)
}
COLUMNS = {"id": "key", "image": "file", "text": "words", "label": "hateful", "split": "part"}
LABELS = {"no": 0, "yes": 1}
# What `ra-hmd data import` and `to-sharegpt` need beside the names.
IMPORT_OPTIONS = {
    "generic": [
        *("--columns", *(f"{field}={column}" for field, column in COLUMNS.items())),
        *("--labels", *(f"{name}={index}" for name, index in LABELS.items())),
    ]
}
SHAREGPT_OPTIONS = {"propaganda": ["--task", "smears"]}


def reader_options(name: str) -> dict[str, dict[str, str] | dict[str, int]]:
    """The keyword arguments of `get_reader` for a copy."""
    return {"columns": COLUMNS, "labels": LABELS} if name == "generic" else {}
