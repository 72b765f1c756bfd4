"""The Hugging Face model inside the wrappers of training engines and of PEFT."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside DDP, DeepSpeed and PEFT wrappers."""
    inner: Any = model  # each kind of wrapper has attributes of its own
    while hasattr(inner, "module") and not isinstance(inner, PreTrainedModel):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
