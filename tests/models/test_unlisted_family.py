"""A model of a family that is not registered runs after a check, or is refused with what failed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import train
from once import SharedFolders
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Glm4vConfig,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import Answers
from ra_hmd.models import unlisted_family
from ra_hmd.models.checkpoint import open_backbone, open_run
from ra_hmd.models.families import FAMILIES, family_of, tokenizer_of
from ra_hmd.models.families.qwen import byte_level_tokenizer
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.meme_model import MemeModel, load_encoder
from ra_hmd.models.tokenization import InputSettings, check_family

CPU = torch.device("cpu")
Make: Any = Callable[..., Any]


def save(folder: Path, processor: Any, config: Any) -> Path:
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def llava_next(folder: Path, chat_template: str | None = None) -> Path:
    """A tiny LLaVA-NeXT: LLaVA-1.5's parts, and up to four squares beside the whole image."""
    llava: Any = FAMILIES["llava"]
    plain = llava.tiny_processor()
    tokenizer = tokenizer_of(plain)
    config = llava.tiny_config(tokenizer, 64, 2)
    square, pinpoints = {"height": 112, "width": 112}, [[112, 224], [224, 112], [224, 224]]
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 112}, crop_size=square, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=28,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template or plain.chat_template,
    )
    make: Make = LlavaNextConfig
    return save(
        folder,
        processor,
        make(
            text_config=config.text_config.to_dict(),
            vision_config=config.vision_config.to_dict(),
            image_token_index=config.image_token_id,
            image_grid_pinpoints=pinpoints,
        ),
    )


def glm4v(folder: Path) -> Path:
    """A tiny GLM-4.1V. In the host's format each of its answers begins with a line break."""
    media = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>")
    roles = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|end_of_video|>")
    tokenizer: PreTrainedTokenizerBase = byte_level_tokenizer(
        Qwen2Tokenizer, ("<|endoftext|>", "<|im_end|>", *roles, *media)
    )
    pixels: dict[str, Any] = {"size": {"shortest_edge": 3136, "longest_edge": 50176}, "patch_size": 14}
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 64}
    make: Make = Glm4vConfig
    return save(
        folder,
        Glm4vProcessor(Glm4vImageProcessor(**pixels), tokenizer, Glm4vVideoProcessor(**pixels)),
        make(
            text_config=text,
            vision_config=vision | {"image_size": 112},
            image_token_id=token("<|image|>"),
            video_token_id=token("<|video|>"),
            image_start_token_id=token("<|begin_of_image|>"),
            image_end_token_id=token("<|end_of_image|>"),
        ),
    )


@pytest.fixture(scope="module")
def next_folder(once: SharedFolders) -> Path:
    return once("llava_next", lambda folder: llava_next(folder / "model")) / "model"


def settings(template: str) -> InputSettings:
    return InputSettings(template=template, cutoff_len=1024)


def pictures() -> list[Image.Image]:
    drawn = np.random.default_rng(3).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    return [Image.fromarray(drawn[:height, :width]) for height, width in ((96, 96), (100, 280), (260, 110))]


def test_one_that_passes_is_read_whatever_the_batch(next_folder: Path) -> None:
    with pytest.raises(UserError, match=r"llava_next model.*--template"):
        open_backbone(str(next_folder))
    run = open_backbone(str(next_folder), "llava_next")
    left, right = (MemeModel(run, CPU, padding_side=side) for side in ("left", "right"))  # type: ignore[arg-type]
    rows = [left.encode(text, image) for text, image in zip(("a", "my cat", ""), pictures(), strict=True)]
    single = torch.cat([left.columns(left.collate([row]))["hidden"] for row in rows])
    for model in (left, right):
        hidden = model.columns(model.collate(rows))["hidden"]
        torch.testing.assert_close(hidden, single, atol=2e-4, rtol=2e-4)
    chats = [
        Chat([{"role": "user", "content": f"<image> {text}"}], [pictures()[0]]) for text in ("What?", "Who is it?")
    ]
    speaker = ChatModel(left)
    assert speaker.generate(chats, 4) == [speaker.generate([chat], 4)[0] for chat in chats]


def test_its_image_tokens_are_counted_from_the_image(next_folder: Path) -> None:
    encoder, _ = load_encoder(str(next_folder), settings("llava_next"))
    around = {len(encoder.encode("", image).ids) - encoder.image_tokens(*image.size) for image in pictures()}
    assert len(around) == 1
    assert len({encoder.image_tokens(*image.size) for image in pictures()}) > 1


@pytest.mark.slow
def test_one_that_passes_trains(
    next_folder: Path, stage1_config: Callable[..., dict[str, Any]], memes: Path, tmp_path: Path
) -> None:
    config = stage1_config(tmp_path / "run", max_samples=8, do_predict=True, cutoff_len=512)
    train(config | {"model_name_or_path": str(next_folder), "template": "llava_next"}, tmp_path)
    model = MemeModel(open_run(tmp_path / "run"), CPU)
    written = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    dev = read_memes(memes / "a" / "dev.jsonl")[: len(written)]
    found = model.columns(model.collate([model.encode(meme.text, Image.open(meme.image)) for meme in dev]))
    assert found["lmh_score"].flatten().tolist() == pytest.approx([row["lmh_score"] for row in written], abs=1e-4)


def test_answers_that_begin_alike_are_refused(once: SharedFolders) -> None:
    folder = once("glm4v", lambda folder: glm4v(folder / "model")) / "model"
    with pytest.raises(UserError, match="glm4v model.*`template: glm4v`") as refused:
        load_encoder(str(folder), settings("glm4v"))
    assert re.search(r"'No' and 'Yes' begin with the same token", str(refused.value))
    assert len(refused.value.problems) == 1, "all else of it passes"


def test_a_template_that_takes_no_images_is_refused(next_folder: Path) -> None:
    with pytest.raises(UserError, match=r"llava_next model.*`template: vicuna`[\s\S]*does not support image input"):
        load_encoder(str(next_folder), settings("vicuna"))


def test_an_answer_token_unlike_the_model_s_own_format_is_refused(tmp_path: Path) -> None:
    own = "USER: {{ messages[0]['content'][1]['text'] }} ASSISTANT:"
    own += "{% if messages[1] %}: {{ messages[1]['content'][0]['text'] }}{% endif %}"
    with pytest.raises(UserError, match=r"'No' begins with the token '▁No', and in .* own chat format with ':'"):
        load_encoder(str(llava_next(tmp_path / "model", own)), settings("llava_next"))


def test_prompts_that_do_not_fit_are_refused_each_with_its_reason(
    next_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _ = load_encoder(str(next_folder), settings("llava_next"))
    config = LlavaNextConfig.from_pretrained(next_folder)

    def said() -> str:
        with pytest.raises(UserError) as refused:
            unlisted_family.check_unlisted(encoder, config, "llava_next", Answers())
        return str(refused.value)

    tokens = unlisted_family._image_tokens
    monkeypatch.setattr(unlisted_family, "_image_tokens", lambda *given: tokens(*given) - 1)
    assert re.search(r"96 x 96 pixels has (\d+) image tokens, and two such images \d+", said())
    monkeypatch.undo()
    encoder.tail = [*encoder.tail, 5]
    assert "does not end in the assistant header" in said()
    encoder.tail.pop()
    config.image_token_index = 5
    assert "has no image token in its prompt" in said()


class TestPositions:
    """What the host's collator makes of two memes, replaced."""

    def problems(self, next_folder: Path, monkeypatch: pytest.MonkeyPatch, **change: Callable[[Any], Any]) -> str:
        made = unlisted_family._batch

        def changed(encoder: Any, model: Any, side: str) -> dict[str, Any]:
            batch = made(encoder, model, side)
            return batch | {name: make(batch) for name, make in change.items()}

        monkeypatch.setattr(unlisted_family, "_batch", changed)
        with pytest.raises(UserError) as refused:
            load_encoder(str(next_folder), settings("llava_next"))
        return str(refused.value)

    def test_that_count_the_padding_are_refused(self, next_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def counted(batch: Any) -> torch.Tensor:
            return torch.arange(batch["input_ids"].shape[1]).expand(3, 2, -1)

        assert "`position_ids` of a meme depend on the padding side" in self.problems(
            next_folder, monkeypatch, position_ids=counted
        )

    def test_that_a_model_without_rotary_ones_counts_are_refused(
        self, next_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder, _ = load_encoder(str(next_folder), settings("llava_next"))
        config = LlavaNextConfig.from_pretrained(next_folder)
        skeleton = unlisted_family._skeleton(config)
        del skeleton.lm_head
        monkeypatch.setattr(unlisted_family, "_skeleton", lambda _: skeleton)
        config.get_text_config().rope_parameters = None
        with pytest.raises(UserError, match="no rotary positions") as refused:
            unlisted_family.check_unlisted(encoder, config, "llava_next", Answers())
        assert "`lm_head`" in str(refused.value)


def test_a_family_is_told_by_its_parts_too(tmp_path: Path) -> None:
    """Pixtral, and LLaVA with another language model, are of type `llava`, and have other templates."""
    llava: Any = FAMILIES["llava"]
    config = llava.tiny_config(tokenizer_of(llava.tiny_processor()), 64, 2)
    assert family_of(config) is llava
    mistral = config.text_config.to_dict() | {"model_type": "mistral"}
    make: Make = LlavaConfig
    other = make(text_config=mistral, vision_config=config.vision_config, image_token_index=config.image_token_id)
    assert family_of(other) is None
    check_family(other, "llava_next_mistral")
    with pytest.raises(UserError, match="`template: llava_next_mistral`.*`template: llava`"):
        check_family(config, "llava_next_mistral")
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"llava \(mistral, clip_vision_model\) model.*--template"):
        open_backbone(str(tmp_path / "model"))


def test_a_registered_family_is_not_checked(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlisted_family, "_prompt_problems", lambda *_: pytest.fail("checked"))
    load_encoder(str(tiny("llava")), settings("llava"))
