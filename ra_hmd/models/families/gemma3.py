"""Gemma 3, the models that see."""

from typing import TYPE_CHECKING, Any

from ra_hmd.models.families.base import CONTEXT, Family, Published, register_family, tiny_text_config
from ra_hmd.models.families.sentencepiece import learn_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

_CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
_TURNS = ["<start_of_turn>", "<end_of_turn>"]
_MEDIA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
_IMAGE, _PATCH, _SIDE = 112, 14, 4  # pixels of the image and of a patch; tokens of a side of an image

# A system message begins the first user turn. Blanks around texts are left out.
_CHAT_TEMPLATE = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{% set system = messages[0]['content'] %}\
{% set first = (system if system is string else system[0]['text']) + '\\n\\n' %}\
{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}\
{% for message in loop_messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}\
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% elif part['type'] == 'text' %}{{ part['text'] | trim }}\
{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def _4b() -> "PreTrainedConfig":
    from transformers import Gemma3Config

    make: Any = Gemma3Config  # a decorator that type checkers do not see through makes its constructor
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision |= {"image_size": 896, "patch_size": 14, "vision_use_head": False}
    return make(text_config=text, vision_config=vision)


@register_family
class Gemma3(Family):
    """Gemma 3: tokens of an image see each other in both directions, told by `token_type_ids`; most layers have a
    sliding window.
    """

    name = "gemma3"
    title = "Gemma 3"
    templates = ("gemma3",)
    model = "Gemma3ForConditionalGeneration"
    processor = "Gemma3Processor"
    without_flash_attention = (
        "its image tokens attend to each other in both directions, and FlashAttention 2 leaves that out"
    )
    published = (Published("google/gemma-3-4b-it", _4b, 2560, 34, 4.3),)

    def image_tokens(self, plugin: Any, processor: Any, width: int, height: int) -> int:
        """See `Family`. The same for every image."""
        return processor.image_seq_length

    def tiny_processor(self) -> "ProcessorMixin":
        """See `Family`."""
        from transformers import Gemma3ImageProcessor, Gemma3Processor, GemmaTokenizer

        frames = ("<start_of_turn>user\n", "<start_of_turn>model\n", "user\n", "model\n")
        vocabulary, merges = learn_pieces([*_CONTROL], *frames, prefix=False)
        tokenizer = GemmaTokenizer(
            vocab=vocabulary,
            merges=merges,
            model_max_length=CONTEXT,
            add_bos_token=True,
            extra_special_tokens=_MEDIA,
        )
        tokenizer.add_special_tokens({"additional_special_tokens": _TURNS})
        return Gemma3Processor(
            image_processor=Gemma3ImageProcessor(
                size={"height": _IMAGE, "width": _IMAGE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
            ),
            tokenizer=tokenizer,
            image_seq_length=_SIDE**2,
            chat_template=_CHAT_TEMPLATE,
        )

    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """See `Family`. The last layer sees everything, the others a window."""
        from transformers import Gemma3Config

        make: Any = Gemma3Config
        token = tokenizer.convert_tokens_to_ids
        text = tiny_text_config(
            tokenizer,
            hidden_size,
            num_layers,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=64,
            layer_types=["sliding_attention"] * (num_layers - 1) + ["full_attention"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=token("<end_of_turn>"),
            pad_token_id=tokenizer.pad_token_id,
        )
        vision = {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": _IMAGE,
            "patch_size": _PATCH,
            "vision_use_head": False,
        }
        return make(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=_SIDE**2,
            boi_token_index=token("<start_of_image>"),
            eoi_token_index=token("<end_of_image>"),
            image_token_index=token("<image_soft_token>"),
            initializer_range=0.05,
        )

    def finish_tiny(self, model: "PreTrainedModel") -> None:
        """See `Family`. transformers starts the projection of image features at zero."""
        import torch

        with torch.no_grad():
            model.get_parameter("model.multi_modal_projector.mm_input_projection_weight").normal_(std=0.1)
