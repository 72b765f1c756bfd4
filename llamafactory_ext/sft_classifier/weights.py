"""Weights that are kept beside the adapter, the head's and the experts', whole where an engine partitions them."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
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


def whole_state(state: Mapping[str, Tensor], engine: Any) -> dict[str, Tensor]:
    """Float32 values on the CPU of parameters and other tensors, by name; every rank calls it.

    Args:
        state: The tensors.
        engine: DeepSpeed's engine; None without.
    """
    optimizer = getattr(engine, "optimizer", None)
    places = _places(optimizer)
    return {
        name: _master(optimizer, *places[id(tensor)], tensor) if id(tensor) in places else _full_precision(tensor)
        for name, tensor in state.items()
    }


def local_part(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter: all of it, and of one that ZeRO-3 has partitioned its own elements."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    import torch.distributed as dist

    partitioned: Any = parameter
    part, rank = partitioned.ds_tensor, dist.get_rank(partitioned.ds_process_group)
    # The last part is filled up with memory that nobody wrote.
    own = max(0, min(part.numel(), partitioned.ds_numel - rank * part.numel()))
    return part.detach().flatten()[:own]


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


def _places(optimizer: Any) -> dict[int, tuple[int, int]]:
    """Id of a parameter to its group and its first element there, in the master copy of ZeRO-1 and 2.

    `safe_get_full_fp32_param` (DeepSpeed 0.19) expects the order of the groups. With `round_robin_gradients` the copy
    has another, and the values that it returns are those of other parameters.
    """
    places = {}
    groups = getattr(optimizer, "round_robin_bit16_groups", [])
    offsets = getattr(optimizer, "round_robin_bit16_offsets", None)
    for number, group in enumerate(groups):
        start = 0
        for place, parameter in enumerate(group):
            start = start if offsets is None else offsets[number][place]
            places[id(parameter)] = number, start
            start += parameter.numel()
    return places


def _master(optimizer: Any, group: int, start: int, parameter: Tensor) -> Tensor:
    """The master copy of a parameter that begins at element `start` of its group; each rank has a part of the group."""
    import torch.distributed as dist

    part, ranks = optimizer.single_partition_of_fp32_groups[group], optimizer.real_dp_process_group[group]
    first = dist.get_rank(ranks) * part.numel()
    end = start + parameter.numel()
    low, high = max(start, first), min(end, first + part.numel())
    whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
    if low < high:
        whole[low - start : high - start] = part.detach()[low - first : high - first]
    dist.all_reduce(whole, group=ranks)
    return whole.view(parameter.shape).cpu()
