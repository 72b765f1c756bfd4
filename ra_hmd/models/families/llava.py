"""LLaVA-1.5."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import CONTEXT, Family, Published, register_family, tiny_text_config
from ra_hmd.models.families.sentencepiece import learn_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_IMAGE, _PATCH = 112, 28  # pixels of a side of what the tiny vision tower sees, and of its patches

# Vicuna's turns; the images of a message come first. An answer follows `ASSISTANT:` and a blank.
_CHAT_TEMPLATE = """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}\
{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def _7b() -> "PreTrainedConfig":
    return _published({"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32064})


def _13b() -> "PreTrainedConfig":
    layers = {"num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40}
    return _published({"hidden_size": 5120, "intermediate_size": 13824, "vocab_size": 32064} | layers)


def _published(text: dict[str, Any]) -> "PreTrainedConfig":
    from transformers import LlavaConfig

    make: Any = LlavaConfig  # a decorator that type checkers do not see through makes its constructor
    return make(text_config=text | {"model_type": "llama"})  # CLIP ViT-L/14 at 336 pixels is the default


@register_family
class Llava(Family):
    """LLaVA-1.5: CLIP and Llama. The answer follows a colon, and its first token has the blank before it."""

    name = "llava"
    title = "LLaVA-1.5"
    templates = ("llava",)
    model = "LlavaForConditionalGeneration"
    processor = "LlavaProcessor"
    parts = {"text_config": ("llama",), "vision_config": ("clip_vision_model",)}  # noqa: RUF012 - never changed
    published = (
        Published("llava-hf/llava-1.5-7b-hf", _7b, 4096, 32, 7.1),
        Published("llava-hf/llava-1.5-13b-hf", _13b, 5120, 40, 13.4),
    )

    def image_tokens(self, plugin: Any, processor: Any, width: int, height: int) -> int:
        """See `Family`. The same for every image: it is cut to a square, one token for each patch."""
        size = processor.image_processor.crop_size
        patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
        without_class = processor.vision_feature_select_strategy == "default"
        return patches + processor.num_additional_image_tokens - without_class

    def tiny_processor(self) -> "ProcessorMixin":
        """See `Family`."""
        from transformers import CLIPImageProcessor, LlamaTokenizer, LlavaProcessor

        vocabulary, merges = learn_pieces(["<unk>", "<s>", "</s>"], f"{_SYSTEM} USER: ", " ASSISTANT:")
        tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT, add_bos_token=True)
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        square = {"height": _IMAGE, "width": _IMAGE}
        return LlavaProcessor(
            image_processor=CLIPImageProcessor(size={"shortest_edge": _IMAGE}, crop_size=square),
            tokenizer=tokenizer,
            patch_size=_PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # CLIP's class token, which the strategy leaves out
            chat_template=_CHAT_TEMPLATE,
        )

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`."""
        from transformers import LlavaConfig

        make: Any = LlavaConfig
        text = tiny_text_config(
            tokenizer,
            hidden_size,
            num_layers,
            model_type="llama",
            num_key_value_heads=hidden_size // 32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": _IMAGE,
            "patch_size": _PATCH,
            "projection_dim": 128,
            "initializer_range": 0.05,
        }
        return make(
            text_config=text,
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=(_IMAGE // _PATCH) ** 2,
            tie_word_embeddings=False,
        )
