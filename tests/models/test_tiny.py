"""The CPU-sized models: they open through the Auto classes, speak the host's templates, and follow from the seed."""

from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from seeded_models import check_seed_decides_every_byte
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase

from ra_hmd.core.errors import UserError
from ra_hmd.data.prompt import OFFICIAL_ANSWERS, PromptTemplate
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.families.qwen import SPECIAL_TOKENS, QwenVL
from ra_hmd.models.tiny import make_tiny_lmm

QWEN = [name for name, family in FAMILIES.items() if isinstance(family, QwenVL)]


@pytest.fixture(scope="module", params=FAMILIES)
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, make_tiny_lmm(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (112, 112), (40, 120, 200))


def conversation(caption: str, answer: str | None = None) -> list[dict]:
    question = PromptTemplate().render(caption).removeprefix("<image>")
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    return turns + ([{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else [])


def test_opens_and_generates(model_folder: tuple[str, Path], image: Image.Image) -> None:
    family, folder = model_folder
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(processor).__name__ == FAMILIES[family].processor
    assert type(model).__name__ == FAMILIES[family].model
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    text = processor.apply_chat_template(conversation("my cat"), add_generation_prompt=True, tokenize=False)
    batch = processor(text=[text], images=[image], return_tensors="pt")
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == 16  # enough, and quick
    with torch.no_grad():
        logits = model(**batch).logits
        generated = model.generate(**batch, max_new_tokens=2, min_new_tokens=2)
    assert logits.shape[-1] == len(processor.tokenizer)
    assert torch.isfinite(logits).all()
    assert generated.shape[1] == batch["input_ids"].shape[1] + 2


def test_picture_and_caption_both_reach_the_last_token(model_folder: tuple[str, Path], image: Image.Image) -> None:
    _, folder = model_folder
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def logits(caption: str, picture: Image.Image) -> torch.Tensor:
        text = processor.apply_chat_template(conversation(caption), add_generation_prompt=True, tokenize=False)
        with torch.no_grad():
            return model(**processor(text=[text], images=[picture], return_tensors="pt")).logits[0, -1]

    base = logits("my cat", image)
    assert torch.equal(base, logits("my cat", image))
    assert (base - logits("my dog", image)).abs().max() > 1e-4
    assert (base - logits("my cat", Image.new("RGB", (112, 112), (200, 20, 40)))).abs().max() > 1e-4


def test_tokenizer(model_folder: tuple[str, Path]) -> None:
    family, folder = model_folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token in ("Yes", "No", *(SPECIAL_TOKENS if family in QWEN else ())):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1, token
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    if family in QWEN:
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for text in ("Any text, é 漢字 🙂\n\tdone", 'This is an image with: "my cat"', *OFFICIAL_ANSWERS):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    config = AutoConfig.from_pretrained(folder)
    assert config.image_token_id == AutoProcessor.from_pretrained(folder).image_token_id
    assert config.get_text_config().vocab_size == len(tokenizer)


def test_chat_template_agrees_with_the_host(model_folder: tuple[str, Path], image: Image.Image) -> None:
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    family, folder = model_folder
    processor = AutoProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=FAMILIES[family].templates[0]))
    messages = [
        {"role": "user", "content": PromptTemplate().render("my cat")},
        {"role": "assistant", "content": OFFICIAL_ANSWERS[1]},
    ]
    messages = template.mm_plugin.process_messages(messages, [image], [], [], processor)
    source, target = template.encode_oneturn(tokenizer, messages)
    for turns, prompt, expected in (
        (conversation("my cat"), True, source),
        (conversation("my cat", OFFICIAL_ANSWERS[1]), False, source + target),
    ):
        text = processor.apply_chat_template(turns, add_generation_prompt=prompt, tokenize=False)
        own = processor(text=[text], images=[image])["input_ids"][0]
        if family in QWEN:
            assert own == expected
        # Others differ from the host in blanks, in the system message and in the tokens around the whole conversation.
        assert words(tokenizer, expected).endswith(words(tokenizer, own))
    plain = [{"role": "user", "content": "Hello"}]
    text = processor.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert text.endswith(template.format_user.apply(content="Hello")[0])


def words(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of token ids without blanks, and without the tokens of its beginning and end."""
    text = "".join(cast(str, tokenizer.decode(ids)).split())
    while tokenizer.bos_token and text.startswith(tokenizer.bos_token):  # Gemma's template begins with one of its own
        text = text.removeprefix(tokenizer.bos_token)
    return text.removesuffix(tokenizer.eos_token)


@pytest.mark.slow
def test_seed_decides_every_byte(tmp_path: Path) -> None:
    check_seed_decides_every_byte(make_tiny_lmm, [*FAMILIES], tmp_path)


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--family 'qwen9'.*qwen2_vl"):
        make_tiny_lmm("qwen9", tmp_path / "x")
    with pytest.raises(UserError, match="hidden_size 100"):
        make_tiny_lmm("qwen2_vl", tmp_path / "x", hidden_size=100)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        make_tiny_lmm("qwen2_vl", tmp_path / "full")
