"""Single tensors of an LMM's files, without loading the model.

Shapes: W answers, H hidden size of the LMM.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PLAIN_NORM = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose final norm is an RMSNorm that multiplies by its weight."""


def answer_rows(model: str, revision: str, config: "PreTrainedConfig", ids: Sequence[int]) -> Tensor:
    """Rows [W, H] of the LM head, in float32: the weights of these tokens. Of tied weights they are the embeddings'.

    Raises:
        UserError: the model's files have no such tensor.
    """
    endings = ("embed_tokens.weight",) if config.tie_word_embeddings else ("lm_head.weight",)
    return _read(model, revision, endings, list(ids))


def final_norm(model: str, revision: str, config: "PreTrainedConfig") -> Tensor | None:
    """Weight [H] of the final norm, in float32; None for a family whose norm may compute something else."""
    if config.model_type not in _PLAIN_NORM:
        return None
    return _read(model, revision, ("language_model.norm.weight", "model.norm.weight"), None)


def _read(model: str, revision: str, endings: Sequence[str], rows: list[int] | None) -> Tensor:
    from safetensors import safe_open

    where = _names(model, revision)
    name = next((name for ending in endings for name in where if name.endswith(ending) and "visual" not in name), None)
    if name is None:
        raise UserError(
            f"{model} has no tensor {' or '.join(endings)} in its safetensors files, which the heads need beside vLLM; "
            "give a model in safetensors, or use --backend transformers."
        )
    with safe_open(str(_file(model, revision, where[name])), "pt") as file:
        part = file.get_slice(name)
        tensor = part[:] if rows is None else torch.stack([part[row] for row in rows])
    return tensor.float()


def _names(model: str, revision: str) -> dict[str, str]:
    """Name of each tensor and the file that has it."""
    from safetensors import safe_open

    index = _file(model, revision, _INDEX)
    if index is not None:
        return dict(read_json(index)["weight_map"])
    whole = _file(model, revision, _ONE_FILE)
    if whole is None:
        return {}
    with safe_open(str(whole), "pt") as file:
        return dict.fromkeys(file.keys(), _ONE_FILE)


def _file(model: str, revision: str, name: str) -> Any:
    """Path of a file of a model folder, or of one on the hub; None where there is none."""
    from transformers.utils import cached_file

    return cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
