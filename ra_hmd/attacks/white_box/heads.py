"""Scores of the heads as differentiable functions of what they read, and how clear a verdict is.

Shapes: B memes, N bank rows, D embedding, C outputs of the problem (1 if binary), W answers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ra_hmd.attacks.white_box.models import ReadMemes
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.problem import Problem
from ra_hmd.scoring.kernel_classifier import ExactKernelClassifier
from ra_hmd.scoring.scorer import Scorer

_VIEWS = ("embedding", "hidden")
"""Views of the kernel head that the gradient goes through."""


class HeadScores:
    """The score of one head, without the function that would squeeze it into [0, 1] and hide the gradient.

    LRC: the logits. LMH: the logarithms of the odds of answers. RKC: a soft vote of all rows, each weighted by
    exp(cosine / T),
    as the logarithm of the odds of the classes. KRR: its score.

    Args:
        scorer: Head and bank.
        head: The head.
        temperature: T of the soft vote.

    Raises:
        UserError: The head has no answers to compare, there is no bank, or the kernel head cannot be differentiated.
    """

    def __init__(self, scorer: Scorer, head: Head, temperature: float = 0.05) -> None:
        self.problem = scorer.model.config.problem
        self._model, self._head, self._temperature = scorer.model.requires_grad_(False), head, temperature
        self._scorer = scorer
        if head == "lmh" and self.problem.kind == "multi_label":
            raise UserError("The LMH of several labels has no score that one token decides; attack another head.")
        if head == "rkc":
            bank = scorer.reference_set.in_memory() if scorer.reference_set else None
            if bank is None:
                raise UserError("The head `rkc` needs a bank: give --bank.")
            device = next(self._model.parameters()).device
            self._rows = F.normalize(torch.from_numpy(np.asarray(bank.embedding, np.float32)).to(device), dim=1)
            self._member = torch.from_numpy(self.problem.membership(bank.labels)).to(device)
        if head == "krr":
            _check_kernel(scorer)

    def __call__(self, read: ReadMemes) -> Tensor:
        """Scores [B, C], the higher the surer of a class."""
        output = self._model(read.hidden)
        if self._head == "lrc":
            return output.logits
        if self._head == "lmh":
            return self._answers(read.answers)
        if self._head == "rkc":
            return self._vote(output.embedding)
        return self._kernel({"embedding": output.embedding, "hidden": read.hidden})

    def _answers(self, answers: Tensor | None) -> Tensor:
        if answers is None:
            raise UserError("The head `lmh` needs an LMM whose answers begin with different tokens; attack another.")
        logarithms = answers.clamp_min(torch.finfo(answers.dtype).tiny).log()
        return logarithms[:, 1:] - logarithms[:, :1] if self.problem.kind == "binary" else logarithms

    def _vote(self, embedding: Tensor) -> Tensor:
        nearness = (F.normalize(embedding, dim=1) @ self._rows.T / self._temperature)[:, :, None]  # [B, N, 1]
        for_it = nearness.masked_fill(~self._member, -torch.inf).logsumexp(dim=1)
        return for_it - nearness.masked_fill(self._member, -torch.inf).logsumexp(dim=1)

    def _kernel(self, views: dict[str, Tensor]) -> Tensor:
        classifier: Any = self._scorer.kernel
        kernel, total = classifier.kernel, torch.zeros(())
        for name in kernel.used:
            one, vectors = kernel.kernels[name], F.normalize(views[name].double(), dim=1)
            mean, scale, rows = (torch.from_numpy(value).to(vectors) for value in
                                 (one.mean, one.scale, classifier.standardised_rows[name]))  # fmt: skip
            distances = torch.cdist((vectors - mean) / scale, rows, compute_mode="donot_use_mm_for_euclid_dist") ** 2
            total = total.to(vectors) + kernel.weights[name] * torch.exp(-one.gamma * distances)
        return (total @ torch.from_numpy(classifier.coefficients).to(total)).float()


def _check_kernel(scorer: Scorer) -> None:
    classifier = scorer.kernel
    if classifier is None:
        raise UserError("The head `krr` needs a bank: give --bank.")
    if not isinstance(classifier, ExactKernelClassifier):
        raise UserError(
            f"The kernel head of {len(classifier.rows)} rows solves another system for each query, which has no "
            "gradient; give `--white-box square`, which needs none."
        )
    others = [name for name in classifier.kernel.used if name not in _VIEWS]
    if others:
        raise UserError(
            f"The kernel head compares the view {others[0]!r}, which another model makes; give `--white-box square`, "
            "which needs no gradient."
        )


def margins(scores: Tensor, labels: Sequence[Any], problem: Problem) -> Tensor:
    """How far scores [B, C] are on the side of the labels: above 0 where a verdict at threshold 0 is right. [B].

    Of one of C classes: its score less the highest of the others. Of several labels: the mean over the outputs.
    """
    if problem.kind == "single_label":
        own = F.one_hot(torch.tensor(labels, device=scores.device), problem.outputs).bool()
        return scores[own] - scores.masked_fill(own, -torch.inf).amax(dim=1)
    signs = torch.tensor([_signs(label, problem) for label in labels], dtype=scores.dtype, device=scores.device)
    return (signs * scores).mean(dim=1)


def _signs(label: Any, problem: Problem) -> list[int]:
    classes = set(label) if isinstance(label, tuple) else {0} if label == 1 else set()
    return [1 if output in classes else -1 for output in range(problem.outputs)]
