"""Trainable parameters of the arms, counted on the model without its weights, and the rank of the matched LoRA."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.experiments.few_shot.arms import ARMS, ArmName, adapter_rank, attention_of, expert_fields

MOST_APART = 0.05
"""Largest difference of the matched LoRA's parameters from those of SSMoE, as a share of these."""


@dataclass(frozen=True)
class Sizes:
    """Trainable parameters, apart from the head, which has no part in the scores.

    Attributes:
        matched_rank: Rank of the LoRA on all layers that has as many parameters as SSMoE.
        parameters: Arm → number of trainable parameters.
    """

    matched_rank: int
    parameters: dict[ArmName, int]


def count_sizes(base: Mapping[str, Any], clusters: int) -> Sizes:
    """Count the parameters of all arms on the recipe's model, which is built on the meta device.

    Args:
        base: Keys of the Stage 1 recipe.
        clusters: K, number of clusters; 0 without.

    Raises:
        UserError: the model cannot be opened, its MLPs take no experts, or no rank gives as many parameters.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    name = str(base["model_name_or_path"])
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"`model_name_or_path: {name}`: its configuration cannot be opened: {error}") from error
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    rank, _ = adapter_rank(base)
    attention = rank * _per_rank(model, attention_of(base).split(","))
    everywhere = _per_rank(model, None)
    experts = {
        count: attention + _expert_parameters(model, config, expert_fields(base, count)) for count in {0, clusters}
    }
    target = experts[clusters]
    matched = max(1, round(target / everywhere))
    if abs(matched * everywhere - target) > MOST_APART * target:
        raise UserError(
            f"LoRA on all layers has {everywhere:,} parameters per rank, SSMoE has {target:,}: no rank comes within "
            f"{MOST_APART:.0%} of it. Take a larger `expert_rank`."
        )
    by_tuning = {None: 0, "lora": attention, "lora_matched": matched * everywhere}
    counted: dict[ArmName, int] = {}
    for arm, stated in ARMS.items():
        of_experts = experts[clusters if stated.clusters else 0]
        counted[arm] = of_experts if stated.tuning == "experts" else by_tuning[stated.tuning]
    return Sizes(matched, counted)


def _per_rank(model: Any, names: list[str] | None) -> int:
    """Parameters of a LoRA of rank 1 on the language model's linear layers of these names; None: on all of them."""
    from torch import nn

    decoder = model.get_decoder()
    found: list[nn.Linear] = [
        layer
        for place, layer in decoder.named_modules()
        if isinstance(layer, nn.Linear) and (names is None or place.rpartition(".")[2] in names)
    ]
    if not found:
        raise UserError(
            f"The language model, {type(decoder).__name__}, has no linear layers {names}: see `lora_target`."
        )
    return sum(layer.in_features + layer.out_features for layer in found)


def _expert_parameters(model: Any, config: Any, fields: Mapping[str, Any]) -> int:
    """Parameters of experts and routers with these settings."""
    import torch
    from transformers import AutoModelForImageTextToText

    from ra_hmd.models.experts.attach import attach_experts
    from ra_hmd.models.experts.settings import ExpertSettings

    with torch.device("meta"):
        bare = AutoModelForImageTextToText.from_config(config)
        attach_experts(bare, ExpertSettings(**fields), seed=0, trainable=True)
    before = sum(parameter.numel() for parameter in model.parameters())
    return sum(parameter.numel() for parameter in bare.parameters()) - before
