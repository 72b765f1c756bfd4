"""Memes as prompts for vLLM: the tokens of training, and the picture as the model's processor resizes it."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER
from ra_hmd.models.families.qwen import QwenVL
from ra_hmd.models.generation.chat import Chat, fold_image_tokens
from ra_hmd.models.generation.engines import regular_images
from ra_hmd.models.tokenization import MemeEncoder


@dataclass(frozen=True)
class Prompt:
    """The question about a meme.

    Attributes:
        ids: Its token ids, an image token for each patch of the picture.
        system: The system message; "" without.
        before: The question's text before the picture.
        after: The question's text after the picture.
        picture: The picture as a PNG file, resized.
    """

    ids: list[int]
    system: str
    before: str
    after: str
    picture: bytes

    def messages(self) -> list[dict[str, Any]]:
        """The prompt as messages of the chat protocol, the picture as a data URL."""
        url = f"data:image/png;base64,{base64.b64encode(self.picture).decode()}"
        return _messages(self.system, self.before, {"type": "image_url", "image_url": {"url": url}}, self.after)


def _messages(system: str, before: str, picture: dict[str, Any], after: str) -> list[dict[str, Any]]:
    content = [part for part in ({"type": "text", "text": before}, picture, {"type": "text", "text": after})
               if part.get("text") != ""]  # fmt: skip
    said = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *said] if system else said


class PromptMaker:
    """Makes prompts of memes.

    Args:
        encoder: The run's encoder.
        image_token: Id of the token that stands for a part of a picture.
        by_messages: The prompts are sent as messages, which the model's own chat template turns into tokens.
    """

    def __init__(self, encoder: MemeEncoder, image_token: int, *, by_messages: bool) -> None:
        self.encoder, self.image_token, self._by_messages = encoder, image_token, by_messages

    def __call__(self, caption: str, image: Image.Image, guidance: str = "") -> Prompt:
        """The prompt about a meme.

        Raises:
            UserError: it does not fit the token budget, or the model's own chat template makes other tokens of it.
        """
        encoder = self.encoder
        encoded = encoder.encode(caption, image, guidance)
        question = encoder.prompt.render(encoded.caption, encoder.plain(guidance))
        before, _, after = question.partition(IMAGE_PLACEHOLDER)  # the first is the template's: captions have none
        system = encoder.template.default_system or ""
        if self._by_messages:
            self._check_template(encoded.ids, system, before, after)
        content = BytesIO()
        resized(encoder, image).save(content, "PNG", compress_level=1)
        return Prompt(encoded.ids, system, before, after, content.getvalue())

    def _check_template(self, ids: list[int], system: str, before: str, after: str) -> None:
        processor, tokenizer = self.encoder.processor, self.encoder.tokenizer
        if not processor.chat_template:
            raise UserError("its model has no chat template, by which a vLLM server makes tokens; use another backend")
        render = cast(Callable[..., str], processor.apply_chat_template)
        text = render(_messages(system, before, {"type": "image"}, after), tokenize=False, add_generation_prompt=True)
        if tokenizer.encode(text, add_special_tokens=False) != fold_image_tokens(ids, self.image_token):
            raise UserError(
                "the model's own chat template makes other tokens of it than the run's template, so a vLLM server "
                "would answer another prompt; use --backend transformers, or --backend vllm without --engine-url"
            )


def resized(encoder: MemeEncoder, image: Image.Image) -> Image.Image:
    """A picture within the run's pixel limits; of a Qwen-VL also resized to whole patches by the model's own processor,
    so that whoever processes it next has nothing left to resize.
    """
    chat = Chat([{"role": "user", "content": IMAGE_PLACEHOLDER}], [image])
    (regular,) = regular_images(encoder, chat)
    return _whole_patches(encoder.processor.image_processor, regular) if isinstance(encoder.family, QwenVL) else regular


def _whole_patches(processor: Any, image: Image.Image) -> Image.Image:
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image
    from transformers.image_utils import SizeDict
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    limits = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
    factor = processor.patch_size * processor.merge_size
    height, width = smart_resize(image.height, image.width, factor=factor, **limits)
    if (width, height) == image.size:
        return image
    pixels = processor.resize(pil_to_tensor(image), SizeDict(height=height, width=width), resample=processor.resample)
    return to_pil_image(pixels)
