"""Putting experts into the language model of an LMM."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ra_hmd.core.errors import UserError
from ra_hmd.models.experts.balance import Scope, balance_loss
from ra_hmd.models.experts.modules import ExpertLinear, Router, gates_of
from ra_hmd.models.experts.routing import Routing
from ra_hmd.models.experts.settings import ExpertSettings
from ra_hmd.models.wrappers import base_model

PROJECTIONS = ("gate", "up", "down")
SHARE_MOMENTUM = 0.1
"""Weight of the last optimizer step in the running share of the most probable expert."""

_HANDLE = "ra_hmd_experts"
_ROUTER = "expert_router"
_MATRICES = ("expert_A", "expert_B")


class Experts:
    """Handle of the experts of a model.

    Attributes:
        settings: As given to `attach_experts`.
        routing: Shared by the layers; says which memes run.
        running_share: [E], running mean over optimizer steps of the share of tokens and layers whose most probable
            expert is e. It starts uniform.
    """

    def __init__(self, settings: ExpertSettings, routing: Routing, mlps: list[Any]) -> None:
        self.settings = settings
        self.routing = routing
        self._mlps = mlps
        device = mlps[0].expert_router.bias.device
        self.running_share = torch.full((settings.num_experts,), 1 / settings.num_experts, device=device)
        self._step = torch.zeros(settings.num_experts + 1, device=device)  # shares, summed over memes; memes

    def balance_loss(self, scope: Scope) -> Tensor:
        """The balance loss of the forward pass that just ran, a scalar in the graph (see `balance.balance_loss`).

        To be called once per forward pass of training, after it, and differentiated together with the other losses.

        Raises:
            RuntimeError: `routing.set` was not called with an attention mask, or no forward pass followed.
        """
        record = self.routing.balance
        if torch.is_grad_enabled():  # training
            shares = record.share()
            self._step[:-1] += shares.sum(dim=0)
            self._step[-1] += len(shares)
        return balance_loss(record, scope, self.running_share.clone())

    def end_step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Update the running share. To be called by every rank once per optimizer step.

        Args:
            reduce: Returns the sum of a tensor over all ranks.
        """
        total = reduce(self._step)
        share = total[:-1] / total[-1].clamp(min=1)
        moved = self.running_share + SHARE_MOMENTUM * (share - self.running_share)
        self.running_share.copy_(torch.where(total[-1] > 0, moved, self.running_share))
        self._step = torch.zeros_like(self._step)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the base model without the experts inside a `with`."""
        before, self.routing.enabled = self.routing.enabled, False
        try:
            yield
        finally:
            self.routing.enabled = before

    def state(self) -> dict[str, nn.Parameter | Tensor]:
        """What is saved, by its name in the file: parameters (not copies) and the running share."""
        return {**dict(self._parameters()), "share": self.running_share}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for number, mlp in enumerate(self._mlps):
            for name in PROJECTIONS:
                layer: ExpertLinear = getattr(mlp, f"{name}_proj")
                yield f"layers.{number}.{name}.A", layer.expert_A
                yield f"layers.{number}.{name}.B", layer.expert_B
            for name, parameter in mlp.expert_router.named_parameters():
                yield f"layers.{number}.router.{name}", parameter


def attach_experts(
    model: nn.Module, settings: ExpertSettings, *, seed: int, trainable: bool, dtype: torch.dtype = torch.float32
) -> Experts:
    """Put experts into every MLP of a model's language model. Its vision tower stays as it is.

    Args:
        model: A Hugging Face image-text model, or a PEFT model around one.
        settings: The experts.
        seed: Decides their weights.
        trainable: Whether they require gradients.
        dtype: Dtype of the experts; routers are float32.

    Returns:
        The handle, which `experts_of` finds again.

    Raises:
        UserError: the language model is a mixture of experts already, or an adapter sits on its MLPs.
    """
    base = base_model(model)
    if experts_of(base) is not None:
        raise ValueError("The model has experts already.")
    mlps = _mlps(base)
    routing = Routing(len(mlps))
    generator = torch.Generator().manual_seed(seed)
    for number, mlp in enumerate(mlps):
        hidden_size, device = mlp.gate_proj.in_features, mlp.gate_proj.weight.device
        for name in PROJECTIONS:
            layer = getattr(mlp, f"{name}_proj")
            setattr(mlp, f"{name}_proj", ExpertLinear(layer, settings, routing, dtype=dtype, generator=generator))
        mlp.add_module(_ROUTER, Router(hidden_size, settings, device=device, generator=generator))
        hooks = _Hooks(number, settings, routing)
        mlp.register_forward_pre_hook(hooks.before, with_kwargs=True)
        mlp.register_forward_hook(hooks.after, always_call=True)
        mlp.train(mlp.training)
    experts = Experts(settings, routing, mlps)
    for _, parameter in experts._parameters():
        parameter.requires_grad_(trainable)
    object.__setattr__(base, _HANDLE, experts)
    return experts


def experts_of(model: nn.Module) -> Experts | None:
    """The experts attached to a model, if any."""
    return getattr(base_model(model), _HANDLE, None)


def is_expert_parameter(name: str) -> bool:
    """Whether a parameter or state-dict name belongs to attached experts, their routers included."""
    return name.rpartition(".")[2] in _MATRICES or is_router_parameter(name)


def is_router_parameter(name: str) -> bool:
    """Whether a parameter or state-dict name belongs to a router: its weight, bias or prior."""
    return _ROUTER in name.split(".")


class _Hooks:
    """What runs around an MLP: its router before it; after it the weights are dropped, with the graph they hold."""

    def __init__(self, number: int, settings: ExpertSettings, routing: Routing) -> None:
        self._number, self._settings, self._routing = number, settings, routing

    def before(self, mlp: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if not self._routing.enabled:
            return
        hidden = args[0] if args else next(iter(kwargs.values()))
        probabilities = mlp.expert_router(hidden, self._routing.cluster_ids(hidden))
        self._routing.gates = gates_of(self._routing.observe(self._number, probabilities), self._settings)

    def after(self, *_: Any) -> None:
        self._routing.gates = None


def _mlps(base: Any) -> list[Any]:
    """The MLPs of the language model, in the order of its layers."""
    layers = getattr(base.get_decoder(), "layers", None)
    if layers is None:
        raise UserError(f"{type(base).__name__} has no decoder layers that can be found; experts need them.")
    mlps = [getattr(layer, "mlp", None) for layer in layers]
    for number, mlp in enumerate(mlps):
        projections = [getattr(mlp, f"{name}_proj", None) for name in PROJECTIONS]
        if not all(hasattr(layer, "in_features") for layer in projections):
            raise UserError(
                f"Layer {number} of {type(base).__name__} has a {type(mlp).__name__} without the linear layers "
                "gate_proj, up_proj and down_proj: experts cannot be added to a mixture-of-experts backbone. Take a "
                "dense model, or leave `llm_moe` out."
            )
        adapted = [f"{name}_proj" for name, layer in zip(PROJECTIONS, projections, strict=True) if _adapted(layer)]
        if adapted:
            raise UserError(
                f"Layer {number} has an adapter on {', '.join(adapted)}, where the experts go; leave them out of "
                "`lora_target` (q_proj,k_proj,v_proj,o_proj)."
            )
    return mlps


def _adapted(layer: Any) -> bool:
    return hasattr(layer, "base_layer")
