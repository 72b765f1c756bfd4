"""`ra-hmd encode` against the obvious loop over the same model, and its time against the number of memes.

The encoder is built with the sizes of a published one that runs on a CPU, in float32: TinyCLIP ViT-40M/32 with a text
tower of 19 M; with `--model vit-b-32` OpenAI's smallest, with `--model tiny` the one of the tests. Weights are random
and the vocabulary is small, which changes no time. Pictures are drawn, about as large and heavy as memes are, half JPEG
and half PNG; captions have 4 to 30 words.

The loop does for one meme after the other what a model card shows: open the image, call image processor and tokenizer,
call the model. Both start from a folder and end with all features in memory or on disk; imports are not counted. The
encoder also hashes images, checks them and writes the store. Loop and encoder take turns.

    python scripts/bench/encode.py [--model tinyclip-40m] [--memes 512] [--sizes 250 500 1000 2000] [--output R.json]
"""

import argparse
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from ra_hmd.data.images import load_image, perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.synthetic.confounders import caption_corpus
from ra_hmd.features.extract_clip import encode
from ra_hmd.features.store import read_features
from ra_hmd.models.clip_encoder import Encoder
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.tiny_clip import make_tiny_encoder

SIZES = ((800, 600), (600, 800), (640, 640), (1024, 768), (500, 400))
BATCH = 32
MODELS = {  # width, layers, heads of the vision tower and of the text tower
    "tiny": None,
    "tinyclip-40m": ((512, 12, 8), (512, 6, 8)),
    "vit-b-32": ((768, 12, 12), (512, 12, 8)),
}


def make_encoder(folder: Path, name: str) -> None:
    """One of `MODELS` with the tiny CLIP's tokenizer."""
    make_tiny_encoder("clip", folder)
    if MODELS[name] is None:
        return
    small = AutoConfig.from_pretrained(folder).text_config
    vision, text = (
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }
        for width, layers, heads in MODELS[name]
    )
    special = {name: getattr(small, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(
        "clip", vision_config=vision | {"patch_size": 32, "image_size": 224}, text_config=text | special,
        projection_dim=512,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    processor.size, processor.crop_size = {"shortest_edge": 224}, {"height": 224, "width": 224}
    processor.save_pretrained(folder)


def make_memes(folder: Path, count: int) -> list[Meme]:
    """`count` memes with drawn pictures; of many, pictures repeat after 256."""
    rng = random.Random(0)
    words = [word for sentence in caption_corpus() for word in sentence.split()]
    for number in range(min(count, 256)):
        size = rng.choice(SIZES)
        tiles = Image.frombytes("RGB", (24, 24), rng.randbytes(3 * 24 * 24)).resize(size, Image.Resampling.BICUBIC)
        picture = Image.blend(tiles, Image.effect_noise(size, 40).convert("RGB"), 0.15)
        picture.save(folder / f"{number}.{'jpg' if number % 2 else 'png'}", quality=90)
    paths = sorted(folder.glob("*.*g"))
    captions = [" ".join(rng.choices(words, k=rng.randint(4, 30))) for _ in range(count)]
    return [Meme(f"m{n}", paths[n % len(paths)], text, n % 2) for n, text in enumerate(captions)]


@torch.inference_mode()
def loop(folder: Path, memes: list[Meme]) -> np.ndarray:
    """Features of one meme after the other, [N, I + T]."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    rows = []
    for meme in memes:
        pixels = processor(images=Image.open(meme.image).convert("RGB"), return_tensors="pt")
        tokens = tokenizer(meme.text, truncation=True, return_tensors="pt")
        image, text = model.vision_model(**pixels).pooler_output, model.text_model(**tokens).pooler_output
        rows.append(torch.cat([image, text], dim=1))
    return torch.cat(rows).numpy()


def ours(folder: Path, memes: list[Meme], output: Path, workers: int) -> np.ndarray:
    """The same by the library."""
    encode(Encoder(EncoderSettings(path=str(folder))), memes, output, batch_size=BATCH, num_workers=workers)
    return read_features(output).hidden


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in the processes that decode images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parts(folder: Path, memes: list[Meme]) -> dict[str, float]:
    """Milliseconds of a core per meme, of what `encode` does."""
    encoder = Encoder(EncoderSettings(path=str(folder))).load(torch.device("cpu"))
    some = memes[:BATCH]
    with one_thread():
        images = [load_image(meme.image) for meme in some]
        rows = [encoder.encode(meme.text, image) for meme, image in zip(some, images, strict=True)]
        batch = encoder.collate(rows)
        tokens = {name: value for name, value in batch["text"].items() if name != "shares"}
        calls: dict[str, Callable[[], object]] = {
            "decode": lambda: [load_image(meme.image) for meme in some],
            "hash": lambda: [perceptual_hash(image) for image in images],
            "resize": lambda: [encoder.pixels(image) for image in images],
            "tokens": lambda: [encoder.pieces(meme.text) for meme in some],
            "collate": lambda: encoder.collate(rows),
            "image tower": lambda: encoder._image(batch["image"]),
            "text tower": lambda: encoder._text(tokens),
        }
        return {name: 1000 * min(seconds(call) for _ in range(3)) / len(some) for name, call in calls.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="tinyclip-40m")
    parser.add_argument("--memes", type=int, default=512)
    parser.add_argument("--sizes", type=int, nargs="*", default=[250, 500, 1000, 2000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "pictures").mkdir()
        make_encoder(root / "encoder", options.model)
        memes = make_memes(root / "pictures", max([options.memes, *options.sizes]))
        some = memes[: options.memes]
        times: dict[str, list[float]] = {"loop": [], "encode": []}
        found: dict[str, np.ndarray] = {}
        for number in range(options.rounds):
            for system, call in (
                ("loop", lambda: loop(root / "encoder", some)),
                ("encode", lambda number=number: ours(root / "encoder", some, root / f"{number}", options.workers)),
            ):
                start = time.perf_counter()
                found[system] = call()
                times[system].append(time.perf_counter() - start)
        result = {
            "model": options.model,
            "threads": torch.get_num_threads(),
            "memes": len(some),
            "largest_difference": float(np.abs(found["loop"] - found["encode"]).max()),
            "loop_images_per_second": [len(some) / wall for wall in times["loop"]],
            "encode_images_per_second": [len(some) / wall for wall in times["encode"]],
            "times_faster": statistics.median(a / b for a, b in zip(times["loop"], times["encode"], strict=True)),
            "core_milliseconds_per_meme": parts(root / "encoder", memes),
        }
        print(json.dumps(result, indent=2))
        result["seconds_by_memes"] = {}
        for size in options.sizes:
            wall = seconds(lambda size=size: ours(root / "encoder", memes[:size], root / f"n{size}", options.workers))
            result["seconds_by_memes"][size] = wall
            print(f"{size} memes: {wall:.1f} s, {size / wall:.1f} images per second")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
