"""Classification losses of the head: cross-entropies, focal, and weights that balance classes.

Shapes: B batch, N training rows, C outputs.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ra_hmd.core.problem import BINARY, Problem

ClassWeights = Literal["none", "balanced", "effective_number"]


@dataclass(frozen=True)
class Objective:
    """The mean classification loss of a batch.

    With p_t the probability that the head gives to what is true (per row; multi-label: per row and class)::

        L = mean( w · (1 − p_t)^γ · −log p_t )

    γ = 0 is cross-entropy: binary (BCE) for `binary` and per class for `multi_label`, softmax for `single_label`.

    Attributes:
        problem: What logits and labels mean.
        focal_gamma: γ; above 0 the focal loss, which leaves out what is already learnt.

    Source: focal loss, Lin et al., ICCV 2017, equation 4, without its constant weight α: see `class_weights`.
    """

    problem: Problem = BINARY
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Loss of logits [B, C] against labels [B] or, multi-label, [B, C].

        Args:
            weights: [B], or [B, C] for `multi_label`; a weighted mean whose weights add up to more than zero.
        """
        if self.problem.kind == "single_label":
            losses = F.cross_entropy(logits, labels, reduction="none")
        else:
            targets = labels.reshape(logits.shape).to(logits.dtype)
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            losses = losses if self.problem.kind == "multi_label" else losses[:, 0]
        if self.focal_gamma:
            # 1 − p_t by expm1: exact also where p_t is near 1.
            losses = (-torch.expm1(-losses)).pow(self.focal_gamma) * losses
        if weights is None:
            return losses.mean()
        weights = weights[:, None].expand_as(losses) if weights.ndim < losses.ndim else weights
        return (losses * weights).sum() / weights.sum()


def class_weights(labels: np.ndarray, problem: Problem, kind: ClassWeights, beta: float = 0.999) -> np.ndarray | None:
    """Weights that let rare classes count more; their mean over the training rows is 1.

    `balanced`: 1 / n_c. `effective_number`: (1 − β) / (1 − β^n_c), between none (β = 0) and balanced (β → 1).

    Args:
        labels: Labels of the training rows, [N] or [N, C].
        problem: What they mean.
        kind: Which weights.
        beta: β.

    Returns:
        float32 [classes], or, for `multi_label`, [2, C]: of rows outside and inside each class; None for `none`.

    Source: class-balanced loss, Cui et al., CVPR 2019, equation 2.
    """
    if kind == "none":
        return None
    if problem.kind == "multi_label":
        inside = problem.membership(labels).sum(axis=0)
        counts = np.stack([len(labels) - inside, inside])
    else:
        counts = np.bincount(labels, minlength=problem.classes)
    counts = counts.astype(np.float64)
    effective = counts if kind == "balanced" else (1 - beta**counts) / (1 - beta)
    weights = np.divide(1, effective, out=np.zeros(counts.shape), where=effective > 0)
    mean = (weights * counts).sum(axis=0) / counts.sum(axis=0)
    return (weights / mean).astype(np.float32)


def weights_of(labels: Tensor, weights: Tensor | None) -> Tensor | None:
    """The weights of a batch [B] or, multi-label, [B, C], from those of the classes (`class_weights`)."""
    if weights is None or weights.ndim == 1:
        return None if weights is None else weights[labels]
    return torch.where(labels == 1, weights[1], weights[0])


def anchor_weights(weights: Tensor | None) -> Tensor | None:
    """One weight per meme [B] for a loss that is not per class: of label sets [B, C] the mean over the classes."""
    return weights if weights is None or weights.ndim == 1 else weights.mean(dim=1)
