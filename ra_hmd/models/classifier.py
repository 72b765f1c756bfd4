"""An LMM with a head: one forward pass gives the LM loss, the class logits and the embedding."""

import inspect
import types
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ra_hmd.models.experts.attach import experts_of
from ra_hmd.models.head import MemeHead
from ra_hmd.models.wrappers import base_model

IGNORE = -100
_HEAD = "ra_hmd_head"
_READER = "ra_hmd_reader"


@dataclass
class ClassifierOutput(ModelOutput):
    """Output of the LMM and its head for B memes.

    Attributes:
        logits: [B, C], the head's logits, before the sigmoid.
        embedding: [B, D], the retrieval embedding.
        hidden: [B, H], what the head read.
        answer_probs: [B, W], probabilities of the W answers relative to each other, in class order (None where no one
            token tells them apart).
        lm_loss: [], mean token cross-entropy over the answers (None without answers).
        token_loss: [B, A], cross-entropy of each answer token, 0 where there is none (None if it was fused).
        token_logits: [B, A, V], what predicts each answer token, in float32 (None unless requested).
    """

    logits: Tensor | None = None
    embedding: Tensor | None = None
    hidden: Tensor | None = None
    answer_probs: Tensor | None = None
    lm_loss: Tensor | None = None
    token_loss: Tensor | None = None
    token_logits: Tensor | None = None


@dataclass(frozen=True)
class ReadoutConfig:
    """Readout of hidden states.

    Attributes:
        answer_ids: First token id of each answer, in class order; empty where answers list several classes.
        embed_mode: The last prompt token, or the mean over the prompt.
        embed_layer: The last layer (after the final norm) or the one before it.
        fused: Compute the LM loss with Liger's fused linear cross-entropy, which never holds the logits.
    """

    answer_ids: tuple[int, ...]
    embed_mode: Literal["last_token", "pool"] = "last_token"
    embed_layer: Literal["last", "penultimate"] = "last"
    fused: bool = False


def attach_head(model: nn.Module, head: MemeHead | None, reader: ReadoutConfig) -> None:
    """Make `head` part of an LMM and give the LMM a forward pass that uses it.

    The head becomes a submodule, so that DDP, DeepSpeed and the optimizer see it. A call with `answer_positions` takes
    our forward pass; any other call (generation, say) takes the model's own.

    Args:
        model: A Hugging Face image-text model, or a PEFT model around one.
        head: The head; None for a backbone alone, whose outputs have no logits and no embedding.
        reader: How hidden states are read.
    """
    base = base_model(model)
    if head is not None:
        head.to(next(base.parameters()).device)
        base.add_module(_HEAD, head)
    object.__setattr__(base, _READER, reader)
    own_forward = base.forward

    def forward(self: PreTrainedModel, *args: Any, **inputs: Any) -> Any:
        if "answer_positions" not in inputs:
            return own_forward(*args, **inputs)
        return _classify(self, *args, **inputs)

    # Generation asks the signature which inputs there are. Not by `__wrapped__`: accelerate would unwrap it.
    known = inspect.signature(own_forward)
    owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    cast(Any, forward).__signature__ = known.replace(parameters=[owner, *known.parameters.values()])
    base.forward = types.MethodType(forward, base)


def head_of(model: nn.Module) -> MemeHead:
    """The head attached to a model."""
    return getattr(base_model(model), _HEAD)


def is_head_parameter(name: str) -> bool:
    """Whether a parameter or state-dict name belongs to the attached head."""
    return _HEAD in name.split(".")


def answer_spans(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Position at which each row's answer is predicted, for either padding side.

    The head reads at index 0 of a span: the last prompt token, one before the first label (datasets page, section 5).

    Args:
        labels: [B, T], `IGNORE` except on the one answer of each row; row lengths may differ.

    Returns:
        positions [B, A] that predict the answer's tokens, and the tokens themselves [B, A], `IGNORE` past the end.
    """
    answered = labels != IGNORE
    counts = answered.sum(dim=1)
    first = answered.int().argmax(dim=1)
    steps = torch.arange(int(counts.max()), device=labels.device)
    columns = (first[:, None] + steps).clamp(max=labels.shape[1] - 1)
    targets = labels.gather(1, columns).masked_fill(steps >= counts[:, None], IGNORE)
    return columns - 1, targets


def _classify(
    model: PreTrainedModel,
    *,
    answer_positions: Tensor,
    answer_labels: Tensor | None = None,
    cluster_ids: Tensor | None = None,
    with_logits: bool = False,
    **inputs: Any,
) -> ClassifierOutput:
    """Forward pass: one run of the decoder; the LM head sees answer positions only (that, not T, decides memory).
    `with_logits` returns what it says there, and computes no fused loss.

    Experts, if there are any, are routed by `cluster_ids` [B] (-1: unknown).
    """
    reader: ReadoutConfig = getattr(model, _READER)
    head: MemeHead | None = getattr(model, _HEAD, None)
    experts = experts_of(model)
    if experts is not None:
        # The mask is for the balance of training alone.
        experts.routing.set(cluster_ids, inputs["attention_mask"] if model.training else None)
    penultimate = reader.embed_layer == "penultimate"
    given = {name: value for name, value in inputs.items() if value is not None}  # PEFT passes its own as None
    outputs = model.model(**given | {"use_cache": False, "output_hidden_states": penultimate})
    states = outputs.last_hidden_state
    width = states.shape[-1]
    answer_states = states.gather(1, answer_positions[..., None].expand(-1, -1, width))

    source = outputs.hidden_states[-2] if penultimate else states
    hidden = _read(source, answer_positions[:, 0], inputs["attention_mask"], reader.embed_mode)
    scored = head(hidden) if head is not None else None
    result = ClassifierOutput(hidden=hidden)
    if scored is not None:
        result.logits, result.embedding = scored.logits, scored.embedding
    if answer_labels is not None and reader.fused and model.training and not with_logits and _plain(model.lm_head):
        result.lm_loss = _fused_loss(model.lm_head, answer_states, answer_labels)
        return result
    if answer_labels is None:
        if not reader.answer_ids:
            return result
        answer_states = answer_states[:, :1]
    token_logits = model.lm_head(answer_states).float()
    result.token_logits = token_logits if with_logits else None
    if reader.answer_ids:
        result.answer_probs = token_logits[:, 0, list(reader.answer_ids)].softmax(dim=-1)
    if answer_labels is not None:
        flat = F.cross_entropy(
            token_logits.flatten(0, 1), answer_labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        result.token_loss = flat.view_as(answer_labels)
        result.lm_loss = flat.sum() / (answer_labels != IGNORE).sum()
    return result


def _read(states: Tensor, position: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """[B, H] from [B, T, H]: the state at `position` [B], or the mean over the attended tokens up to it."""
    if mode == "last_token":
        return states[torch.arange(len(states), device=states.device), position]
    steps = torch.arange(states.shape[1], device=states.device)
    prompt = ((steps <= position[:, None]) & attention_mask.bool()).float()
    return torch.einsum("bt,bth->bh", prompt, states.float()) / prompt.sum(dim=1, keepdim=True)


def _plain(lm_head: nn.Module) -> bool:
    """Whether the LM head's weight can be handed to a fused kernel: an ordinary layer, not partitioned by ZeRO-3."""
    return type(lm_head) is nn.Linear and not hasattr(lm_head.weight, "ds_id")


def _fused_loss(lm_head: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE)
    return loss(lm_head.weight, states.flatten(0, 1), targets.flatten(), lm_head.bias)
