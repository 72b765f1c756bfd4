"""Qwen3-VL, the dense models."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import Published, register_family
from ra_hmd.models.families.qwen import QwenVL, text_config, token_ids, vision_config
from ra_hmd.models.families.qwen2_vl import qwen2_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
"""Vision tower of the published models."""


def published_text(hidden: int, heads: int, intermediate: int, layers: int) -> dict[str, Any]:
    """Configuration of a published language model of Qwen3-VL."""
    text = qwen2_text(hidden, heads, 8, intermediate, 151936) | {"num_hidden_layers": layers, "head_dim": 128}
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5000000.0}
    return text | {"rope_parameters": rope}


def _8b() -> "PreTrainedConfig":
    from transformers import Qwen3VLConfig

    make: Any = Qwen3VLConfig  # a decorator that type checkers do not see through makes its constructor
    text = published_text(4096, 32, 12288, 36)
    vision = VISION | {"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]}
    return make(text_config=text, vision_config=vision, tie_word_embeddings=False)


def tiny_parts(
    tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of the tiny language model and vision tower."""
    text = text_config(tokenizer, hidden_size, num_layers) | {"head_dim": 32}
    text["rope_scaling"] |= {"mrope_interleaved": True}
    vision = {"hidden_size": 64, "out_hidden_size": hidden_size, "intermediate_size": 128, "patch_size": 16}
    return text, vision_config(**vision, num_heads=2, num_position_embeddings=64, deepstack_visual_indexes=[0, 1])


@register_family
class Qwen3VL(QwenVL):
    """Qwen3-VL. Template `qwen3_vl` is a reasoning template: it puts an empty thought before the answer."""

    name = "qwen3_vl"
    title = "Qwen3-VL"
    templates = ("qwen3_vl_nothink",)
    model = "Qwen3VLForConditionalGeneration"
    processor = "Qwen3VLProcessor"
    published = (Published("Qwen/Qwen3-VL-8B-Instruct", _8b, 4096, 36, 8.8),)

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`."""
        from transformers import Qwen3VLConfig

        make: Any = Qwen3VLConfig
        text, vision = tiny_parts(tokenizer, hidden_size, num_layers)
        return make(text_config=text, vision_config=vision, tie_word_embeddings=False, **token_ids(tokenizer))
