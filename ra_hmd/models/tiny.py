"""CPU-sized Qwen-VL models, built from their config classes: for the demo and for tests of the real training engines.

Weights are random but follow from the seed. The processor classes, the special tokens and the chat format are the
family's own, so that such a folder goes wherever a published checkpoint goes; only the sizes differ.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ra_hmd.core.artifacts import new_folder
from ra_hmd.core.errors import UserError
from ra_hmd.data.prompt import OFFICIAL_ANSWERS, OFFICIAL_PROMPT
from ra_hmd.data.synthetic.confounders import CAPTION_PROMPT, DOMAINS, caption_corpus, descriptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]

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
_SYSTEM = "You are a helpful assistant."
_VOCABULARY = 1024  # at most: bytes, control tokens and what the corpus gives
_CONTEXT = 4096  # tokens
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


def make_tiny_lmm(family: Family, output: Path, seed: int = 0, *, hidden_size: int = 128, num_layers: int = 4) -> Path:
    """Make a folder with a randomly initialised model of `family`, its tokenizer and its processor.

    It opens with `AutoProcessor`, `AutoTokenizer` and `AutoModelForImageTextToText`, and trains in stock LLaMA-Factory
    with `template: qwen2_vl` (qwen2_vl, qwen2_5_vl) or `template: qwen3_vl_nothink` (qwen3_vl).

    Args:
        family: Which architecture.
        output: Folder to make; it is complete or absent.
        seed: Decides the weights, to the byte.
        hidden_size: H, a multiple of 64 (attention heads of 32, two for each key-value head).
        num_layers: Layers of the language model, 2 or more.

    Returns:
        `output`.

    Raises:
        UserError: unknown family, sizes that do not fit, `output` exists and is not empty.
    """
    if family not in get_args(Family):
        raise UserError(f"--family {family!r} is not known; give one of {', '.join(get_args(Family))}.")
    if hidden_size < 64 or hidden_size % 64 or num_layers < 2:
        raise UserError(f"hidden_size {hidden_size} must be a multiple of 64, and num_layers {num_layers} at least 2.")
    import torch
    from transformers import AutoModelForImageTextToText

    with new_folder(output) as folder:
        tokenizer = _tokenizer()
        _processor(family, tokenizer).save_pretrained(folder)
        config = _config(family, tokenizer, hidden_size, num_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        model.generation_config.update(eos_token_id=config.text_config.eos_token_id, do_sample=False)
        model.save_pretrained(folder)
    return Path(output)


def train_tokenizer() -> "Tokenizer":
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
        vocab_size=_VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _corpus() -> list[str]:
    subjects = [subject for domain in DOMAINS for pair in domain.pairs for subject in pair]
    sentences = [text for domain in DOMAINS for body in domain.bodies for text in descriptions("", body, "", "")]
    sentences += [text for subject in subjects for text in descriptions(subject, "", subject, "")]
    frames = [OFFICIAL_PROMPT, CAPTION_PROMPT, *OFFICIAL_ANSWERS, _SYSTEM, "system\n", "user\n", "assistant\n"]
    return (caption_corpus() + sentences + frames) * 2 + list(OFFICIAL_ANSWERS) * 50


def _tokenizer() -> "PreTrainedTokenizerFast":
    import json

    from transformers import Qwen2Tokenizer

    model = json.loads(train_tokenizer().to_str())["model"]
    merges: list[Any] = [tuple(merge) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, model_max_length=_CONTEXT)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.eos_token = "<|im_end|>"  # noqa: S105 - a control token, not a password
    return tokenizer


def _processor(family: Family, tokenizer: "PreTrainedTokenizerFast") -> "ProcessorMixin":
    import transformers
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    third = family == "qwen3_vl"
    size = {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS}
    patches: dict[str, Any] = {"patch_size": 16 if third else 14, "size": size}
    if third:
        patches |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    template = _CHAT_TEMPLATE
    if not third:
        template = f"{{%- set default_system = {_SYSTEM!r} -%}}\n" + template
    video = transformers.Qwen3VLVideoProcessor if third else Qwen2VLVideoProcessor
    tokenizer.chat_template = template
    return getattr(transformers, f"{name}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=video(**patches),
        chat_template=template,
    )


def _config(family: Family, tokenizer: "PreTrainedTokenizerFast", hidden_size: int, num_layers: int) -> Any:
    import transformers

    heads = hidden_size // 32
    token = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": _CONTEXT,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "initializer_range": 0.05,
    }
    # Widths are multiples of 64: bitsandbytes' 4-bit kernels on CPUs with AVX512-BF16 need that.
    vision: dict[str, Any] = {"depth": 3, "num_heads": 4, "in_channels": 3, "initializer_range": 0.05}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 128, "hidden_size": hidden_size, "mlp_ratio": 2}
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": 128, "out_hidden_size": hidden_size, "intermediate_size": 256, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1, 2]}
    else:
        vision |= {"hidden_size": 64, "out_hidden_size": hidden_size, "intermediate_size": 128, "patch_size": 16}
        vision |= {"num_heads": 2, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        text |= {"head_dim": 32}
        text["rope_scaling"] |= {"mrope_interleaved": True}
    # A decorator that type checkers do not see through makes their constructors.
    configs: dict[Family, Callable[..., PreTrainedConfig]] = {
        "qwen2_vl": transformers.Qwen2VLConfig,
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
        "qwen3_vl": transformers.Qwen3VLConfig,
    }
    return configs[family](
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
