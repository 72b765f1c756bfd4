"""YAML keys of stage `sft-classifier` that hold on to a model's abilities: general data, divergence from the base."""

import dataclasses
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
    general_dataset: str | None = field(
        default=None,
        metadata={
            "help": "sft-classifier: those of `dataset`, with commas between them, whose rows have no class and count "
            "in the language loss alone."
        },
    )

    @property
    def general_names(self) -> list[str]:
        """Names in `general_dataset`."""
        return [name.strip() for name in (self.general_dataset or "").split(",") if name.strip()]


RETENTION_DEFAULTS = {item.name: item.default for item in dataclasses.fields(RetentionArguments)}
"""YAML key to its default."""


def retention_problems(args: Any) -> Iterator[str]:
    """Yield one sentence for each contradiction between these keys and others."""
    if args.lm_kl_weight > 0 and args.finetuning_type not in ADAPTERS:
        yield (
            f"`lm_kl_weight: {args.lm_kl_weight}` compares with the model whose adapter is switched off, and "
            f"`finetuning_type: {args.finetuning_type}` has none; set `finetuning_type: lora`, or leave it out."
        )
    if not args.general_names:
        return
    for key in ("rgcl", "llm_moe", "clusters", "guidance"):
        if getattr(args, key):
            yield f"`general_dataset` does not go with `{key}`, which needs a meme in every row; leave one of them out."
    if args.loss_ratio[0] == 0:
        yield "`general_dataset` counts in the language loss alone, and its weight in `loss_ratio` is 0."
