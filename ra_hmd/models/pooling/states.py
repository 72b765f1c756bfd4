"""Sources of hidden states: what they have in common, and what is checked of each state.

Shapes: B memes of a batch, H hidden size of the LMM.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ra_hmd.core.errors import UserError
from ra_hmd.models.pooling.prompts import Prompt

POOLER = '--pooler-config \'{"pooling_type": "LAST", "use_activation": false}\''
"""Option of `vllm serve` that makes it answer with the state that the heads read."""
_UNIT = 1e-3
_RMS = 0.05
"""Most that the root mean square of a state, the norm's weight divided out, may differ from 1; bfloat16 rounds by less
than 0.01.
"""


class StateSource(Protocol):
    """Computes hidden states by vLLM."""

    def states(self, prompts: Sequence[Prompt], *, tuned: bool = True) -> Tensor:
        """Hidden states [B, H] of the last token after the final norm, in float32.

        Args:
            prompts: B prompts.
            tuned: With the run's adapter, or by the base model alone.

        Raises:
            UserError: vLLM does not answer, or with something else than such states.
        """


class StateCheck:
    """Checks that what vLLM answers is the state that the heads read.

    Args:
        width: H.
        norm: Weight [H] of the model's final RMSNorm; None where it is not known to be a plain one.
    """

    def __init__(self, width: int, norm: Tensor | None) -> None:
        self.width, self.norm = width, norm

    def __call__(self, state: Tensor, place: str) -> Tensor:
        """`state` [H]. `place` is for messages.

        Raises:
            UserError: another width, values that are not finite, a vector that was normalised, or one that the final
                norm did not make.
        """
        if state.shape != (self.width,):
            raise UserError(
                f"{place} answers with {tuple(state.shape)} values, the run's model has a hidden size of {self.width}: "
                "it serves another model."
            )
        if not torch.isfinite(state).all():
            raise UserError(f"{place} answers with values that are not finite; start it with another --dtype.")
        if abs(float(state.norm()) - 1) < _UNIT:
            raise UserError(
                f"{place} normalises its answers to length 1, and the heads read the state as it is; start it with "
                f"{POOLER}."
            )
        if self.norm is not None:
            known = self.norm.abs() > 1e-3 * self.norm.abs().max()
            size = float((state[known] / self.norm[known]).square().mean().sqrt())
            if abs(size - 1) > _RMS:
                raise UserError(
                    f"{place} does not answer with the last token's state after the model's final norm (without the "
                    f"norm's weight it has the root mean square {size:.3f}, not 1); start it with {POOLER}, and with "
                    "the base model of the run."
                )
        return state


def check_tokens(count: int | None, prompt: Prompt, place: str) -> None:
    """Raise `UserError` where vLLM read another number of tokens than the prompt has."""
    if count != len(prompt.ids):
        raise UserError(
            f"{place} read {count} tokens of a prompt that has {len(prompt.ids)} here: it has another chat template, "
            "other pixel limits (`--mm-processor-kwargs`) or another model. Start it with the run's base model and "
            "without these options, or use --backend transformers."
        )
