"""The modules of the experts: a linear layer with low-rank experts around a frozen one, and the router of an MLP.

Shapes: B batch, T tokens, H hidden size, E experts, K clusters, r rank.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ra_hmd.models.experts.routing import Routing
from ra_hmd.models.experts.settings import ExpertSettings


class ExpertLinear(nn.Module):
    """A frozen linear layer plus the weighted sum of E experts that share their first matrix.

    y = W u + (alpha / r) · Σ_e pi_e · B_e A drop(u), computed as one LoRA of rank E·r whose inner vector is scaled by
    pi. HydraLoRA's asymmetric experts: one A (Kaiming), E matrices B_e (zero at the start). A universal expert is one
    more block of B with weight 1.

    As PEFT's LoRA does, it casts its input to the experts' dtype and its output to that of the base layer.

    Args:
        base_layer: The frozen layer; it is only called, so it may be quantised. It has `in_features`, `out_features`
            and a `weight` on the device where the experts are made.
        settings: Number, rank and scale of the experts.
        routing: Where the router of the MLP leaves pi.
        dtype: Dtype of the experts.
        generator: Random numbers for A, drawn on the CPU, so that they are the same on every device.
    """

    def __init__(
        self,
        base_layer: Any,
        settings: ExpertSettings,
        routing: Routing,
        *,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.settings = settings
        self._routing = routing
        device = base_layer.weight.device
        drawn = torch.empty(settings.rank, self.in_features)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.expert_A = nn.Parameter(drawn.to(device, dtype))
        self.expert_B = nn.Parameter(
            torch.zeros(self.out_features, settings.blocks * settings.rank, device=device, dtype=dtype)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, T, d_in] → [B, T, d_out]. The router of the MLP has run on the same tokens."""
        result = self.base_layer(inputs)
        if not self._routing.enabled:
            return result
        dropped = F.dropout(inputs.to(self.expert_A.dtype), self.settings.dropout, self.training)
        inner = F.linear(dropped, self.expert_A) * (self.settings.alpha / self.settings.rank)  # [B, T, r]
        weighted = (self._routing.gates[..., None] * inner[..., None, :]).flatten(-2)  # [B, T, E·r]
        added = F.linear(weighted.to(self.expert_B.dtype), self.expert_B)
        return (result + added).to(result.dtype)


class Router(nn.Module):
    """Probabilities of E experts for each token: softmax((W x + b + lambda · P[c]) / tau), in float32 or wider.

    Args:
        hidden_size: H, width of the MLP's input.
        settings: Experts, clusters, and how they weigh.
        device: Device of the parameters.
        generator: Random numbers for W and b, drawn on the CPU. W must not be zero: experts are equal at the start, and
            only different probabilities make them differ.
    """

    def __init__(
        self,
        hidden_size: int,
        settings: ExpertSettings,
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        bound = 1 / math.sqrt(hidden_size)
        self.weight: nn.Parameter | None = None
        if settings.router_input == "token":
            weight = torch.empty(settings.num_experts, hidden_size).uniform_(-bound, bound, generator=generator)
            self.weight = nn.Parameter(weight.to(device))
        bias = torch.empty(settings.num_experts).uniform_(-bound, bound, generator=generator)
        self.bias = nn.Parameter(bias.to(device))
        self.prior: nn.Parameter | None = None
        if settings.num_clusters:
            self.prior = nn.Parameter(initial_prior(settings).to(device))

    def forward(self, hidden: Tensor, cluster_ids: Tensor | None = None) -> Tensor:
        """Probabilities [B, T, E] of hidden states [B, T, H]; [B, 1, E] with `router_input: none`.

        Args:
            hidden: The MLP's input.
            cluster_ids: int64 [B], -1 where the cluster is unknown; None where all are.
        """
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        with _no_autocast(hidden.device.type):
            bias = self.bias.to(dtype)
            logits = bias.expand(len(hidden), 1, -1)
            if self.weight is not None:
                logits = F.linear(hidden.to(dtype), self.weight.to(dtype), bias)
            if self.prior is not None:
                if cluster_ids is None:
                    cluster_ids = torch.full((len(hidden),), -1, device=hidden.device)
                # Unknown rows take part with weight 0: the prior is in the graph of every step, as DDP needs it.
                known = (cluster_ids >= 0).to(dtype) * self.settings.prior_weight
                prior = self.prior.to(dtype)[cluster_ids.clamp(min=0)] * known[:, None]
                logits = logits + prior[:, None]
            return (logits / self.settings.tau).softmax(dim=-1)


def initial_prior(settings: ExpertSettings) -> Tensor:
    """The prior [K, E] at the start of training."""
    prior = torch.zeros(settings.num_clusters, settings.num_experts)
    if settings.prior_init == "assign":
        clusters = torch.arange(settings.num_clusters)
        prior[clusters, clusters % settings.num_experts] = settings.prior_scale
    return prior


def gates_of(probabilities: Tensor, settings: ExpertSettings) -> Tensor:
    """Weights of the blocks of B, [B, T, E] or with a universal expert [B, T, E + 1].

    With `top_k` the weights of all other experts are 0 and those of the k sum to 1, except for k = 1: scaled to 1, a
    single weight would not depend on the router, which would learn nothing from the task.
    """
    gates = probabilities
    if 0 < settings.top_k < settings.num_experts:
        chosen = torch.zeros_like(gates).scatter(-1, gates.topk(settings.top_k, dim=-1).indices, 1.0)
        gates = gates * chosen
        if settings.top_k > 1:
            gates = gates / gates.sum(dim=-1, keepdim=True)
    return F.pad(gates, (0, 1), value=1.0) if settings.universal else gates


def _no_autocast(device: str) -> AbstractContextManager[None]:
    """Without autocast, where the device has it; `meta` has none."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
