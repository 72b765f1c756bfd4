"""The adapter of an official RA-HMD checkpoint, under the module names of today's transformers."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from easydict import EasyDict
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.config import Settings, load_settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.models.checkpoint import ADAPTER_CONFIG

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_[AB])\.weight")

# What changes what an adapter computes, and the values under which it is plain LoRA.
_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "init_lora_weights": (True, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
}

_ADAPTER_OPTIONAL = ("base_model_name_or_path", "task_type", "use_rslora", "target_modules")
_ADAPTER_KEYS = (*_ADAPTER_OPTIONAL, *_PLAIN_LORA, "r", "lora_alpha", "lora_dropout")

# Where language model and vision tower stood before transformers 4.52, and where they stand now.
_MOVED = (("model.language_model.", "model."), ("model.visual.", "visual."))


def read_known(path: Path, names: Iterable[str], optional: Iterable[str]) -> EasyDict:
    """Read the named keys of a JSON file; optional keys that it lacks are None."""
    content = read_json(path)
    return EasyDict(dict.fromkeys(optional) | {name: content[name] for name in names if name in content})


def read_adapter_config(folder: Path) -> EasyDict:
    """Read the keys of `adapter_config.json` that the conversion needs."""
    return read_known(folder / ADAPTER_CONFIG, _ADAPTER_KEYS, _ADAPTER_OPTIONAL)


def read_adapter(
    folder: Path, stated: EasyDict, config: Any, base_model: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors of the adapter, under the module names of today's transformers.

    Raises:
        UserError: not plain LoRA, or not one pair of matrices, of the right widths, for each module that it names.
    """
    numbers = _lora_numbers(stated, folder / ADAPTER_CONFIG)
    linears = _linear_layers(config)
    found = _lora_pairs(folder / ADAPTER_WEIGHTS, linears)
    problems = _adapter_problems(found, linears, stated.target_modules, numbers["r"], base_model)
    raise_all(problems, f"{folder / ADAPTER_WEIGHTS} does not fit")
    lora = {
        "peft_type": "LORA",
        "task_type": stated.task_type or "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "use_rslora": bool(stated.use_rslora),
        "target_modules": sorted(found),
        **numbers,
    }
    tensors = {
        f"base_model.model.{name}.{part}.weight": tensor.contiguous()
        for name, pair in found.items()
        for part, tensor in pair.items()
    }
    return lora, tensors


class _LoraNumbers(Settings):
    """Numbers of a LoRA configuration."""

    TITLE: ClassVar[str] = "adapter"

    r: PositiveInt = Field(description="Rank.")
    lora_alpha: float = Field(description="Scale of the update, times the rank.")
    lora_dropout: float = Field(default=0.0, ge=0, description="Dropout on the input.")


def _lora_numbers(stated: EasyDict, place: Path) -> dict[str, Any]:
    """`r`, `lora_alpha` and `lora_dropout`. Raises `UserError` unless the adapter is plain LoRA of listed modules."""
    problems = [
        f"`{name}` is {stated[name]!r}; only plain LoRA is converted."
        for name, values in _PLAIN_LORA.items()
        if name in stated and stated[name] not in values
    ]
    targets = stated.target_modules
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        problems.append(f"`target_modules` is {targets!r}; a list of module names is needed.")
    try:
        numbers = load_settings(
            _LoraNumbers, {name: stated[name] for name in _LoraNumbers.model_fields if name in stated}, place
        )
    except UserError as error:
        problems.append(str(error))
    raise_all(problems, f"{place} does not fit")
    return numbers.model_dump()


def _adapter_problems(
    found: dict[str, dict[str, Tensor]],
    linears: dict[str, tuple[int, int]],
    targets: list[str],
    rank: int,
    base_model: str,
) -> list[str]:
    """Reasons why the matrices are not one pair, of the right widths, for each of `targets`."""
    named = {name for name in linears if any(_is_target(name, target) for target in targets)}
    lost = [target for target in targets if not any(_is_target(name, target) for name in named)]
    problems = [f"{ADAPTER_CONFIG}: {base_model} has no linear layer `{target}`." for target in lost]
    problems += [f"`{name}` is adapted, but has no tensors." for name in sorted(named - found.keys())]
    problems += [f"`{name}` has tensors, but is not in target_modules." for name in sorted(found.keys() - named)]
    for name in sorted(found.keys() & named):
        inputs, outputs = linears[name]
        expected = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}
        shapes = {part: tuple(tensor.shape) for part, tensor in sorted(found[name].items())}
        if shapes != expected:
            problems.append(f"`{name}` has {shapes}; by `r` and {base_model} it needs {expected}.")
        elif not all(torch.isfinite(tensor).all() for tensor in found[name].values()):
            problems.append(f"`{name}` has values that are not finite.")
    return problems


def _linear_layers(config: Any) -> dict[str, tuple[int, int]]:
    """Name → (inputs, outputs) of the LMM's linear layers; its weights are not loaded."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def _old_name(name: str) -> str:
    """Name of a module before transformers 4.52."""
    return next((old + name.removeprefix(new) for new, old in _MOVED if name.startswith(new)), name)


def _is_target(name: str, target: str) -> bool:
    """Whether a module is meant by an entry of `target_modules`: its name, of then or of now, or how that ends."""
    return any(form == target or form.endswith(f".{target}") for form in (name, _old_name(name)))


def _lora_pairs(path: Path, linears: dict[str, tuple[int, int]]) -> dict[str, dict[str, Tensor]]:
    """Module's name of today → `lora_A` [r, in] and `lora_B` [out, r]."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}); get it again.") from error
    current = {_old_name(name): name for name in linears} | {name: name for name in linears}
    found: dict[str, dict[str, Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        match = _LORA.fullmatch(key)
        module = None if match is None else current.get(match["module"])
        if match is None or module is None:
            problems.append(f"`{key}` is no LoRA matrix of a linear layer of the base model.")
        elif match["part"] in found.setdefault(module, {}):
            problems.append(f"`{module}` has its {match['part']} twice, under the old name and the new one.")
        else:
            found[module][match["part"]] = tensor
    raise_all(problems, f"{path} does not fit")
    return found
