"""YAML keys of stage `sft-classifier` that hold on to a model's abilities: the divergence from the base model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import NonNegativeFloat

ADAPTERS = ("lora", "oft")
"""Kinds of tuning whose adapter can be switched off."""


@dataclass
class RetentionArguments:
    """Keys for keeping what the base model can do."""

    lm_kl_weight: NonNegativeFloat = field(
        default=0.0,
        metadata={
            "help": "sft-classifier: weight of the divergence of the language loss's tokens from the base model, "
            "which is the model with its adapter switched off; 0: without it."
        },
    )


def retention_problems(args: Any) -> Iterator[str]:
    """Yield one sentence for each contradiction between these keys and others."""
    if args.lm_kl_weight > 0 and args.finetuning_type not in ADAPTERS:
        yield (
            f"`lm_kl_weight: {args.lm_kl_weight}` compares with the model whose adapter is switched off, and "
            f"`finetuning_type: {args.finetuning_type}` has none; set `finetuning_type: lora`, or leave it out."
        )
