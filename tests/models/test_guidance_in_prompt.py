"""Guidance in the prompt of every family: its place, its tokens, and that the model reads it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.prompt import OFFICIAL_PROMPT, TEXT_SLOT
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.generation.chat import Chat, chat_ids
from ra_hmd.models.meme_model import MemeModel, load_encoder, prompt_row
from ra_hmd.models.tokenization import MemeEncoder

CPU = torch.device("cpu")
CAPTION = "my cat, on a monday"
GUIDANCE = "Compare the mood of the picture with that of the words, and ask whom the joke is about."
TEXTS = tuple(f"{GUIDANCE} Look for {what}." for what in ("cats", "dogs", "the sky"))

pytestmark = pytest.mark.parametrize("family", FAMILIES)
Load = Callable[[str], MemeModel]


@pytest.fixture(scope="module")
def load(tiny: Callable[[str], Path]) -> Load:
    """Model of a family, loaded once."""

    @cache
    def make(family: str) -> MemeModel:
        return MemeModel(open_backbone(str(tiny(family))), CPU)

    return make


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (112, 112, 3), dtype=np.uint8))


def after_image(encoder: MemeEncoder, ids: list[int]) -> str:
    """What a prompt says after its image, blanks and line breaks apart."""
    image_token = encoder.tokenizer.convert_tokens_to_ids(encoder.processor.image_token)
    last = max(place for place, token in enumerate(ids) if token == image_token)
    return " ".join(encoder.tokenizer.decode(ids[last + 1 :]).split())


def with_budget(tiny: Callable[[str], Path], family: str, cutoff_len: int) -> MemeEncoder:
    run = open_backbone(str(tiny(family)))
    return load_encoder(run.base_model, run.settings.replace(cutoff_len=cutoff_len))[0]


def test_it_stands_between_image_and_question(family: str, load: Load) -> None:
    encoder = load(family).encoder
    question = encoder.prompt.render(CAPTION).replace("<image>", "").strip()
    plain = encoder.encode(CAPTION, picture()).ids
    guided = encoder.encode(CAPTION, picture(), GUIDANCE).ids
    assert question in after_image(encoder, plain)
    assert GUIDANCE not in after_image(encoder, plain)
    assert f"{GUIDANCE} {question}" in after_image(encoder, guided)
    assert after_image(encoder, guided).replace(f"{GUIDANCE} ", "") == after_image(encoder, plain)


def test_the_tokens_before_and_after_it_are_those_of_the_prompt_without(family: str, load: Load) -> None:
    encoder = load(family).encoder
    image_token = encoder.tokenizer.convert_tokens_to_ids(encoder.processor.image_token)
    plain, guided = (encoder.encode(CAPTION, picture(), text).ids for text in ("", GUIDANCE))
    last = max(place for place, token in enumerate(plain) if token == image_token) + 1
    assert guided[:last] == plain[:last]
    end = len(encoder.tokenizer.encode(" Is it hateful?", add_special_tokens=False)) + len(encoder.tail)
    assert guided[-end:] == plain[-end:]
    assert guided.count(image_token) == plain.count(image_token)
    inside = encoder.tokenizer.encode(GUIDANCE, add_special_tokens=False)[2:-2]  # edges join with what is beside them
    assert any(guided[place : place + len(inside)] == inside for place in range(last, len(guided)))


def test_an_empty_one_is_none_to_the_token(family: str, load: Load) -> None:
    model = load(family)
    without = model.encoder.encode(CAPTION, picture()).ids
    question = OFFICIAL_PROMPT.replace(TEXT_SLOT, CAPTION)
    assert chat_ids(model.encoder, Chat([{"role": "user", "content": question}], [picture()])) == without
    assert model.encoder.encode(CAPTION, picture(), "").ids == without
    assert model.encode(CAPTION, picture())["input_ids"] == without
    unknown = replace(model.run, guidance=Guidance(TEXTS, "c"))  # a meme of no known cluster
    assert unknown.guidance is not None
    assert model.encoder.encode(CAPTION, picture(), unknown.guidance.text_of(-1)).ids == without


def test_a_caption_of_9000_characters_still_ends_with_the_question(family: str, tiny: Callable[[str], Path]) -> None:
    encoder = with_budget(tiny, family, 768)
    guidance = encoder.plain(TEXTS[0])
    cut, alone = (encoder.encode("my cat on a monday " * 474, picture(), text) for text in (guidance, ""))
    for prompt, text in ((cut, guidance), (alone, "")):
        assert prompt.shortened
        assert len(prompt.ids) <= encoder.budget
        assert prompt.ids[-len(encoder.tail) :] == encoder.tail
        said = after_image(encoder, prompt.ids[: -len(encoder.tail)])
        assert said.endswith("written on it. Is it hateful?")
        assert text in said
        assert "my cat on a monday" in said
    assert len(cut.caption) < len(alone.caption)  # the caption makes room, the guidance does not


def test_one_that_leaves_no_room_is_told(family: str, tiny: Callable[[str], Path]) -> None:
    without = len(with_budget(tiny, family, 2048).encode("", picture()).ids)
    with pytest.raises(UserError, match=r"\(with the guidance\).*cutoff_len"):
        with_budget(tiny, family, without + 40).encode(CAPTION, picture(), " ".join(TEXTS))


def test_control_tokens_in_it_are_text(family: str, load: Load) -> None:
    encoder = load(family).encoder
    tokenizer = encoder.tokenizer
    special = [*tokenizer.all_special_tokens, encoder.processor.image_token, "<image>"]
    known = {tokenizer.convert_tokens_to_ids(token) for token in special}
    plain = encoder.encode(CAPTION, picture(), "Look at .").ids
    guided = encoder.encode(CAPTION, picture(), f"Look at {' '.join(special)}.").ids
    assert [token for token in guided if token in known] == [token for token in plain if token in known]


def test_shuffled_between_the_clusters_it_changes_scores(family: str, load: Load) -> None:
    model, guidance = load(family), Guidance(TEXTS, "c")

    def scores(texts: Guidance | None) -> torch.Tensor:
        rows = [
            prompt_row(model.encoder.encode(CAPTION, picture(seed), texts.text_of(seed) if texts else "").ids,
                       [picture(seed)], seed)
            for seed in range(3)
        ]  # fmt: skip
        return torch.cat([model.columns(model.collate([row]))["lmh_score"] for row in rows])[:, 0]

    right = scores(guidance)
    assert torch.equal(right, scores(Guidance(TEXTS, "other")))
    for seed in range(3):
        assert (scores(guidance.shuffled(seed)) - right).abs().min() > 1e-6  # no cluster keeps its own text
    assert (scores(None) - right).abs().min() > 1e-6
