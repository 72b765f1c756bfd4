"""Qwen2-VL."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import Published, register_family
from ra_hmd.models.families.qwen import SYSTEM, QwenVL, text_config, token_ids, vision_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def _published(
    hidden: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int, *, tied: bool
) -> "PreTrainedConfig":
    from transformers import Qwen2VLConfig

    text: dict[str, Any] = qwen2_text(hidden, heads, key_value_heads, intermediate, vocabulary)
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": hidden}
    make: Any = Qwen2VLConfig  # a decorator that type checkers do not see through makes its constructor
    return make(text_config=text | {"tie_word_embeddings": tied}, vision_config=vision, tie_word_embeddings=tied)


def qwen2_text(hidden: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int) -> dict[str, Any]:
    """Configuration of a published language model of Qwen2's kind."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": 28,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
    }


def _2b() -> "PreTrainedConfig":
    return _published(1536, 12, 2, 8960, 151936, tied=True)


def _7b() -> "PreTrainedConfig":
    return _published(3584, 28, 4, 18944, 152064, tied=False)


@register_family
class Qwen2VL(QwenVL):
    """Qwen2-VL."""

    name = "qwen2_vl"
    title = "Qwen2-VL"
    templates = ("qwen2_vl",)
    model = "Qwen2VLForConditionalGeneration"
    processor = "Qwen2VLProcessor"
    default_system = SYSTEM
    patch_size = 14
    published = (
        Published("Qwen/Qwen2-VL-2B-Instruct", _2b, 1536, 28, 2.2),
        Published("Qwen/Qwen2-VL-7B-Instruct", _7b, 3584, 28, 8.3),
    )

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`."""
        from transformers import Qwen2VLConfig

        make: Any = Qwen2VLConfig
        return make(
            text_config=text_config(tokenizer, hidden_size, num_layers),
            vision_config=vision_config(embed_dim=128, hidden_size=hidden_size, mlp_ratio=2),
            tie_word_embeddings=False,
            **token_ids(tokenizer),
        )
