"""Every family of the registry: what its entry says of the model is so, and results do not depend on how memes are
batched. A new entry is covered by being registered. tests/e2e/test_families.py trains each by stage `sft-classifier`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import train
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from ra_hmd.data.prompt import Answers
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.classifier import base_model
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.generation.chat import Chat, ChatModel, chat_ids
from ra_hmd.models.meme_model import MemeModel, prompt_row

CPU = torch.device("cpu")
CAPTIONS = ("my cat", "a much longer caption about the very same cat on a monday morning", "", "Yes, my dog: no")
SIZES = ((96, 96), (200, 112), (60, 180), (112, 112))
PROJECTIONS = {"gate_proj", "up_proj", "down_proj"}

pytestmark = pytest.mark.parametrize("family", FAMILIES)
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def load(tiny: Callable[[str], Path]) -> Callable[..., MemeModel]:
    """Model of a family, loaded once for each padding side."""

    @cache
    def make(family: str, padding_side: str = "left") -> MemeModel:
        return MemeModel(open_backbone(str(tiny(family))), CPU, padding_side=padding_side)  # type: ignore[arg-type]

    return make


def pictures() -> list[Image.Image]:
    """Images of several shapes with a gradient, so that no two patches are alike."""
    made = []
    for number, (width, height) in enumerate(SIZES):
        rows, columns = np.mgrid[0:height, 0:width]
        channels = [rows * (number + 1), columns * 2, rows + columns]
        made.append(Image.fromarray(np.stack(channels, -1).astype(np.uint8)))
    return made


def rows_of(model: MemeModel) -> Rows:
    return [model.encode(caption, image) for caption, image in zip(CAPTIONS, pictures(), strict=True)]


def columns_of(model: MemeModel, rows: Rows) -> dict[str, Tensor]:
    return model.columns(model.collate(rows))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() == {"hidden", "lmh_score"}
    for name, column in found.items():
        torch.testing.assert_close(column, expected[name], atol=2e-4, rtol=2e-4)


def test_the_language_model_is_where_the_entry_says(family: str, load: Callable[..., MemeModel]) -> None:
    entry, model = FAMILIES[family], base_model(load(family).model)
    assert type(model).__name__ == entry.model
    assert model.config.model_type == family
    layers = entry.decoder_layers(model)
    assert layers is model.get_decoder().layers
    assert len(layers) == model.config.get_text_config().num_hidden_layers
    inside = {id(module) for module in layers.modules()}
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if id(module) in inside}
    assert entry.gated_mlp == (names >= PROJECTIONS)
    for layer in layers:
        assert sum(hasattr(layer, name) for name in entry.attention) == 1
        mlp = getattr(layer, entry.mlp)
        assert entry.gated_mlp == all(isinstance(getattr(mlp, name, None), nn.Linear) for name in PROJECTIONS)
    assert {name for name in entry.attention if any(hasattr(layer, name) for layer in layers)} == set(entry.attention)


def test_published_checkpoints_have_the_stated_sizes(family: str) -> None:
    entry = FAMILIES[family]
    assert entry.published
    for checkpoint in entry.published:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(checkpoint.config())
        assert type(model).__name__ == entry.model
        assert model.config.get_text_config().hidden_size == checkpoint.hidden_size
        assert len(entry.decoder_layers(model)) == checkpoint.num_layers
        billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
        assert billions == pytest.approx(checkpoint.billions, rel=0.01)


def test_a_prompt_has_one_image_and_ends_in_the_assistant_header(family: str, load: Callable[..., MemeModel]) -> None:
    encoder = load(family).encoder
    placeholder = encoder.processor.image_token_id
    for caption, image in zip((*CAPTIONS[:3], "cake " * 4000), pictures(), strict=True):
        prompt = encoder.encode(caption, image)
        assert len(prompt.ids) <= encoder.budget
        assert prompt.ids[-len(encoder.tail) :] == encoder.tail
        assert prompt.ids.count(placeholder) == encoder.image_tokens(*image.size)
        assert prompt.shortened == (len(caption) > 1000)


def test_answers_are_told_apart_by_the_token_that_training_has_there(
    family: str, load: Callable[..., MemeModel]
) -> None:
    encoder = load(family).encoder
    ids = encoder.answer_token_ids(Answers())
    assert len({*ids}) == 2
    for word, token in zip(("No", "Yes"), ids, strict=True):
        for answer in (word, f"{word}.", f"{word}. It is a meme."):
            assert encoder.encode_answer(answer)[0] == token, answer
        assert encoder.tokenizer.decode([token]).strip() == word


def test_neither_padding_side_nor_batch_nor_order_changes_what_is_read(
    family: str, load: Callable[..., MemeModel]
) -> None:
    model = load(family)
    rows = rows_of(model)
    assert len({model.length(row) for row in rows}) > 1, "rows of one length would not be padded"
    single = [columns_of(model, [row]) for row in rows]
    expected = {name: torch.cat([column[name] for column in single]) for name in single[0]}
    assert (expected["hidden"][0] - expected["hidden"][1]).abs().max() > 1e-2
    assert_equal(columns_of(model, rows), expected)
    backwards = columns_of(model, rows[::-1])
    assert_equal({name: column.flip(0) for name, column in backwards.items()}, expected)
    right = load(family, "right")
    assert_equal(columns_of(right, rows), expected)


def test_picture_and_caption_both_reach_what_is_read(family: str, load: Callable[..., MemeModel]) -> None:
    model, (first, *_, other) = load(family), pictures()
    assert first.size != other.size
    rows = [model.encode("my cat", first), model.encode("my dog", first), model.encode("my cat", other)]
    hidden = columns_of(model, rows)["hidden"]
    assert (hidden[0] - hidden[1]).abs().max() > 1e-3
    assert (hidden[0] - hidden[2]).abs().max() > 1e-3


def conversations(model: MemeModel) -> list[Chat]:
    """A question about a meme, words alone, and a system message with two pictures and a turn between them."""
    ask = model.run.settings.prompt.render
    first, *_, other = pictures()
    turns = [("system", "Answer in one word."), ("user", "<image> What is it?"), ("assistant", "Yes.")]
    several = [{"role": role, "content": content} for role, content in [*turns, ("user", ask("my cat"))]]
    return [
        Chat([{"role": "user", "content": ask("my cat")}], [first]),
        Chat([{"role": "user", "content": "Name a cake."}]),
        Chat(several, [first, other]),
    ]


def test_a_chat_has_the_tokens_and_probabilities_of_the_lmh(family: str, load: Callable[..., MemeModel]) -> None:
    model = load(family)
    chat = conversations(model)[0]
    row = model.encode("my cat", chat.images[0])
    assert chat_ids(model.encoder, chat) == row["input_ids"]
    found = ChatModel(model).answer_probs([chat], Answers())[0, 1]
    assert found == pytest.approx(float(columns_of(model, [row])["lmh_score"]), abs=1e-4)


def test_an_answer_depends_on_no_other_chat(family: str, load: Callable[..., MemeModel]) -> None:
    speaker, chats = ChatModel(load(family)), conversations(load(family))
    single = [speaker.generate([chat], 6)[0] for chat in chats]
    assert speaker.generate(chats, 6) == single
    assert speaker.generate(chats[::-1], 6, batch_size=2) == single[::-1]
    words = [chats[1], Chat([{"role": "user", "content": "Name another one, and say why it is the better one."}])]
    assert speaker.generate(words, 6) == [speaker.generate([chat], 6)[0] for chat in words]
    probs = np.concatenate([speaker.answer_probs([chat], Answers()) for chat in chats])
    np.testing.assert_allclose(speaker.answer_probs(chats, Answers()), probs, atol=1e-4)


def test_greedy_generation_is_the_likeliest_next_token_each_time(family: str, load: Callable[..., MemeModel]) -> None:
    """The cache and the positions after a picture, against whole forward passes without either."""
    model = load(family)
    chat = conversations(model)[2]
    ids, prompt = chat_ids(model.encoder, chat), len(chat_ids(model.encoder, chat))
    stop = set(model.encoder.template.get_stop_token_ids(model.encoder.tokenizer))
    for _ in range(6):
        batch = model.collate([prompt_row(ids, chat.images, UNKNOWN_CLUSTER)])
        del batch["answer_positions"]
        with torch.inference_mode():
            token = int(model.model(**batch, use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        ids = [*ids, token]
    expected = model.encoder.tokenizer.decode(ids[prompt:], skip_special_tokens=True).strip()
    assert ChatModel(model).generate([chat, conversations(model)[0]], 6)[0] == expected
    assert len(ids) > prompt


@pytest.mark.slow
def test_stock_llama_factory_trains_it(
    family: str, stage1_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ours = dict.fromkeys(("loss_ratio", "classifier_lr", "proj_dim"))
    changes = {"stage": "sft", "max_samples": 8, "cutoff_len": 256, "eval_dataset": None}
    train(stage1_config(tmp_path / "run", family, **ours, **changes), tmp_path)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
