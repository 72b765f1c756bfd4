"""Published LMM embedders by short names, and the formats of their inputs.

An LMM embedder is an LMM of a known family that was tuned to represent its input: the vector is the last token's hidden
state after the final norm, scaled to length 1. Embedders differ in what surrounds the input.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class EmbedderFormat:
    """Format of the input of an LMM embedder: the model's chat format with a system message, then the assistant header.

    Attributes:
        family: `model_type` of the models.
        instruction: System message, unless another one is asked for.
        suffix: Text behind the assistant header.
        sequential: Whether positions count tokens, as in a text; else they are the family's (M-RoPE).
        min_pixels: Smaller images are scaled up to it.
        max_pixels: Larger images are scaled down to it, unless another limit is asked for.
        max_tokens: Most tokens of an input.
    """

    family: str
    instruction: str
    suffix: str
    sequential: bool
    min_pixels: int
    max_pixels: int
    max_tokens: int


@dataclass(frozen=True)
class EmbedderPreset:
    """A checkpoint on the Hugging Face hub.

    Attributes:
        hub: Its id there.
        format: Name of its format.
        width: H, width of its vector.
    """

    hub: str
    format: str
    width: int


FORMATS = {
    # QwenLM/Qwen3-VL-Embedding @8ce3aab, src/models/qwen3_vl_embedding.py
    "qwen3-vl-embedding": EmbedderFormat(
        family="qwen3_vl",
        instruction="Represent the user's input.",
        suffix="",
        sequential=False,
        min_pixels=4 * 32 * 32,
        max_pixels=1800 * 32 * 32,
        max_tokens=8192,
    ),
    # gme_inference.py beside the weights: it calls the language model without positions of images.
    "gme-qwen2-vl": EmbedderFormat(
        family="qwen2_vl",
        instruction="You are a helpful assistant.",
        suffix="<|endoftext|>",
        sequential=True,
        min_pixels=256 * 28 * 28,
        max_pixels=1280 * 28 * 28,
        max_tokens=1800,
    ),
}
DEFAULT_FORMATS = {"qwen3_vl": "qwen3-vl-embedding"}
"""`model_type` → format of a model that states none. Of other families there are embedders of several formats."""

EMBEDDERS = {
    "qwen3-vl-embedding-2b": EmbedderPreset("Qwen/Qwen3-VL-Embedding-2B", "qwen3-vl-embedding", 2048),
    "qwen3-vl-embedding-8b": EmbedderPreset("Qwen/Qwen3-VL-Embedding-8B", "qwen3-vl-embedding", 4096),
    "gme-qwen2-vl-2b": EmbedderPreset("Alibaba-NLP/gme-Qwen2-VL-2B-Instruct", "gme-qwen2-vl", 1536),
    "gme-qwen2-vl-7b": EmbedderPreset("Alibaba-NLP/gme-Qwen2-VL-7B-Instruct", "gme-qwen2-vl", 3584),
}


def format_of_hub(name: str) -> str | None:
    """Name of the format of a published embedder, by its id on the hub; None for another model."""
    return next((preset.format for preset in EMBEDDERS.values() if preset.hub == name), None)
