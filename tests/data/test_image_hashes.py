"""Perceptual hashes of images, and digests of captions."""

import io

import numpy as np
import pytest
from PIL import Image

from ra_hmd.data.image_hashes import TRANSFORMS, caption_digest, pdq_hash, pdq_hashes, phashes
from ra_hmd.data.images import perceptual_hash

pytest.importorskip("pdqhash")


def picture(seed=0, size=(320, 240)):
    coarse = np.random.default_rng(seed).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def distance(one, other):
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_pdq_is_computed_as_hash_lists_have_it():
    """ThreatExchange's own example of the first bits: most significant bit first, 64 lower-case digits."""
    import pdqhash

    bits, _ = pdqhash.compute(np.asarray(picture()))
    assert pdq_hash(picture()) == f"{int(''.join(map(str, bits)), 2):064x}"


def test_copies_are_near_and_other_images_far():
    file = io.BytesIO()
    picture().save(file, "JPEG", quality=40)
    small = picture().resize((160, 120))
    original = pdq_hash(picture())
    assert distance(original, pdq_hash(Image.open(file))) <= 31
    assert distance(original, pdq_hash(small)) <= 31
    assert distance(original, pdq_hash(picture(1))) > 60


def test_images_without_structure_have_no_hash():
    flat = Image.new("RGB", (64, 64), "red")
    assert pdq_hash(flat) == ""
    assert pdq_hashes(flat, turned=True) == phashes(flat, turned=True) == []


def test_the_hashes_of_a_turned_image_are_those_of_its_transforms():
    image = picture(size=(256, 256))
    for number, name in enumerate(TRANSFORMS):
        turned = image if name == "none" else image.transpose(Image.Transpose[name.upper()])
        assert pdq_hashes(image, turned=True)[number] == pdq_hash(turned), name
        assert phashes(image, turned=True)[number] == perceptual_hash(turned), name


def test_captions_that_differ_in_blanks_case_or_unicode_forms_are_the_same():
    same = ["Café  au lait", "CAFE\u0301 au\nlait ", "ｃａｆé au lait"]
    assert len({caption_digest(text) for text in same}) == 1
    assert caption_digest("café au lait!") != caption_digest(same[0])
    assert caption_digest(" \n") == ""
