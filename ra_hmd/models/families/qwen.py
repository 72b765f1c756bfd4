"""What the Qwen-VL families share: ChatML with their placeholders, a byte-level tokenizer, image sizes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ra_hmd.models.families.base import CONTEXT, Family, tiny_text_config
from ra_hmd.models.families.corpus import corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

# Qwen's control tokens, in Qwen's order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM = "You are a helpful assistant."
_VOCABULARY = 1024  # at most: bytes, control tokens and what the corpus gives
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 224 * 224
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# ChatML with Qwen-VL's placeholders. Qwen2-VL and Qwen2.5-VL put a system message first when there is none.
_CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' and default_system -%}
<|im_start|>system
{{ default_system }}<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""


class PatchProcessor(Protocol):
    """A Qwen-VL image processor: `size` has the fewest and the most pixels, as `shortest_edge` and `longest_edge`."""

    patch_size: int
    merge_size: int
    size: Mapping[str, int]


class QwenVL(Family):
    """A family of Qwen-VL: images keep their shape, a token stands for a square of merged patches, M-RoPE.

    Attributes:
        default_system: System message that the chat template adds; "": none.
        patch_size: Pixels of a side of an image patch.
    """

    default_system: str = ""
    patch_size: int = 16

    def image_tokens(self, plugin: Any, processor: Any, width: int, height: int) -> int:
        """See `Family`. The host applies the pixel limits; then the processor rounds each side to whole patches.

        Raises:
            ValueError: the image is more than 200 times as long as wide, as the processor says.
        """
        from PIL import Image
        from qwen_vl_utils.vision_process import smart_resize  # imports torchvision

        patches: PatchProcessor = processor.image_processor
        limits = {name: getattr(processor, name) for name in ("image_max_pixels", "image_min_pixels")}
        limited = plugin._preprocess_image(Image.new("1", (width, height)), **limits)
        factor = patches.patch_size * patches.merge_size
        least, most = patches.size["shortest_edge"], patches.size["longest_edge"]
        sides = smart_resize(limited.height, limited.width, factor, min_pixels=least, max_pixels=most)
        rows, columns = (max(side // factor, 1) for side in sides)  # the processor leaves no side without a patch
        return rows * columns

    def tiny_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Tokenizer of the tiny model."""
        from transformers import Qwen2Tokenizer

        return byte_level_tokenizer(Qwen2Tokenizer, SPECIAL_TOKENS)

    def tiny_processor(self) -> "ProcessorMixin":
        """See `Family`."""
        import transformers
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

        third = self.processor == "Qwen3VLProcessor"
        size = {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS}
        patches: dict[str, Any] = {"patch_size": self.patch_size, "size": size}
        if third:
            patches |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        template = _CHAT_TEMPLATE
        if self.default_system:
            template = f"{{%- set default_system = {self.default_system!r} -%}}\n" + template
        tokenizer = self.tiny_tokenizer()
        tokenizer.chat_template = template
        video = transformers.Qwen3VLVideoProcessor if third else Qwen2VLVideoProcessor
        return getattr(transformers, self.processor)(
            image_processor=transformers.Qwen2VLImageProcessor(**patches),
            tokenizer=tokenizer,
            video_processor=video(**patches),
            chat_template=template,
        )


def text_config(tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int) -> dict[str, Any]:
    """Configuration of a tiny language model with M-RoPE."""
    token = tokenizer.convert_tokens_to_ids
    return tiny_text_config(
        tokenizer,
        hidden_size,
        num_layers,
        rope_theta=10000.0,
        rope_scaling={"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]},
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
    )


def vision_config(**changes: Any) -> dict[str, Any]:
    """Configuration of a tiny vision tower.

    Widths are multiples of 64: bitsandbytes' 4-bit kernels on CPUs with AVX512-BF16 need that.
    """
    return {"depth": 3, "num_heads": 4, "in_channels": 3, "initializer_range": 0.05} | changes


def token_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Ids of the placeholders, for the configuration of the whole model."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def byte_level_tokenizer(kind: Any, special: tuple[str, ...], system: str = SYSTEM, **options: Any) -> Any:
    """Tokenizer of a transformers class for byte-level BPE, with control tokens; `<|im_end|>` ends a turn."""
    import json

    model = json.loads(train_tokenizer(len(special), system).to_str())["model"]
    merges: list[Any] = [tuple(merge) for merge in model["merges"]]
    tokenizer = kind(vocab=model["vocab"], merges=merges, model_max_length=CONTEXT, **options)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.eos_token = "<|im_end|>"  # noqa: S105 - a control token, not a password
    return tokenizer


def train_tokenizer(reserved: int = len(SPECIAL_TOKENS), system: str = SYSTEM) -> "Tokenizer":
    """Byte-level BPE with Qwen's pre-tokenisation, trained on the demo's own sentences; the same at every call."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - reserved,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(system, "system\n", "user\n", "assistant\n"), trainer)
    return tokenizer
