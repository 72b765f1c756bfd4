"""The check of an LMM whose family is not registered: may the head read it as it reads the tested families?

It looks at the actual processor, tokenizer and template, and at the model without its weights: whether prompts end in
the assistant header, an image has image tokens, positions do not depend on the padding side, and answers begin with
tokens that tell them apart and that the model's own chat format has there.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image

from ra_hmd.core.errors import UserError, first_line, raise_all
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER, Answers
from ra_hmd.models.classifier import IGNORE
from ra_hmd.models.families import FAMILIES, described, family_of
from ra_hmd.models.tokenization import MemeEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_CAPTIONS = ("", "a", "It is 5:", "a caption of several words\n")
_SIZES = ((96, 96), (200, 120), (90, 260), (64, 64))
Problems = Iterator[str]


def check_unlisted(encoder: MemeEncoder, config: "PreTrainedConfig", template: str, answers: Answers) -> None:
    """Check a model whose family is not registered; do nothing for the others.

    Args:
        encoder: Encoder with the model's tokenizer and processor.
        config: The model's configuration.
        template: Name of the template, for the message.
        answers: Answers of the problem.

    Raises:
        UserError: lists what failed.
    """
    if family_of(config) is not None:
        return
    problems = [
        *_problems(_prompt_problems, encoder, config),
        *_problems(_answer_problems, encoder, answers),
        *_problems(_model_problems, encoder, config),
    ]
    raise_all(
        problems,
        f"A {described(config)} model is none of the tested families ({', '.join(FAMILIES)}), and with `template: "
        f"{template}` it fails the check of prompt, positions and answers",
    )


def _problems(check: Callable[..., Problems], *arguments: Any) -> list[str]:
    """Problems that a check finds; what the model's own code raises is one."""
    found: list[str] = []
    try:
        found.extend(check(*arguments))
    except Exception as error:  # any class: it is code of any model
        found.append(first_line(error))
    return found


def _prompt_problems(encoder: MemeEncoder, config: "PreTrainedConfig") -> Problems:
    placeholder = _image_token(config)
    if placeholder is None:
        yield "its configuration has no `image_token_id`"
        return
    for caption, size in zip(_CAPTIONS, _SIZES, strict=True):
        image = Image.new("RGB", size)
        ids = encoder.prompt_ids(encoder.plain(caption), [image])
        if ids[-len(encoder.tail) :] != encoder.tail:
            yield f"a prompt with the caption {caption!r} does not end in the assistant header"
        found, twice = ids.count(placeholder), _image_tokens(encoder, [image, image], placeholder)
        if found == 0:
            yield f"an image of {size[0]} x {size[1]} pixels has no image token in its prompt"
        elif twice != 2 * found:
            yield f"an image of {size[0]} x {size[1]} pixels has {found} image tokens, and two such images {twice}"


def _image_token(config: "PreTrainedConfig") -> int | None:
    return getattr(config, "image_token_id", getattr(config, "image_token_index", None))


def _image_tokens(encoder: MemeEncoder, images: list[Image.Image], placeholder: int) -> int:
    """Image tokens of a prompt with these images."""
    plugin = encoder.template.mm_plugin
    turn = [{"role": "user", "content": IMAGE_PLACEHOLDER * len(images)}]
    expanded = plugin.process_messages(turn, images, [], [], encoder.processor)
    prefix, _ = plugin.process_token_ids([], [], images, [], [], encoder.tokenizer, encoder.processor)
    return (prefix + encoder.tokenizer.encode(expanded[0]["content"], add_special_tokens=False)).count(placeholder)


def _answer_problems(encoder: MemeEncoder, answers: Answers) -> Problems:
    try:
        first = encoder.answer_token_ids(answers)
    except UserError as error:
        yield str(error)
        return
    if getattr(encoder.processor, "chat_template", None) is None:
        return  # nothing says what the model's own format would be
    for word, token in zip(answers.words, first, strict=False):
        own = _own_answer_token(encoder, word)
        if own != token:
            names = encoder.tokenizer.convert_ids_to_tokens([id_ for id_ in (token, own) if id_ is not None])
            theirs = f"with {names[1]!r}" if own is not None else "it changes the prompt"
            yield f"the answer {word!r} begins with the token {names[0]!r}, and in the model's own chat format {theirs}"


def _own_answer_token(encoder: MemeEncoder, word: str) -> int | None:
    """Token after the model's own prompt where `word` is the answer; None where the answer changes the prompt."""
    question = encoder.prompt.render("a").replace(IMAGE_PLACEHOLDER, "").strip()
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    render: Callable[..., str] = encoder.processor.apply_chat_template
    asked = render(turns, add_generation_prompt=True, tokenize=False)
    answered = render([*turns, {"role": "assistant", "content": [{"type": "text", "text": word}]}], tokenize=False)
    prompt, whole = (encoder.tokenizer.encode(text, add_special_tokens=False) for text in (asked, answered))
    return whole[len(prompt)] if whole[: len(prompt)] == prompt and len(whole) > len(prompt) else None


def _model_problems(encoder: MemeEncoder, config: "PreTrainedConfig") -> Problems:
    model = _skeleton(config)
    if not hasattr(model, "model") or not hasattr(model, "lm_head"):
        yield f"{type(model).__name__} has no `model` with an `lm_head` beside it, which the head is attached to"
    left, right = (_batch(encoder, model, side) for side in ("left", "right"))
    if left.get("position_ids") is None and not getattr(config.get_text_config(), "rope_parameters", None):
        yield "its positions are counted from the beginning of the padded row (it has no rotary positions)"
    for name in ("input_ids", "position_ids", "token_type_ids"):
        if name in left and not _equal_where_attended(name, left, right):
            yield f"`{name}` of a meme depend on the padding side"


def _skeleton(config: "PreTrainedConfig") -> "PreTrainedModel":
    """The model on the meta device: no weights, and the host's way of making positions."""
    from transformers import AutoModelForImageTextToText

    mapping: Any = AutoModelForImageTextToText._model_mapping
    if type(config) not in mapping:
        raise UserError(f"transformers has no image-text model of type {config.model_type}")
    with torch.device("meta"):
        return mapping[type(config)](config)


def _batch(encoder: MemeEncoder, model: "PreTrainedModel", side: str) -> dict[str, Any]:
    """Two memes of different length as one batch of the host's collator."""
    from llamafactory.data import MultiModalDataCollatorForSeq2Seq

    tokenizer = encoder.tokenizer
    before, tokenizer.padding_side = tokenizer.padding_side, side
    try:
        rows = []
        for caption in (_CAPTIONS[1], _CAPTIONS[-1] * 3):
            image = Image.new("RGB", _SIZES[0])
            ids = encoder.prompt_ids(caption, [image])
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORE] * len(ids)})
            rows[-1]["images"] = [cast(Any, image)]
        collator = MultiModalDataCollatorForSeq2Seq(
            template=encoder.template, model=model, processor=encoder.processor, tokenizer=tokenizer
        )
        return dict(collator(rows))
    finally:
        tokenizer.padding_side = before


def _equal_where_attended(name: str, left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether an input [B, T] or [A, B, T] is equal for both padding sides, apart from the padding."""
    for row in range(left["attention_mask"].shape[0]):
        one, other = (
            batch[name].movedim(-2, 0)[row][..., batch["attention_mask"][row].bool()] for batch in (left, right)
        )
        if not torch.equal(one, other):
            return False
    return True
