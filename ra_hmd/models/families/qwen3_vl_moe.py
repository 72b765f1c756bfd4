"""Qwen3-VL, the mixtures of experts."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import Published, register_family
from ra_hmd.models.families.qwen import QwenVL, token_ids
from ra_hmd.models.families.qwen3_vl import VISION, published_text, tiny_parts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def _30b() -> "PreTrainedConfig":
    from transformers import Qwen3VLMoeConfig

    make: Any = Qwen3VLMoeConfig  # a decorator that type checkers do not see through makes its constructor
    text = published_text(2048, 32, 6144, 48) | {"num_key_value_heads": 4, "tie_word_embeddings": False}
    text |= {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
    vision = VISION | {"out_hidden_size": 2048, "deepstack_visual_indexes": [8, 16, 24]}
    return make(text_config=text, vision_config=vision, tie_word_embeddings=False)


@register_family
class Qwen3VLMoe(QwenVL):
    """Qwen3-VL as a mixture of experts: its MLPs have no projections that our own experts could extend."""

    name = "qwen3_vl_moe"
    title = "Qwen3-VL (mixture of experts)"
    templates = ("qwen3_vl_nothink",)
    model = "Qwen3VLMoeForConditionalGeneration"
    processor = "Qwen3VLProcessor"
    gated_mlp = False
    published = (Published("Qwen/Qwen3-VL-30B-A3B-Instruct", _30b, 2048, 48, 31.1),)

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`."""
        from transformers import Qwen3VLMoeConfig

        make: Any = Qwen3VLMoeConfig
        text, vision = tiny_parts(tokenizer, hidden_size, num_layers)
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden_size}
        text |= {"tie_word_embeddings": False}
        return make(text_config=text, vision_config=vision, tie_word_embeddings=False, **token_ids(tokenizer))
