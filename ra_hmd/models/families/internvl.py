"""InternVL 3 and 3.5, in transformers' format (`…-hf`)."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import Family, Published, register_family, tiny_text_config
from ra_hmd.models.families.qwen import byte_level_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

# Qwen's control tokens and InternVL's own.
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
_MEDIA = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
# LLaMA-Factory's system message, which would otherwise be spelled in bytes.
_SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_TILE, _PATCH = 112, 14  # pixels of a side of a tile and of a patch; four patches are one token
_MOST_TILES = 12  # LLaMA-Factory's, with `crop_to_patches`

# ChatML; an image stands in a line of its own.
_CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part['type'] == 'video' %}{{ '<video>\\n' }}\
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def _8b() -> "PreTrainedConfig":
    from transformers import InternVLConfig

    make: Any = InternVLConfig  # a decorator that type checkers do not see through makes its constructor
    text = {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151674}
    return make(text_config=text, tie_word_embeddings=False)  # InternViT-300M is the default


@register_family
class InternVL(Family):
    """InternVL: an image is one square, or with `crop_to_patches` up to twelve of them and one of the whole."""

    name = "internvl"
    title = "InternVL 3 and 3.5"
    templates = ("intern_vl", "intern_s1")
    model = "InternVLForConditionalGeneration"
    processor = "InternVLProcessor"
    parts = {"text_config": ("qwen2", "qwen3")}  # noqa: RUF012 - never changed
    published = (Published("OpenGVLab/InternVL3-8B-hf", _8b, 3584, 28, 7.9),)

    def image_tokens(self, plugin: Any, processor: Any, width: int, height: int) -> int:
        """See `Family`."""
        tiles = 1
        if getattr(processor, "crop_to_patches", False):
            from PIL import Image

            limits = {name: getattr(processor, name) for name in ("image_max_pixels", "image_min_pixels")}
            limited = plugin._preprocess_image(Image.new("1", (width, height)), **limits)
            tiling = {"crop_to_patches": True, "min_patches": 1, "max_patches": _MOST_TILES}
            tiles = processor.image_processor.get_number_of_image_patches(limited.height, limited.width, tiling)
        return tiles * processor.image_seq_length

    def tiny_processor(self) -> "ProcessorMixin":
        """See `Family`."""
        from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor, Qwen2Tokenizer

        tokenizer = byte_level_tokenizer(Qwen2Tokenizer, _CONTROL, _SYSTEM, extra_special_tokens=_MEDIA)
        pixels: dict[str, Any] = {"size": {"height": _TILE, "width": _TILE}, "image_mean": _MEAN, "image_std": _STD}
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(**pixels),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(**pixels),
            image_seq_length=(_TILE // _PATCH // 2) ** 2,
            chat_template=_CHAT_TEMPLATE,
        )

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`."""
        from transformers import InternVLConfig

        make: Any = InternVLConfig
        token = tokenizer.convert_tokens_to_ids
        text = tiny_text_config(
            tokenizer,
            hidden_size,
            num_layers,
            model_type="qwen2",
            bos_token_id=token("<|endoftext|>"),
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
            tie_word_embeddings=False,
        )
        vision = {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": [_TILE, _TILE],
            "patch_size": [_PATCH, _PATCH],
            "attention_bias": True,
            "initializer_range": 0.05,
        }
        return make(
            text_config=text,
            vision_config=vision,
            image_token_id=token("<IMG_CONTEXT>"),
            image_seq_length=(_TILE // _PATCH // 2) ** 2,
            tie_word_embeddings=False,
        )
