"""`ra-hmd stage2`: one run, several seeds, or a sweep of settings, from stores to folders with heads."""

from typing import Any

from ra_hmd.training.run import run_training
from stage2.arguments import Stage2Arguments
from stage2.trainer import Trainer


def run_stage2(args: Stage2Arguments) -> dict[str, Any]:
    """Refine a head; see `run_training` for what is kept, returned and raised.

    Each epoch embeds the whole training split with the current head, mines positives and hard negatives in it, and
    steps through it once with `(1 − w)·L_CL + w·L_classification`.

    Source: RA-HMD (arXiv 2502.13061), Stage 2; on a fresh fused head, RGCL (arXiv 2311.08110).
    """
    return run_training(args, Trainer)
