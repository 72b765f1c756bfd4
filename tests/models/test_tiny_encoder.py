"""Tiny encoders: they open like published checkpoints, both modalities reach their features, the seed decides."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from seeded_models import check_seed_decides_every_byte
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.synthetic.confounders import DOMAINS, caption_corpus
from ra_hmd.models.tiny_clip import EncoderFamily, make_tiny_encoder

FAMILIES = get_args(EncoderFamily)
# Classes of the published checkpoints: model, tokenizer, image processor, processor.
CLASSES = {
    "clip": ("CLIPModel", "CLIPTokenizer", "CLIPImageProcessor", "CLIPProcessor"),
    "altclip": ("AltCLIPModel", "XLMRobertaTokenizer", "CLIPImageProcessor", "AltCLIPProcessor"),
    "align": ("AlignModel", "BertTokenizer", "EfficientNetImageProcessor", "AlignProcessor"),
    "siglip": ("SiglipModel", "SiglipTokenizer", "SiglipImageProcessor", "SiglipProcessor"),
    "siglip2": ("Siglip2Model", "Siglip2Tokenizer", "Siglip2ImageProcessor", "Siglip2Processor"),
}
# First and last ids of a sentence, padding, longest sentence (special tokens counted).
TOKENS = {
    "clip": ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>", 77),
    "altclip": ("<s>", "</s>", "<pad>", 512),
    "align": ("[CLS]", "[SEP]", "[PAD]", 64),
    "siglip": (None, "</s>", "</s>", 64),
    "siglip2": (None, "<eos>", "<pad>", 64),
}


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, make_tiny_encoder(request.param, tmp_path_factory.mktemp(request.param) / "encoder")


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (112, 96), (red, 120, 40))


def padding(family: str) -> str:
    """SigLIP was trained with sentences of one length; the others have a mask or read up to the end token."""
    return "max_length" if family.startswith("siglip") else "longest"


def test_opens_like_a_published_checkpoint(encoder: tuple[str, Path]) -> None:
    family, folder = encoder
    opened = [kind.from_pretrained(folder) for kind in (AutoModel, AutoTokenizer, AutoImageProcessor, AutoProcessor)]
    assert tuple(type(part).__name__ for part in opened) == CLASSES[family]
    model, tokenizer, images, processor = opened
    assert 200_000 < sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    assert model.config.text_config.vocab_size == len(tokenizer)
    batch = processor(
        text=["my cat"], images=[picture(9)], padding=padding(family), truncation=True, return_tensors="pt"
    )
    alone = tokenizer(["my cat"], padding=padding(family), return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**batch, return_loss=True).loss)
        ours = model(**alone, **images([picture(9)], return_tensors="pt"))
    for part in (ours.image_embeds, ours.text_embeds):
        assert part.shape[0] == 1
        torch.testing.assert_close(part.norm(), torch.tensor(1.0))
    assert ours.image_embeds.shape == ours.text_embeds.shape


def test_each_modality_reaches_its_features(encoder: tuple[str, Path]) -> None:
    family, folder = encoder
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder)
    texts = ["my cat on a monday", "my dog on a monday", "my cat on a monday"]
    tokens = tokenizer(texts, padding=padding(family), return_tensors="pt")
    pixels = images([picture(10), picture(220), picture(10)], return_tensors="pt")
    with torch.no_grad():
        features = [model.get_text_features(**tokens), model.get_image_features(**pixels)]
    for first, other, again in (part.pooler_output for part in features):
        torch.testing.assert_close(first, again)
        assert (first - other).abs().max() > 1e-4


def test_tokenizer_is_of_the_family(encoder: tuple[str, Path]) -> None:
    family, folder = encoder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, last, pad, longest = TOKENS[family]
    assert tokenizer.pad_token == pad
    assert tokenizer.model_max_length == longest
    assert tokenizer.padding_side == "right"
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    sentence = tokenizer("the kitten knows best").input_ids
    assert sentence[-1] == tokenizer.convert_tokens_to_ids(last)
    if first is not None:
        assert sentence[0] == tokenizer.convert_tokens_to_ids(first)
    assert len(tokenizer("so " * 600, truncation=True).input_ids) == longest
    assert len(tokenizer("").input_ids) == len([name for name in (first, last) if name])
    text = AutoModel.from_pretrained(folder).config.text_config
    assert text.pad_token_id == tokenizer.pad_token_id
    if family == "clip":  # its features are those at the first end token; 2 would select an older rule
        assert text.eos_token_id == tokenizer.eos_token_id != 2


def test_words_of_the_memes_are_known(encoder: tuple[str, Path]) -> None:
    _, folder = encoder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nouns = {noun for domain in DOMAINS for names in domain.nouns.values() for noun in names}
    sentences = {tuple(tokenizer(caption).input_ids) for caption in caption_corpus()}
    assert len(sentences) == len(caption_corpus()) == len(nouns) * 6
    assert all(tokenizer.unk_token_id not in sentence[1:-1] for sentence in sentences)
    for noun in nouns:
        assert noun in tokenizer.decode(tokenizer(f"my {noun}").input_ids)


@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_letters_of_any_script_have_tokens(family: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_encoder(family, tmp_path / "encoder"))
    ids = tokenizer("ünïcode 漢字 🙂", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids  # CLIP's unknown token is its end token, where it reads its features
    assert "🙂" in tokenizer.decode(ids)


@pytest.mark.slow
def test_seed_decides_every_byte(tmp_path: Path) -> None:
    check_seed_decides_every_byte(make_tiny_encoder, FAMILIES, tmp_path)


def test_command_and_bad_requests(tmp_path: Path) -> None:
    output = tmp_path / "encoder"
    done = CliRunner().invoke(app, ["tiny-encoder", "--family", "align", "--seed", "3", "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert type(AutoModel.from_pretrained(output)).__name__ == "AlignModel"
    again = CliRunner().invoke(app, ["tiny-encoder", "--output", str(output)])
    assert again.exit_code == 2
    assert "not an empty folder" in again.output
    with pytest.raises(UserError, match=r"--family 'clap'.*altclip"):
        make_tiny_encoder("clap", tmp_path / "x")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
