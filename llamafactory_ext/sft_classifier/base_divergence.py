"""Divergence of a model in training from its base model, which is the same model without adapter and experts.

Shapes: B batch, A answer tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from ra_hmd.models.classifier import IGNORE
from ra_hmd.models.experts.attach import experts_of


def token_divergence(logits: Tensor, base_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(base ‖ tuned) [] in nats, mean over the answer tokens: large where the tuned model no longer says what the
    base model would.

    The regulariser of learning without forgetting (Li and Hoiem, ECCV 2016) at temperature 1, over the whole
    vocabulary. The gradient with respect to `logits` is softmax(logits) - softmax(base_logits), over their number.

    Args:
        logits: [B, A, V], of the model in training.
        base_logits: [B, A, V], of the base model; no gradient.
        labels: [B, A], `IGNORE` past the end of an answer.
    """
    counted = labels != IGNORE
    tuned, base = (each[counted].float().log_softmax(dim=-1) for each in (logits, base_logits))
    return F.kl_div(tuned, base, reduction="sum", log_target=True) / counted.sum()


@contextmanager
def _base(model: nn.Module) -> Iterator[None]:
    """Run the base model inside a `with`: without adapter and experts, and without dropout or noise."""
    training, experts = model.training, experts_of(model)
    model.eval()
    try:
        with cast(PeftModel, model).disable_adapter():
            if experts is None:
                yield
            else:
                with experts.disabled():
                    yield
    finally:
        model.train(training)


@torch.no_grad()
def base_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits [B, A, V] of the base model at the answer's positions.

    Call it before the forward pass of the model in training: switching the adapter off and on again takes its
    parameters out of the graph for a moment.

    Args:
        model: A PEFT model with a head, not wrapped for several processes: nothing here has a gradient to reduce.
        inputs: What the model's forward pass takes.
    """
    with _base(model):
        return model(**inputs, with_logits=True)["token_logits"]
