"""Base class of LMM families and their registry."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ra_hmd.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

CONTEXT = 4096
"""Longest sequence of a tiny model, in tokens."""


def tiny_text_config(
    tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int, **changes: Any
) -> dict[str, Any]:
    """Configuration of the language model of a tiny model, without the ids of its control tokens.

    Args:
        tokenizer: Tokenizer of the model.
        hidden_size: H; attention heads of 32, two for each key-value head.
        num_layers: Layers.
        changes: Further fields, and fields in place of those here.
    """
    heads = hidden_size // 32
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.05,
        **changes,
    }


@dataclass(frozen=True)
class Published:
    """A published checkpoint, for configurations and for checks on the meta device.

    Attributes:
        repository: Name on the Hugging Face hub.
        config: Makes its configuration, as far as it decides the shapes of the weights.
        hidden_size: H.
        num_layers: Layers of the language model.
        billions: Parameters, in billions.
    """

    repository: str
    config: Callable[[], "PreTrainedConfig"]
    hidden_size: int
    num_layers: int
    billions: float


class Family(ABC):
    """What the pipeline must know about models of one type. A subclass is registered with `register_family`.

    Attributes:
        name: `model_type` of its configuration in transformers; also its name on the command line.
        title: Name for people.
        templates: Templates of LLaMA-Factory whose last prompt token the head may read, the default one first.
        model: transformers' class of the model.
        processor: transformers' class of the processor.
        layers: Path of the language model's decoder layers, from the model with the LM head.
        mlp: Attribute of a decoder layer that holds its MLP.
        attention: Attributes of decoder layers that hold attention; a layer has one of them.
        parts: Part of the configuration → its model types that this family has; empty: any.
        gated_mlp: Whether the MLP has `gate_proj`, `up_proj` and `down_proj`, which experts extend.
        without_flash_attention: Why FlashAttention 2 must not be asked for in training; "" where it may be.
        published: Checkpoints for which there are configurations.
    """

    name: str
    title: str
    templates: tuple[str, ...]
    model: str
    processor: str
    layers: str = "model.language_model.layers"
    mlp: str = "mlp"
    attention: tuple[str, ...] = ("self_attn",)
    parts: Mapping[str, tuple[str, ...]] = {}
    gated_mlp: bool = True
    without_flash_attention: str = ""
    published: tuple[Published, ...] = ()

    def fits(self, config: "PreTrainedConfig") -> bool:
        """Whether a configuration of the family's type joins the family's kinds of language model and vision tower."""
        return all(getattr(getattr(config, part), "model_type", None) in kinds for part, kinds in self.parts.items())

    def decoder_layers(self, model: "nn.Module") -> "nn.ModuleList":
        """Decoder layers of the language model of `model`, the one with the LM head."""
        return model.get_submodule(self.layers)  # type: ignore[return-value]

    def image_tokens(self, plugin: Any, processor: Any, width: int, height: int) -> int | None:
        """Predict how many image tokens an image of this size takes in a prompt, without processing its pixels.

        Args:
            plugin: Multimodal plugin of LLaMA-Factory's template.
            processor: The processor, with the pixel limits set on it.
            width: Pixels of the image's width.
            height: Pixels of its height.

        Returns:
            Tokens, or None where only processing the image tells.

        Raises:
            ValueError: what the processor says of an image that it does not take.
        """
        return None

    @abstractmethod
    def tiny_processor(self) -> "ProcessorMixin":
        """Processor of the tiny model, with tokenizer and chat format of the family; the same at every call."""

    @abstractmethod
    def tiny_config(
        self, tokenizer: "PreTrainedTokenizerBase", hidden_size: int, num_layers: int
    ) -> "PreTrainedConfig":
        """Configuration of the tiny model.

        Args:
            tokenizer: Tokenizer of `tiny_processor`.
            hidden_size: H, a multiple of 64.
            num_layers: Layers of the language model, 2 or more.
        """

    def finish_tiny(self, model: "PreTrainedModel") -> None:  # noqa: B027 - most families have nothing to do
        """Draw, in place, the weights of the tiny model that transformers leaves at zero and that hide the image."""


FAMILIES: dict[str, Family] = {}
"""Name → family. Filled by `register_family`."""


def register_family(family: type[Family]) -> type[Family]:
    """Class decorator: make a family known.

    Raises:
        ValueError: A family of its name is known already, or it has no template.
    """
    if family.name in FAMILIES:
        raise ValueError(f"family {family.name!r} is registered twice")
    if not family.templates:
        raise ValueError(f"family {family.name!r} has no template")
    FAMILIES[family.name] = family()
    return family


def family_of(model: "str | PreTrainedConfig") -> Family | None:
    """The family of a model, by its configuration or by its type (`model_type` in config.json).

    Returns:
        The family; None where none is registered, or where the configuration joins other parts than the family's, as
        Pixtral's does, which is of type `llava` too.
    """
    if isinstance(model, str):
        return FAMILIES.get(model)
    family = FAMILIES.get(model.model_type)
    return family if family is not None and family.fits(model) else None


def described(config: "PreTrainedConfig") -> str:
    """The type of a model for messages; with the types of its parts where only these tell it from a family."""
    if config.model_type not in FAMILIES or family_of(config) is not None:
        return config.model_type
    parts = [getattr(getattr(config, part), "model_type", part) for part in FAMILIES[config.model_type].parts]
    return f"{config.model_type} ({', '.join(parts)})"


def named_family(name: str) -> Family:
    """The family of a name.

    Raises:
        UserError: There is none; the message names those that there are.
    """
    if name not in FAMILIES:
        raise UserError(f"--family {name!r} is not known; give one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def tokenizer_of(processor: Any) -> "PreTrainedTokenizerBase":
    """The tokenizer that is part of a processor."""
    return processor.tokenizer
