"""Qwen3.5, the dense models."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import Published, register_family
from ra_hmd.models.families.qwen import SPECIAL_TOKENS, QwenVL, byte_level_tokenizer, text_config, token_ids
from ra_hmd.models.families.qwen3_vl import VISION, tiny_parts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def _9b() -> "PreTrainedConfig":
    from transformers import Qwen3_5Config

    make: Any = Qwen3_5Config  # a decorator that type checkers do not see through makes its constructor
    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "vocab_size": 248320}
    return make(text_config=text, vision_config=VISION | {"out_hidden_size": 4096}, tie_word_embeddings=False)


@register_family
class Qwen35(QwenVL):
    """Qwen3.5: three layers of four have linear attention, whose state runs over the sequence, the fourth has softmax
    attention. Template `qwen3_5` is a reasoning template: it puts an empty thought before the answer.
    """

    name = "qwen3_5"
    title = "Qwen3.5"
    templates = ("qwen3_5_nothink",)
    model = "Qwen3_5ForConditionalGeneration"
    processor = "Qwen3VLProcessor"
    attention = ("self_attn", "linear_attn")
    without_flash_attention = (
        "LLaMA-Factory then trains by a forward pass for packed sequences, which needs flash-linear-attention, and "
        "which extraction does not have"
    )
    published = (Published("Qwen/Qwen3.5-9B", _9b, 4096, 32, 9.4),)

    def tiny_tokenizer(self) -> "PreTrainedTokenizerBase":
        """See `QwenVL`."""
        from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

        return byte_level_tokenizer(Qwen3_5Tokenizer, SPECIAL_TOKENS)

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`. The last layer has softmax attention, as every fourth one before it."""
        from transformers import Qwen3_5Config

        make: Any = Qwen3_5Config
        text = text_config(tokenizer, hidden_size, num_layers) | {"head_dim": 32}
        # A quarter of each head's width is rotated, as in the published models.
        del text["rope_theta"], text["rope_scaling"]
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        }
        text["layer_types"] = [
            "linear_attention" if (layer + 1) % 4 and layer + 1 < num_layers else "full_attention"
            for layer in range(num_layers)
        ]
        # As many heads as the published 9B model: two projections have a row for each, and bitsandbytes' 4-bit kernels
        # on CPUs with AVX512-BF16 need multiples of 32.
        text |= {"linear_num_key_heads": 16, "linear_num_value_heads": 32}
        text |= {"linear_key_head_dim": hidden_size // 16, "linear_value_head_dim": hidden_size // 32}
        _, vision = tiny_parts(tokenizer, hidden_size, num_layers)
        del vision["deepstack_visual_indexes"]
        return make(text_config=text, vision_config=vision, tie_word_embeddings=False, **token_ids(tokenizer))
