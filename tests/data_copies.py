"""A small invented copy of every data set, in the layout of its owner, for tests that need one of each kind."""

import json
from collections.abc import Callable
from pathlib import Path

from meme_files import jsonl, picture, table

TEXTS = ("a cat reads the news", "coffee is ready", "rain again on monday", "the sea is calm today")


def hateful_memes(root: Path) -> Path:
    for start, split in ((1, "train"), (101, "dev_seen"), (201, "test_seen")):
        numbers = range(start, start + 4)
        for number in numbers:
            picture(root / "img" / f"{number:05d}.png")
        rows = [{"id": n, "img": f"img/{n:05d}.png", "label": n % 2, "text": f"{TEXTS[n % 4]} {n}"} for n in numbers]
        jsonl(root / f"{split}.jsonl", rows, escape=True, end=False)
    return root


def _harmeme(root: Path, folder: str, prefix: str, stem: str) -> Path:
    for start, split in ((1, "train"), (101, "val"), (201, "test")):
        rows = []
        for number in range(start, start + 4):
            picture(root / "images" / f"{prefix}{number}.png")
            labels = ["not harmful"] if number % 2 else ["somewhat harmful", "community"]
            text = f"{TEXTS[number % 4]}\n{number}\n"
            rows.append({"id": f"{prefix}{number}", "image": f"{prefix}{number}.png", "labels": labels, "text": text})
        jsonl(root / "Annotations" / folder / f"{split}{stem}.jsonl", rows, crlf=True)
    return root


def harm_c(root: Path) -> Path:
    return _harmeme(root, "Harm-C", "covid_memes_", "")


def harm_p(root: Path) -> Path:
    return _harmeme(root, "Harm-P", "memes_", "_v1")


def mami(root: Path) -> Path:
    labels = ("misogynous", "shaming", "stereotype", "objectification", "violence")
    head = "\t".join(("file_name", *labels, "Text Transcription"))
    rows = []
    for number in range(1, 5):
        picture(root / "TRAINING" / f"{number}.jpg")
        rows.append(f"{number}.jpg\t{number % 2}\t0\t{number % 2}\t0\t0\t{TEXTS[number % 4].upper()} {number}")
    table(root / "TRAINING" / "training.csv", "\n".join((head, *rows)) + "\n", bom=True)
    for number in (15001, 15002):
        picture(root / "test" / f"{number}.jpg")
    rows = [f"{number}.jpg\t{TEXTS[number % 4].upper()} {number}" for number in (15001, 15002)]
    table(root / "test" / "Test.csv", "\n".join(("file_name\tText Transcription", *rows)) + "\n")
    table(root / "test_labels.txt", "15002.jpg\t0\t0\t0\t0\t0\n15001.jpg\t1\t0\t1\t0\t0\n")
    return root


def multioff(root: Path) -> Path:
    for start, split in ((1, "Training"), (101, "Validation"), (201, "Testing")):
        rows = ["image_name,sentence,label"]
        for number in range(start, start + 4):
            picture(root / "Labelled Images" / f"x{number}.jpg.png", "PNG")
            label = "offensive" if number % 2 else "Non-offensiv"
            rows.append(f'x{number}.jpg.png,"{TEXTS[number % 4]} , {number} ",{label}')
        table(root / "Split Dataset" / f"{split}_meme_dataset.csv", "\n".join(rows) + "\n", crlf=True)
    return root


def pridemm(root: Path) -> Path:
    rows = ["name,hate,target,stance,humour,split,text"]
    for number in range(1, 13):
        picture(root / "Images" / f"img_{number}.png")
        split = ("train", "val", "test")[(number - 1) // 4]
        hate = number % 2
        rows.append(
            f"img_{number}.png,{hate},{2 if hate else 'NA'},{number % 3},{number % 2},{split},"
            f"{TEXTS[number % 4]} {number} "
        )
    table(root / "PrideMM.csv", "\n".join(rows) + "\n")
    return root


def memotion(root: Path) -> Path:
    train = root / "memotion_dataset_7k"
    rows = [",image_name,text_ocr,text_corrected,humour,sarcasm,offensive,motivational,overall_sentiment"]
    for number in range(12):
        picture(train / "images" / f"image_{number}.jpg")
        offensive = "slight" if number % 2 else "not_offensive"
        rows.append(
            f"{number},image_{number}.jpg,X,{TEXTS[number % 4]} {number},funny,general,{offensive},"
            "not_motivational,neutral"
        )
    table(train / "labels.csv", "\n".join(rows) + "\n")
    rows = ["Image_name,Image_URL,OCR_extracted_text,corrected_text"]
    truth = ["Image_name,Labels"]
    for number in range(2):
        picture(root / "test" / "2000_data" / f"t_{number}.webp")
        rows.append(f"t_{number}.webp,u,X,{TEXTS[number]} test")
        truth.append(f"t_{number}.webp,-1_10{number}0_20{number}0")
    table(root / "test" / "2000_testdata.csv", "\n".join(rows) + "\n")
    table(root / "test" / "Meme_groundTruth.csv", "\n".join(truth) + "\n")
    return root


def mmhs150k(root: Path) -> Path:
    records = {}
    for number in range(12):
        name = str(1_110_000_000_000_000_000 + number)
        picture(root / "img_resized" / f"{name}.jpg")
        votes = [0, 1, 2] if number % 2 else [0, 0, 3]
        records[name] = {"tweet_text": f"@b {TEXTS[number % 4]} {number} https://t.co/x", "labels": votes,
                         "labels_str": ["", "", ""], "tweet_url": "", "img_url": ""}  # fmt: skip
    table(root / "MMHS150K_GT.json", json.dumps(records))
    names = list(records)
    for split, part in (("train", names[:6]), ("val", names[6:9]), ("test", names[9:])):
        table(root / "splits" / f"{split}_ids.txt", "\n".join(part) + "\n")
    return root


def propaganda(root: Path) -> Path:
    for start, split in ((1, "train"), (101, "val"), (201, "test")):
        rows = []
        for number in range(start, start + 4):
            name = f"{number}_image_batch_2.png"
            picture(root / "defaults" / "images" / name, "JPEG")
            labels = ["Smears", "Slogans"] if number % 2 else []
            text = f"{TEXTS[number % 4]}\n\n{number}"
            rows.append({"id": f"{number}_batch_2", "labels": labels, "text": text, "image": name})
        jsonl(root / "defaults" / "annotations" / f"{split}.jsonl", rows)
    return root


def generic(root: Path) -> Path:
    rows = ["key,file,words,hateful,part"]
    for number in range(12):
        picture(root / "pictures" / f"{number}.png")
        split = ("train", "dev", "test")[number // 4]
        rows.append(f"m{number},pictures/{number}.png,{TEXTS[number % 4]} {number},{('no', 'yes')[number % 2]},{split}")
    table(root / "mine.csv", "\n".join(rows) + "\n")
    return root


COPIES: dict[str, Callable[[Path], Path]] = {
    copy.__name__: copy
    for copy in (hateful_memes, harm_c, harm_p, mami, multioff, pridemm, memotion, mmhs150k, propaganda, generic)
}
# What `ra-hmd data import` and `to-sharegpt` need beside the names.
IMPORT_OPTIONS = {
    "generic": [
        *("--columns", "id=key", "image=file", "text=words", "label=hateful", "split=part"),
        *("--labels", "no=0", "yes=1"),
    ]
}
SHAREGPT_OPTIONS = {"propaganda": ["--task", "smears"]}
