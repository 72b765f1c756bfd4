"""The files of the experts: `experts.safetensors` and `experts.json`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ra_hmd.core.artifacts import atomic_path, read_json, write_json
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.models.experts.attach import Experts
from ra_hmd.models.experts.settings import EXPERT_CONFIG, EXPERT_WEIGHTS, ExpertSettings

_START_ONLY = ("dropout", "prior_init", "prior_scale")
"""Settings that trained experts do not depend on."""


def save_experts(folder: str | Path, settings: ExpertSettings, state: Mapping[str, Tensor]) -> None:
    """Write `experts.safetensors` (float32) and `experts.json` into `folder`, each atomically.

    Args:
        folder: The folder.
        settings: The experts' settings.
        state: As `Experts.state()` names it, whole where an engine partitions parameters.
    """
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    with atomic_path(Path(folder) / EXPERT_WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(Path(folder) / EXPERT_CONFIG, {"format": 1, **settings.model_dump()})


def has_experts(folder: str | Path) -> bool:
    """Whether `folder` holds saved experts."""
    return (Path(folder) / EXPERT_WEIGHTS).is_file() and (Path(folder) / EXPERT_CONFIG).is_file()


def read_expert_settings(folder: str | Path) -> ExpertSettings:
    """The settings of the experts saved in `folder`.

    Raises:
        UserError: no experts there, or settings that do not fit.
    """
    if not has_experts(folder):
        raise UserError(f"{folder} has no experts: {EXPERT_WEIGHTS} and {EXPERT_CONFIG} are needed.")
    path = Path(folder) / EXPERT_CONFIG
    values = {key: value for key, value in read_json(path).items() if key != "format"}
    return load_settings(ExpertSettings, values, path)


def load_experts(experts: Experts, folder: str | Path) -> None:
    """Copy the weights saved in `folder` into attached experts.

    Raises:
        UserError: no experts there, other settings, or tensors that are missing, unknown or of another shape.
    """
    saved = read_expert_settings(folder)
    differing = [
        f"`{name}` is {getattr(saved, name)!r} in {folder} and {getattr(experts.settings, name)!r} here"
        for name in ExpertSettings.model_fields
        if name not in _START_ONLY and getattr(saved, name) != getattr(experts.settings, name)
    ]
    raise_all(differing, "The saved experts have other settings")
    path = Path(folder) / EXPERT_WEIGHTS
    tensors, state = load_file(path), experts.state()
    problems = [f"{name} is missing" for name in state if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in state]
    problems += [
        f"{name} has the shape {tuple(tensors[name].shape)}, {tuple(state[name].shape)} is needed"
        for name in state
        if name in tensors and tensors[name].shape != state[name].shape
    ]
    raise_all(problems, f"{path} does not fit the model")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[name])
