"""What a picture is: modes and formats against known pixels, and every entry point against the one that decides."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.checks.scan import image_facts
from ra_hmd.data.images import file_digest, known_formats, load_image, open_image, perceptual_hash, to_rgb_with_traits
from ra_hmd.data.meme import Meme
from ra_hmd.data.ocr import read_text
from ra_hmd.experiments.in_context import prompting
from ra_hmd.features.shards import _EncodedMemes
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.clip_encoder import Encoder
from ra_hmd.models.generation.engines import _png
from ra_hmd.models.meme_model import MemeModel

known_formats()  # registers HEIF, for saving too
GREY = np.add.outer(np.arange(0, 96, 3), np.arange(0, 144, 3)).astype(np.uint8)  # 32 x 48, values 0 to 234
WORDS = np.full((32, 48), 255, np.uint8)
WORDS[8:24, 10:38:4] = 0  # black strokes
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
SMALL = np.arange(4, dtype=np.uint8).repeat(12)[None].repeat(32, axis=0)  # four values


def saved(image: Image.Image, style: str = "PNG", **how: Any) -> bytes:
    file = BytesIO()
    image.save(file, style, **how)
    return file.getvalue()


def layered(mode: str) -> Image.Image:
    """Black strokes on a ground that is black too, and transparent."""
    image = Image.fromarray(np.stack([np.zeros_like(WORDS)] * 3 + [255 - WORDS], axis=-1))
    return image.convert(mode)


def palette(**how: Any) -> bytes:
    image = Image.fromarray(SMALL).convert("P")
    image.putpalette([9, 9, 9, 80, 0, 0, 0, 160, 0, 0, 0, 240])
    return saved(image, **how)


def turned(style: str, **how: Any) -> bytes:
    """Pixels that lie on their side, and EXIF data that say so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(np.rot90(COLOURS).copy()), style, exif=exif, **how)


def animated(style: str, **how: Any) -> bytes:
    frames = [Image.fromarray(COLOURS), Image.new("RGB", (48, 32)), Image.new("RGB", (48, 32), "red")]
    return saved(frames[0], style, save_all=True, append_images=frames[1:], **how)


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


_PALETTE = np.array([[9, 9, 9], [80, 0, 0], [0, 160, 0], [0, 0, 240]], np.uint8)
_KEYED = np.where(SMALL[..., None] == 1, 255, _PALETTE[SMALL]).astype(np.uint8)
_WIDE = GREY.astype(np.uint16) * 257

EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    "RGB": (saved(Image.fromarray(COLOURS)), COLOURS),
    "RGB, BMP": (saved(Image.fromarray(COLOURS), "BMP"), COLOURS),
    "RGB, TIFF": (saved(Image.fromarray(COLOURS), "TIFF"), COLOURS),
    "L": (saved(Image.fromarray(GREY)), grey(GREY)),
    "1": (saved(Image.fromarray(WORDS).convert("1")), grey(WORDS)),
    "1, its black transparent": (saved(Image.fromarray(WORDS).convert("1"), transparency=0), grey(WORDS | 255)),
    "1, its white transparent": (saved(Image.fromarray(WORDS).convert("1"), transparency=1), grey(WORDS)),
    "LA": (saved(layered("LA")), grey(WORDS)),
    "RGBA": (saved(layered("RGBA")), grey(WORDS)),
    "RGBA, TIFF": (saved(layered("RGBA"), "TIFF"), grey(WORDS)),
    "RGBA, WebP": (saved(layered("RGBA"), "WEBP", lossless=True), grey(WORDS)),
    "RGBA, half transparent": (saved(Image.new("RGBA", (48, 32), (0, 0, 0, 51))), grey(np.full_like(WORDS, 204))),
    "RGBA, opaque": (saved(Image.fromarray(COLOURS).convert("RGBA")), COLOURS),
    "P": (palette(), _PALETTE[SMALL]),
    "P, one colour transparent": (palette(transparency=1), _KEYED),
    "P, one colour transparent, GIF": (palette(style="GIF", transparency=1), _KEYED),
    "L, one value transparent": (saved(Image.fromarray(WORDS), transparency=0), grey(WORDS | 255)),
    "I;16": (saved(Image.fromarray(_WIDE)), grey(GREY)),
    "I;16, TIFF": (saved(Image.fromarray(_WIDE), "TIFF"), grey(GREY)),
    "I;16B, TIFF": (saved(Image.fromarray(_WIDE.astype(">u2")), "TIFF"), grey(GREY)),
    "I;16, one value transparent": (
        saved(Image.fromarray(_WIDE), transparency=0),
        grey(np.where(GREY == 0, 255, GREY).astype(np.uint8)),
    ),
    "I, 16 bits, PGM": (saved(Image.fromarray(_WIDE.astype(np.int32)), "PPM"), grey(GREY)),
    "I, 8 bits, TIFF": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), grey(GREY)),
    "I, 16 bits, TIFF": (saved(Image.fromarray(_WIDE.astype(np.int32)), "TIFF"), grey(GREY)),
    "F, to 1": (saved(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"), grey(GREY)),
    "F, to 255": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), grey(GREY)),
    "CMYK": (saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
    "turned, PNG": (turned("PNG"), COLOURS),
    "turned, TIFF": (turned("TIFF"), COLOURS),
    "turned, WebP": (turned("WEBP", lossless=True), COLOURS),
    "first frame, WebP": (animated("WEBP", lossless=True), COLOURS),
    "first frame, PNG": (animated("PNG"), COLOURS),
    "first frame, TIFF": (animated("TIFF"), COLOURS),
}
LOSSY: dict[str, tuple[bytes, np.ndarray]] = {
    "JPEG": (saved(Image.fromarray(COLOURS), "JPEG", quality=98), COLOURS),
    "CMYK, JPEG": (saved(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", quality=98), COLOURS),
    "turned, JPEG": (turned("JPEG", quality=98), COLOURS),
    "HEIF": (saved(Image.fromarray(COLOURS), "HEIF", quality=98), COLOURS),
    "RGBA, HEIF": (saved(layered("RGBA"), "HEIF", quality=98), grey(WORDS)),
    "AVIF": (saved(Image.fromarray(COLOURS), "AVIF", quality=98), COLOURS),
    "turned, AVIF": (turned("AVIF", quality=98), COLOURS),
    "JPEG 2000": (saved(Image.fromarray(COLOURS), "JPEG2000"), COLOURS),
    "first frame, GIF": (animated("GIF"), COLOURS),
}
ALL = EXACT | LOSSY


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a case; its name has no suffix."""
    folder = tmp_path_factory.mktemp("pictures")

    def file(case: str) -> Path:
        path = folder / file_name(case)
        path.write_bytes(ALL[case][0])
        return path

    return file


def file_name(case: str) -> str:
    return case.replace(" ", "_").replace(",", "").replace(";", "")


@pytest.mark.parametrize("case", ALL)
def test_pixels_are_known(case: str) -> None:
    content, expected = ALL[case]
    found = load_image(content)
    assert (found.mode, found.size, dict(found.info)) == ("RGB", (48, 32), {})
    difference = np.abs(np.asarray(found).astype(int) - expected)
    assert difference.max() == 0 if case in EXACT else difference.mean() < 6


@pytest.mark.parametrize("case", ALL)
def test_every_entry_point_sees_these_pixels(case: str, files: Callable[[str], Path]) -> None:
    path, seen = files(case), []
    expected = load_image(path)

    class Model:
        def encode(self, text: str, image: Image.Image) -> None:
            seen.append(image)

    _EncodedMemes(Model(), [Meme("a", path, "tea")])[0]  # type: ignore[arg-type] - `extract` and `encode`
    encoder = object.__new__(Encoder)
    encoder.image_processor = lambda images, **_: seen.append(images) or {}
    with open_image(path) as opened:
        encoder.pixels(opened)  # a picture that someone else opened
    seen += [Meme("a", source).load_image() for source in (path, path.read_bytes(), open_image(path))]  # service, API
    seen += [prompting._load("a", path), MemeLookup([Meme("a", path, "tea")]).image("a")]
    seen.append(load_image({"bytes": path.read_bytes(), "path": None}))  # embedded in Parquet
    read_text(lambda pixels: seen.append(Image.fromarray(pixels[..., ::-1])) or SimpleNamespace(txts=None, scores=None),
              open_image(path))  # type: ignore[arg-type]  # fmt: skip
    seen.append(Image.open(BytesIO(base64.b64decode(_png(expected)))).convert("RGB"))  # as the vLLM worker has it
    assert len(seen) == 10
    for image in seen:
        assert image.tobytes() == expected.tobytes()
    facts = image_facts(str(path))
    assert facts.problem == ""
    assert facts.hash == perceptual_hash(expected) or "JPEG" in case  # JPEGs are decoded small for it
    traits = to_rgb_with_traits(open_image(path))[1]
    assert (facts.animated, facts.transparent, facts.depth, facts.turned) == (
        traits.frames, traits.transparent, traits.depth, traits.turned
    )  # fmt: skip


@pytest.fixture(scope="module")
def lmm(tiny: Callable[[str], Path]) -> MemeModel:
    return MemeModel(open_backbone(str(tiny("qwen2_vl")), "qwen2_vl"), torch.device("cpu"))


@pytest.mark.parametrize("case", ALL)
def test_training_sees_these_pixels(case: str, files: Callable[[str], Path], lmm: MemeModel) -> None:
    from llamafactory_ext.sft_classifier.workflow import ClassifierCollator

    path = files(case)
    host = lmm._collator
    training = ClassifierCollator(
        template=host.template, model=host.model, label_pad_token_id=host.label_pad_token_id,
        attn_implementation=host.attn_implementation, compute_dtype=host.compute_dtype,
        tokenizer=host.tokenizer, processor=host.processor,
    )  # fmt: skip
    row = lmm.encode("tea", load_image(path))
    answer = {"input_ids": [*row["input_ids"], 1], "attention_mask": [*row["attention_mask"], 1],
              "labels": [*row["labels"], 1], "class_label": 1, "sample_index": 0}  # fmt: skip
    trained = training([answer | {"images": [str(path)]}])
    assert torch.equal(trained["pixel_values"], lmm.collate([row])["pixel_values"])


def test_traits_are_told() -> None:
    told = {case: to_rgb_with_traits(open_image(content))[1] for case, (content, _) in ALL.items()}
    assert {case for case, traits in told.items() if traits.turned} == {case for case in ALL if "turned" in case}
    assert {case for case, traits in told.items() if traits.frames} == {case for case in ALL if "first" in case}
    assert {case for case, traits in told.items() if traits.depth} == {case for case in ALL if case[0] in "IF"}
    clear = {case for case in ALL if "transparent" in case or case.startswith(("LA", "RGBA"))} - {"RGBA, opaque"}
    assert {case for case, traits in told.items() if traits.transparent} == clear


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(orientation: int) -> None:
    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
              6: np.rot90, 7: lambda a: np.rot90(a.swapaxes(0, 1), 2), 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(stored[orientation](COLOURS).copy()), exif=exif)
    assert np.array_equal(np.asarray(load_image(content)), COLOURS)
    once = load_image(content)
    assert load_image(once) is once  # nobody turns it twice


def test_pictures_that_differ_stay_different() -> None:
    one, two = (load_image(saved(Image.fromarray(values))) for values in (_WIDE, _WIDE[::-1].copy()))
    assert perceptual_hash(one) not in (None, perceptual_hash(two))
    strokes = layered("RGBA"), layered("RGBA").transpose(Image.Transpose.ROTATE_180).resize((40, 40))
    first, second = (perceptual_hash(load_image(saved(image))) for image in strokes)
    assert None not in (first, second)  # both were all black, with the transparency left out
    assert first != second


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\x0a\xfa\x7f\x01", "JPEG XL is not decoded"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL is not decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript is not decoded"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not decoded"),
        (b"words", "no image format that is decoded"),
        (b"", "the file is empty"),
        (saved(Image.fromarray(COLOURS), "HEIF")[:-200], "cannot be decoded"),
        (saved(Image.fromarray(COLOURS), "AVIF")[:-200], "cannot be decoded"),
        (saved(Image.new("1", (20_000, 20_000))), "decompression bomb"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_image(content)


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (100, 70_000, 1_000_000):
        path, content = tmp_path / "a", bytearray(rng.bytes(size))
        path.write_bytes(content)
        first = file_digest(path)
        (tmp_path / "b").write_bytes(content)
        assert file_digest(tmp_path / "b") == first  # neither name nor time plays a part
        for place in (50, size - 50):  # where EXIF data and the end of a file are
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            assert file_digest(path) != first
    assert file_digest(tmp_path / "gone") == ""
