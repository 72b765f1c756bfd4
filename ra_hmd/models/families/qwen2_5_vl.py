"""Qwen2.5-VL."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import Published, register_family
from ra_hmd.models.families.qwen import SYSTEM, QwenVL, text_config, token_ids, vision_config
from ra_hmd.models.families.qwen2_vl import qwen2_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def _7b() -> "PreTrainedConfig":
    from transformers import Qwen2_5_VLConfig

    make: Any = Qwen2_5_VLConfig  # a decorator that type checkers do not see through makes its constructor
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    text = qwen2_text(3584, 28, 4, 18944, 152064)
    return make(text_config=text, vision_config=vision, tie_word_embeddings=False)


@register_family
class Qwen25VL(QwenVL):
    """Qwen2.5-VL. Its vision tower has MLPs whose projections are named as the language model's."""

    name = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    templates = ("qwen2_vl",)
    model = "Qwen2_5_VLForConditionalGeneration"
    processor = "Qwen2_5_VLProcessor"
    default_system = SYSTEM
    patch_size = 14
    published = (Published("Qwen/Qwen2.5-VL-7B-Instruct", _7b, 3584, 28, 8.3),)

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`."""
        from transformers import Qwen2_5_VLConfig

        make: Any = Qwen2_5_VLConfig
        vision = {"hidden_size": 128, "out_hidden_size": hidden_size, "intermediate_size": 256, "window_size": 56}
        return make(
            text_config=text_config(tokenizer, hidden_size, num_layers),
            vision_config=vision_config(**vision, fullatt_block_indexes=[1, 2]),
            tie_word_embeddings=False,
            **token_ids(tokenizer),
        )
