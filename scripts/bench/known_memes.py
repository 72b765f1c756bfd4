"""Known memes first: copies that are found, false matches among confounders, and memes per second.

The bank holds the training memes of both domains of the synthetic confounders: groups of four with two pictures and two
captions each, so a picture comes with another caption and another label. Asked are

- copies of rows of the bank, changed in one way each, under their own caption. *Found* is a match with the row; *right*
  and *wrong* are verdicts with its label and with another;
- text confounders: the scene of a row with the other caption of its group, which the bank does not hold here;
- the test memes, of which the bank has no scene: a verdict by a hash, right or wrong, is a match of different pictures;
- foreign pictures (coloured tiles), each under the caption of a row.

Times are for rows of random hashes, and of a detector with a head on a CLIP of ViT-B/32's size (random weights) over
copies and new memes, half and half.

    OMP_NUM_THREADS=1 python scripts/bench/known_memes.py [--memes 2000] [--queries 400] [--part copies search detector]

About four minutes on one core.
"""

import argparse
import io
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from encode import make_encoder
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

from ra_hmd.bank.known_memes import KnownMemes, LabelledRows
from ra_hmd.bank.versions import BankRows
from ra_hmd.cli.app import app
from ra_hmd.data.image_hashes import PDQ_BITS, caption_digest, pdq_hash, pdq_hashes, phashes
from ra_hmd.data.images import content_hash, load_image, perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.data.synthetic.confounders import make_confounders
from ra_hmd.inference.detector import Detector

Asked = tuple[Image.Image, str, int]  # picture, caption, label


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """A change: compress."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return load_image(file.getvalue())

    return change


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    """A change: resize."""
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)))


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """A change: cut a share of the side off, at each edge half of it."""

    def change(image: Image.Image) -> Image.Image:
        x, y = (round(side * share / 2) for side in image.size)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 50": jpeg(50),
    "JPEG, quality 20": jpeg(20),
    "resized to half": scaled(0.5),
    "resized to three times": scaled(3),
    "cropped by 2 %": cropped(0.02),
    "cropped by 5 %": cropped(0.05),
    "cropped by 10 %": cropped(0.1),
    "20 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "rotated by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def rows_of(memes: list[Meme], kind: str) -> BankRows:
    """Rows of the memes with one kind of hash."""
    images = [load_image(meme.path) for meme in memes]
    texts = [meme.caption for meme in memes]
    pdq = kind == "pdq"
    return BankRows(
        [meme.id for meme in memes],
        np.array([meme.label for meme in memes]),
        image_hashes=np.array([0 if pdq else perceptual_hash(image) or 0 for image in images], np.uint64),
        contents=[content_hash(image, text) for image, text in zip(images, texts, strict=True)],
        pdqs=[pdq_hash(image) if pdq else "" for image in images],
        caption_digests=[caption_digest(text) for text in texts],
    )


def count(known: KnownMemes, asked: Iterable[Asked], ids: list[str] | None = None) -> str:
    """Shares of what is asked: found (`ids`: as this row), decided right, and decided wrong."""
    counts: Counter[str] = Counter()
    for place, (image, text, label) in enumerate(asked):
        found = known.find(known.hashes(image, text, content_hash(image, text)))
        counts["asked"] += 1
        counts["found"] += found is not None and (ids is None or found.id == ids[place])
        if found is not None and found.decides:
            counts["right" if found.label == label else "wrong"] += 1
    shares = (100 * counts[name] / counts["asked"] for name in ("found", "right", "wrong"))
    return " / ".join(f"{share:.1f}" for share in shares)


def tiles(seed: int) -> Image.Image:
    """A picture that is none of the synthetic memes'."""
    data = random.Random(seed).randbytes(3 * 24 * 24)
    return Image.frombytes("RGB", (24, 24), data).resize((112, 112), Image.Resampling.BICUBIC)


def measure_copies(folder: Path, queries: int) -> None:
    """Print shares of copies and confounders that are found and decided."""
    train = [meme for name in "ab" for meme in read_memes(folder / name / "train.jsonl")]
    test = [meme for name in "ab" for meme in read_memes(folder / name / "test.jsonl")]
    chosen = random.Random(0).sample(train, min(queries, len(train)))
    captions = {meme.caption: meme for meme in train}
    print(f"{len(train)} rows, {len(chosen)} copies of each kind, {len(test)} test memes")
    print("percent found / decided right / decided wrong")
    for kind, limit, turned in (("pdq", 31, False), ("pdq", 16, False), ("phash", 31, False), ("pdq", 31, True)):
        known = KnownMemes([LabelledRows.fixed(rows_of(train, kind))], limit, turned)
        print(f"\n{kind}, limit {limit}{', turned' if turned else ''}")
        for name, change in CHANGES.items():
            asked = [(change(load_image(meme.path)), meme.caption, meme.label) for meme in chosen]
            print(f"  copy, {name}: {count(known, asked, [meme.id for meme in chosen])}")
        print(f"  text confounders of rows: {confounders(known, folder, kind)}")
        print(f"  test memes, other scenes: {count(known, [(load_image(m.path), m.caption, m.label) for m in test])}")
        foreign = [(tiles(seed), text, meme.label) for seed, (text, meme) in enumerate(captions.items())]
        print(f"  foreign pictures with a row's caption: {count(known, foreign)}", flush=True)


def confounders(known: KnownMemes, folder: Path, kind: str) -> str:
    """Shares where the bank holds one row of each scene, and the other one is asked: another caption, another label."""
    kept, asked, seen = [], [], set()
    for name in "ab":
        scenes = {
            row.values["id"]: json.dumps(row.values["image"]) for row in jsonl_rows(folder / name / "attributes.jsonl")
        }
        for meme in read_memes(folder / name / "train.jsonl"):
            (asked if scenes[meme.id] in seen else kept).append(meme)
            seen.add(scenes[meme.id])
    half = KnownMemes([LabelledRows.fixed(rows_of(kept, kind))], known.limit, known.turned)
    return count(half, [(load_image(meme.path), meme.caption, meme.label) for meme in asked])


def measure_search() -> None:
    """Print milliseconds per meme of hashing and of searching."""
    rng = np.random.default_rng(0)
    for side in (112, 512, 1024):
        image = tiles(0).resize((side, side))
        for name, call in {
            "pdq": lambda image=image: pdq_hash(image),
            "pdq, turned": lambda image=image: pdq_hashes(image, turned=True),
            "phash": lambda image=image: phashes(image),
        }.items():
            print(f"hash, {side} x {side}, {name}: {milliseconds(call):.2f} ms")
    for count_ in (10_000, 100_000, 1_000_000):
        hashes = [row.tobytes().hex() for row in rng.integers(0, 256, (count_, PDQ_BITS // 8), np.uint8)]
        names = list(map(str, range(count_)))
        rows = BankRows(names, np.zeros(count_, int), pdqs=hashes, caption_digests=names)
        for turned in (False, True):
            known = KnownMemes([LabelledRows.fixed(rows)], 31, turned)
            began = time.perf_counter()
            meme = known.hashes(tiles(1), "a caption", "")
            built = time.perf_counter() - began
            took = milliseconds(lambda known=known, meme=meme: known.find(meme))
            print(f"search, {count_} rows{', turned' if turned else ''}: {took:.2f} ms; index built in {built:.2f} s")


def milliseconds(call: Callable[[], Any], seconds: float = 1.0) -> float:
    """Mean time of a call."""
    call()
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        call()
        calls += 1
    return 1000 * spent / calls


def measure_detector(folder: Path, memes: Path) -> None:
    """Print memes per second of a detector without and with known memes, by the share of memes that are known."""
    make_encoder(folder / "clip", "vit-b-32")
    for split in ("train", "dev"):
        run("encode", "--encoder", folder / "clip", "--data", memes / "a", "--split", split, "--workers", "0",
            "--output", folder / split)  # fmt: skip
    (folder / "head.yaml").write_text("fusion: align\nmap_dim: 64\nproj_dim: 64\nnum_layers: 1\nepochs: 1\n")
    run("train-head", folder / "head.yaml", f"train={folder / 'train'}", f"dev={folder / 'dev'}",
        f"output_dir={folder / 'head'}")  # fmt: skip
    run("bank", "create", folder / "bank", "--checkpoint", folder / "head", "--features", folder / "train",
        "--author", "bench")  # fmt: skip
    known = [replace(meme, image=jpeg(90)(load_image(meme.path))) for meme in read_memes(memes / "a" / "train.jsonl")]
    new = [replace(meme, text=f"{meme.text} again") for meme in read_memes(memes / "a" / "dev.jsonl")]
    plain = Detector.from_run(folder / "head", folder / "bank")
    first = Detector.from_run(folder / "head", folder / "bank", known_memes=31)
    for name, asked in {"none": new[:32], "half": [*new[:16], *known[:16]], "all": known[:32]}.items():
        found = sum(not verdict.scores for verdict in first(asked))
        rates = [1000 * len(asked) / milliseconds(partial(one, asked), 10) for one in (plain, first)]
        shown = f"{name} of the memes known ({found} of {len(asked)})"
        print(f"{shown}: {rates[0]:.1f} → {rates[1]:.1f} memes/s", flush=True)


def run(*words: str | Path) -> None:
    """A command of this package."""
    done = CliRunner().invoke(app, list(map(str, words)))
    if done.exit_code:
        raise SystemExit(f"{words}: {done.output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memes", type=int, default=2000, help="training memes of each domain")
    parser.add_argument("--queries", type=int, default=400, help="copies of each kind")
    parser.add_argument("--part", nargs="+", default=["copies", "search", "detector"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if "copies" in args.part:
            make_confounders(folder / "memes", args.memes)
            measure_copies(folder / "memes", args.queries)
        if "search" in args.part:
            measure_search()
        if "detector" in args.part:
            make_confounders(folder / "few", 192)
            measure_detector(folder, folder / "few")


if __name__ == "__main__":
    main()
