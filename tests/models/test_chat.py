"""Words of a trained LMM: tokens and probabilities of training's question, and answers that depend on no other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ra_hmd.core.errors import UserError
from ra_hmd.data.images import load_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import Answers
from ra_hmd.models.checkpoint import open_backbone, open_run
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER
from ra_hmd.models.generation.chat import Chat, ChatModel, chat_ids, fold_image_tokens
from ra_hmd.models.meme_model import MemeModel, load_encoder, prompt_row

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(stage1_run: Path) -> MemeModel:
    return MemeModel(open_run(stage1_run), CPU)


@pytest.fixture(scope="module")
def some(memes: Path) -> list[Meme]:
    return read_memes(memes / "a" / "dev.jsonl")[:6]


def question(model: MemeModel, meme: Meme) -> Chat:
    text = model.run.settings.prompt.render(meme.text)
    return Chat([{"role": "user", "content": text}], [load_image(meme.image)])


def conversation(some: list[Meme]) -> Chat:
    """A system message and two demonstrations before the question: three pictures of different size."""
    turns = [{"role": "system", "content": "Answer in one word."}]
    for number, meme in enumerate(some[:3]):
        turns += [{"role": "user", "content": f"<image> Caption: {meme.text}"}]
        turns += [{"role": "assistant", "content": "Yes." if number else "No."}] if number < 2 else []
    pictures = [load_image(meme.image).resize((96 + 28 * n, 96)) for n, meme in enumerate(some[:3])]
    return Chat(turns, pictures)


def test_one_question_has_the_tokens_and_probabilities_of_the_lmh(model: MemeModel, some: list[Meme]) -> None:
    chats = [question(model, meme) for meme in some]
    rows = [model.encode(meme.text, chat.images[0]) for meme, chat in zip(some, chats, strict=True)]
    assert [chat_ids(model.encoder, chat) for chat in chats] == [row["input_ids"] for row in rows]
    expected = model.score(model.collate(rows)).answer_probs.numpy()
    found = ChatModel(model).answer_probs(chats, model.run.settings.expected_answers, batch_size=4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    swapped = ChatModel(model).answer_probs(chats, Answers(("Yes", "No")))
    np.testing.assert_allclose(swapped, expected[:, ::-1], atol=1e-5)


def test_an_answer_depends_on_no_other_and_the_head_still_reads(model: MemeModel, some: list[Meme]) -> None:
    speaker = ChatModel(model)
    words = Chat([{"role": "user", "content": "Name a cake."}])
    chats = [conversation(some), words, *(question(model, meme) for meme in some)]
    before = model.score(model.collate([model.encode(some[0].text, chats[2].images[0])]))
    together = speaker.generate(chats, 12)
    assert together == [speaker.generate([chat], 12)[0] for chat in chats]
    assert together == speaker.generate(chats[::-1], 12, batch_size=3)[::-1]
    assert any(together)
    assert speaker.generate([]) == []
    after = model.score(model.collate([model.encode(some[0].text, chats[2].images[0])]))
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.answer_probs, before.answer_probs)


def test_greedy_generation_is_the_likeliest_next_token_each_time(model: MemeModel, some: list[Meme]) -> None:
    """The cache, the positions after a picture and the padding, against whole forward passes without any of them."""
    speaker, chat = ChatModel(model), conversation(some)
    ids, prompt = chat_ids(model.encoder, chat), len(chat_ids(model.encoder, chat))
    stop = set(model.encoder.template.get_stop_token_ids(model.encoder.tokenizer))
    for _ in range(8):
        batch = model.collate([prompt_row(ids, chat.images, UNKNOWN_CLUSTER)])
        del batch["answer_positions"]
        with torch.inference_mode():
            token = int(model.model(**batch).logits[0, -1].argmax())
        if token in stop:
            break
        ids = [*ids, token]
    expected = model.encoder.tokenizer.decode(ids[prompt:], skip_special_tokens=True).strip()
    assert speaker.generate([chat, question(model, some[0])], 8)[0] == expected
    assert len(ids) > prompt


def test_without_the_adapter_the_base_model_speaks(model: MemeModel, some: list[Meme]) -> None:
    chats, answers = [question(model, meme) for meme in some], model.run.settings.expected_answers
    trained = ChatModel(model).answer_probs(chats, answers)
    bare = ChatModel(MemeModel(open_backbone(str(model.run.folder)), CPU)).answer_probs(chats, answers)
    np.testing.assert_allclose(ChatModel(model, adapter=False).answer_probs(chats, answers), bare, atol=1e-5)
    assert np.abs(trained - bare).max() > 1e-3
    np.testing.assert_allclose(ChatModel(model).answer_probs(chats, answers), trained, atol=1e-6)
    with pytest.raises(UserError, match="no adapter"):
        ChatModel(MemeModel(open_backbone(str(model.run.folder)), CPU), adapter=False)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_other_families(tiny: Callable[[str], Path], family: str, some: list[Meme]) -> None:
    model = MemeModel(open_backbone(str(tiny(family))), CPU)
    speaker, chats = ChatModel(model), [conversation(some), question(model, some[0])]
    assert speaker.generate(chats, 6) == [speaker.generate([chat], 6)[0] for chat in chats]
    together = speaker.answer_probs(chats, Answers())
    np.testing.assert_allclose(together, [speaker.answer_probs([chat], Answers())[0] for chat in chats], atol=1e-5)


def test_four_bits(stage1_run: Path, some: list[Meme], tmp_path: Path) -> None:
    run = replace(open_run(stage1_run), loading={"quantization_bit": 4})
    speaker = ChatModel(MemeModel(run, CPU))
    chats = [question(speaker.model, meme) for meme in some[:2]]
    assert speaker.generate(chats, 4) == speaker.generate(chats, 4)
    assert np.isfinite(speaker.answer_probs(chats, Answers())).all()


def test_what_cannot_be_asked_is_refused_and_nothing_is_cut(model: MemeModel, some: list[Meme]) -> None:
    speaker, chat = ChatModel(model), question(model, some[0])
    long = Chat([{"role": "user", "content": "cake " * speaker.context}])
    with pytest.raises(UserError, match=rf"chat 2 of 2: its prompt has \d+ tokens.*context is {speaker.context}"):
        speaker.generate([chat, long])
    room = speaker.context - len(chat_ids(model.encoder, chat))
    assert len(speaker.encode(chat, room)) + room == speaker.context
    with pytest.raises(UserError, match=f"{room + 1} are requested"):
        speaker.encode(chat, room + 1)
    with pytest.raises(UserError, match="no first token"):
        speaker.answer_probs([chat], Answers(("cats", "cakes"), several=True))
    with pytest.raises(UserError, match="2 times <image> and 1 images"):
        Chat([{"role": "user", "content": "<image> <image>"}], chat.images)
    for roles in ([], ["system"], ["assistant"], ["user", "assistant"], ["user", "user"], ["user", "system", "user"]):
        with pytest.raises(UserError, match="`user` last"):
            Chat([{"role": role, "content": ""} for role in roles])


def test_image_tokens_are_folded_to_one_for_each_picture(model: MemeModel, some: list[Meme]) -> None:
    image, ids = model.model.config.image_token_id, chat_ids(model.encoder, conversation(some))
    folded = fold_image_tokens(ids, image)
    assert folded.count(image) == 3 < ids.count(image)
    assert [token for token in folded if token != image] == [token for token in ids if token != image]
    assert fold_image_tokens([5, 5, 7, 7], image) == [5, 5, 7, 7]


def test_the_system_message_of_one_run_is_not_that_of_the_next(stage1_run: Path) -> None:
    run = open_run(stage1_run)
    first = load_encoder(run.base_model, run.settings.replace(default_system="Be brief."))[0]
    second = load_encoder(run.base_model, run.settings)[0]
    assert first.template.default_system == "Be brief."
    assert second.template.default_system == "You are a helpful assistant."
