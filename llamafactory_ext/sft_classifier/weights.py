"""Weights that are kept beside the adapter, the head's and the experts', whole where an engine partitions them."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ra_hmd.models.experts.attach import Experts
from ra_hmd.models.experts.files import load_experts
from ra_hmd.models.head import MemeHead, load_head_weights


def load_weights(head: MemeHead, folder: str | Path) -> None:
    """Load a saved head into an attached one, also when ZeRO-3 has partitioned it."""
    with _gathered(list(head.parameters()), modifier_rank=0):
        load_head_weights(head, folder)


def load_expert_weights(experts: Experts, folder: str | Path) -> None:
    """Load saved experts into attached ones, also when ZeRO-3 has partitioned them."""
    parameters = [tensor for tensor in experts.state().values() if isinstance(tensor, nn.Parameter)]
    with _gathered(parameters, modifier_rank=0):
        load_experts(experts, folder)


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 values on the CPU of parameters and other tensors, by name; every rank calls it."""
    return {name: _full_precision(tensor) for name, tensor in state.items()}


def _gathered(parameters: list[nn.Parameter], modifier_rank: int | None) -> Any:
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)


def _full_precision(tensor: Tensor) -> Tensor:
    """A tensor's float32 value: DeepSpeed's master copy where it keeps one, gathered where it is partitioned."""
    # By presence, not by value: a rank that owns no part of the parameter must join the collective too.
    if hasattr(tensor, "_hp_mapping") or hasattr(tensor, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        master = safe_get_full_fp32_param(tensor)
        if master is not None:
            return master.detach().cpu()
    with _gathered([tensor], modifier_rank=None):  # type: ignore[list-item]  # what is partitioned is a parameter
        return tensor.detach().float().cpu().clone()
