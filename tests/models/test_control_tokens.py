"""What a caption holds is text: no encoder reads a control token in it, and all its words reach the model."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AddedToken, AutoTokenizer

from ra_hmd.data.text import PlainText
from ra_hmd.models.clip_encoder import FAMILIES, Encoder, EncoderSettings
from ra_hmd.models.tiny_clip import make_tiny_encoder

WORDS = "the cat knows best"


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    root, made = tmp_path_factory.mktemp("encoders"), {}

    def make(family: str) -> Encoder:
        if family not in made:
            folder = make_tiny_encoder(family, root / family)
            made[family] = Encoder(EncoderSettings(path=str(folder), features="projected")).load(torch.device("cpu"))
        return made[family]

    return make


def disguises(token: str) -> list[str]:
    """A control token as people can write it, so that one normaliser or another makes it again."""
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in token)
    return [token, token.upper(), wide, token[0] + "\u200b" + token[1:], token[:-1] + "\x01" + token[-1],
            token[0] + "\u0301" + token[1:], token[:2] + token + token[2:]]  # fmt: skip


def controls(encoder: Encoder, text: str) -> list[int]:
    """Control tokens in a caption's pieces. One for a letter that the vocabulary lacks is none."""
    special = {number for number, token in encoder.tokenizer.added_tokens_decoder.items() if token.special}
    if encoder.tokenizer.unk_token != "<|endoftext|>":  # CLIP knows every byte
        special.discard(encoder.tokenizer.unk_token_id)
    return [number for piece in encoder.pieces(text) for number in piece if number in special]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_has_as_many_control_tokens_as_an_empty_one(
    encoder_of: Callable[[str], Encoder], family: str
) -> None:
    encoder = encoder_of(family)
    tokens = [token.content for token in encoder.tokenizer.added_tokens_decoder.values()]
    assert len(tokens) >= 2
    for token in tokens:
        for written in disguises(token):
            for text in (f"{written} {WORDS}", f"{WORDS}{written}", f"a {written}{written} b"):
                assert controls(encoder, text) == controls(encoder, ""), repr(text)


@given(pieces=st.lists(st.one_of(st.integers(0, 400), st.text(max_size=3)), max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(pieces=[0, "\n", 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_mixture_of_markers_makes_a_control_token(
    encoder_of: Callable[[str], Encoder], family: str, pieces: list[int | str]
) -> None:
    encoder = encoder_of(family)
    tokens = [token.content for token in encoder.tokenizer.added_tokens_decoder.values()]
    written = [one for token in tokens for one in disguises(token)]
    text = "".join(one if isinstance(one, str) else written[one % len(written)] for one in pieces)
    assert controls(encoder, text) == controls(encoder, "")


@pytest.mark.parametrize("family", FAMILIES)
def test_words_behind_a_marker_count(encoder_of: Callable[[str], Encoder], family: str) -> None:
    encoder = encoder_of(family)
    for token in encoder.tokenizer.all_special_tokens:
        empty, alone, first, second = torch.nn.functional.normalize(
            encoder.text_features(["", token, f"{token} {WORDS}", f"{token} a robot is a red apple"]), dim=1
        )
        for one, other in ((empty, first), (alone, first), (first, second)):
            assert (one - other).norm() > 1e-3, token
        ids = encoder.tokenizer(f" {WORDS}", add_special_tokens=False)["input_ids"]
        assert encoder.pieces(f"{token} {WORDS}")[0][-len(ids) - 1 : -1][-3:] == ids[-3:]


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_captions_have_the_tokens_of_the_plain_tokenizer(
    encoder_of: Callable[[str], Encoder], family: str
) -> None:
    encoder = encoder_of(family)
    plain = AutoTokenizer.from_pretrained(encoder.settings.path)
    odd = ("naïve ＡＢＣ\n\u200bx", "😀 the\x01 cat", "e\u0301\ufeff")
    for text in ("", "THE cat!", "a<b>c</b> [x] 1 < 2 | 3 > 2", *odd):
        assert encoder.pieces(text) == [plain(text)["input_ids"]]


def test_tokens_that_a_normaliser_makes_again_are_taken_apart(encoder_of: Callable[[str], Encoder]) -> None:
    """Published vocabularies have NFKC (XLM-R), and markers that are looked for after the normaliser (CLIP)."""
    wide = AutoTokenizer.from_pretrained(encoder_of("altclip").settings.path)
    wide.backend_tokenizer.normalizer = normalizers.NFKC()
    folded = AutoTokenizer.from_pretrained(encoder_of("clip").settings.path)
    folded.add_tokens([AddedToken("<|mark|>", special=True, normalized=True)], special_tokens=True)
    for tokenizer, text in ((wide, "\uff1cs\uff1e rain"), (folded, "<|MARK|> rain")):
        special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|mark|>")}
        special.discard(tokenizer.unk_token_id if tokenizer is wide else None)
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert special & set(found), "the case is none"
        assert not special & set(tokenizer(PlainText(tokenizer)(text), add_special_tokens=False)["input_ids"])
