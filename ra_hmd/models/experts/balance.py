"""The balance loss, alive under every kind of gradient checkpointing.

Reentrant checkpointing runs the layers first without a graph, so a loss on probabilities that were kept aside has no
gradient. Here the loss is a number whose own node records the gradient that arrives at it, and each layer adds that
gradient, times the derivative of the loss, to the gradient of its probabilities. The number's node is younger than
those of the layers, so the autograd engine runs it before any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scope = Literal["batch", "sample"]


@dataclass
class BalanceRecord:
    """Probabilities of the experts in one forward pass, per layer and meme, and the gradient of the loss on them.

    Attributes:
        token_weights: [B, T, 1], 1 over the number of a meme's valid tokens; 0 at the others.
        layers: L, layers with experts.
        means: Layer → mean probabilities over valid tokens [B, E], detached. A layer that runs again overwrites its
            own.
        shares: Layer → share of the valid tokens whose most probable expert is e, [B, E].
        coefficients: [B, E], derivative of the loss by a meme's mean probabilities; None without a loss.
        gradient: Gradient that arrived at the loss, []; None before the backward pass.
    """

    token_weights: Tensor
    layers: int
    means: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[int, Tensor] = field(default_factory=dict)
    coefficients: Tensor | None = None
    gradient: Tensor | None = None
    missed: bool = False

    def observe(self, layer: int, probabilities: Tensor) -> Tensor:
        """Note the probabilities [B, T, E] (or [B, 1, E]) of a layer; return them with the loss's gradient attached."""
        tokens = self.token_weights.shape[1]
        if probabilities.shape[1] not in (1, tokens):
            raise ValueError(
                f"The MLP of layer {layer} sees {probabilities.shape[1]} tokens and the attention mask of this forward "
                f"pass has {tokens}; set the routing with the mask of the batch."
            )
        # One probability vector for all tokens of a meme stands for all their weights.
        weights = self.token_weights if probabilities.shape[1] == tokens else self.token_weights.sum(1, keepdim=True)
        seen = probabilities.detach()
        self.means[layer] = (weights * seen).sum(dim=1)
        self.shares[layer] = (weights * F.one_hot(seen.argmax(dim=-1), seen.shape[-1])).sum(dim=1)
        return _AddGradient.apply(probabilities, self, weights)

    def mean(self) -> Tensor:
        """Mean probabilities over layers and valid tokens, [B, E]."""
        return _over_layers(self.means, self.layers)

    def share(self) -> Tensor:
        """Share of layers and valid tokens whose most probable expert is e, [B, E]."""
        return _over_layers(self.shares, self.layers)


def balance_loss(record: BalanceRecord, scope: Scope, running_share: Tensor) -> Tensor:
    """The balance loss of a forward pass, a scalar in the graph. Its gradient arrives inside the layers.

    `batch`: E · Σ_e p_e f_e, with p_e the mean over memes of their mean probability, and f_e the running share of the
    most probable expert over past optimizer steps. 1 is balance. Each meme counts once, so accumulated micro-batches
    and ranks of equal size give the gradient of one large batch.

    `sample`: 1/B · Σ_i Σ_e p_ie f_ie with the shares of the meme itself, without the factor E, as SSMoE's release has
    it. It makes each meme spread its tokens over the experts.

    Args:
        record: What the layers noted; all of them have run.
        scope: Over which memes the experts are balanced.
        running_share: [E], used for `batch`.
    """
    means = record.mean()
    factors = running_share * len(running_share) if scope == "batch" else record.share()
    record.coefficients = (factors / len(means)).expand_as(means)
    value = (record.coefficients * means).sum()
    if not torch.is_grad_enabled():
        return value
    anchor = torch.zeros((), device=value.device, requires_grad=True)  # the layers may have no graph yet
    return _RecordGradient.apply(anchor, value, record)


def _over_layers(values: dict[int, Tensor], layers: int) -> Tensor:
    if len(values) != layers:
        raise RuntimeError(f"{len(values)} of {layers} layers with experts have run; the balance is known after all.")
    device = values[0].device
    stacked: Sequence[Tensor] = [values[layer].to(device) for layer in range(layers)]
    return torch.stack(list(stacked)).mean(dim=0)


class _AddGradient(torch.autograd.Function):
    """Passes probabilities on and adds the gradient of the balance loss in the backward pass."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, record: BalanceRecord, weights: Tensor) -> Tensor:
        ctx.record, ctx.weights = record, weights
        return probabilities.view_as(probabilities)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        record: BalanceRecord = ctx.record
        [gradient] = gradients
        if record.coefficients is None or record.gradient is None:
            record.missed = True
            return gradient, None, None
        scale = record.gradient.to(gradient.device) / record.layers
        added = scale * ctx.weights * record.coefficients.to(gradient.device)[:, None]
        return gradient + added.to(gradient.dtype), None, None


class _RecordGradient(torch.autograd.Function):
    """Gives the value of the balance loss and records the gradient that arrives at it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, record: BalanceRecord) -> Tensor:
        ctx.record = record
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        record: BalanceRecord = ctx.record
        if record.missed:
            raise RuntimeError(
                "The gradient of the balance loss came after that of the layers and would be lost; call backward once, "
                "on the sum of the losses."
            )
        record.gradient = gradients[0].detach()
        return None, None, None
