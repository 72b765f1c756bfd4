"""The arms of a few-shot study: what each one trains, and the Stage 1 recipe that differs in nothing else.

Source: the comparison that structural self-adaptation needs. LoRA on the attention is the common baseline; LoRA on all
layers has as many parameters as the experts; HydraLoRA has the experts without clusters; the shuffled arms keep every
parameter and every token, and take away what ids or guidance say.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ra_hmd.core.choices import Head
from ra_hmd.models.experts.settings import ATTENTION, SETTING_OF_KEY

ArmName = Literal[
    "zero_shot",
    "guidance",
    "rkc",
    "krr",
    "lora",
    "lora_guidance",
    "lora_matched",
    "hydralora",
    "ssmoe",
    "ssmoe_without_guidance",
    "ssmoe_guidance_shuffled",
    "ssmoe_ids_shuffled",
]
Tuning = Literal["lora", "lora_matched", "experts"]
Source = Literal["own", "shuffled"]
"""Clusters or guidance as they were made, or shuffled."""

_OF_TRAINING = ("router_lr", "moe_balance_w", "moe_balance_scope")
_OF_CLUSTERS = ("clusters", "guidance", "cluster_prior_weight", "cluster_prior_init", "cluster_prior_scale")
SET_BY_STUDY = ("dataset", "dataset_dir", "output_dir", "seed", "clusters", "guidance")
"""Keys whose values the study decides for each run."""
_OF_DEV = (
    *("eval_dataset", "eval_strategy", "eval_steps", "eval_on_each_dataset", "eval_on_start", "val_size", "do_eval"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "per_device_eval_batch_size"),
    *("early_stopping_steps", "do_predict", "max_samples", "save_steps", "save_total_limit", "plot_loss"),
)
"""Keys that a training on a few memes without a dev split cannot have."""


@dataclass(frozen=True)
class Arm:
    """One arm of the study.

    Attributes:
        title: Title in reports.
        what: Description in one sentence.
        tuning: What is trained; None for an arm without training.
        clusters: Clusters that give ids to the memes, if any.
        guidance: Guidance in the prompts, if any.
        bank_head: Head that takes the shots as its bank; None where the score is the language model's.
    """

    title: str
    what: str
    tuning: Tuning | None = None
    clusters: Source | None = None
    guidance: Source | None = None
    bank_head: Head | None = None


ARMS: dict[ArmName, Arm] = {
    "zero_shot": Arm("zero-shot", "The untuned model."),
    "guidance": Arm(
        "guidance, no training",
        "The untuned model, with the guidance of the meme's cluster in the prompt.",
        clusters="own",
        guidance="own",
    ),
    "rkc": Arm(
        "RKC", "A vote of the shots by the hidden states of the untuned model; nothing is trained.", bank_head="rkc"
    ),
    "krr": Arm(
        "KRR",
        "Kernel ridge regression on the shots, with the same hidden states as the RKC; nothing is trained.",
        bank_head="krr",
    ),
    "lora": Arm("LoRA q,k,v,o", "LoRA on the attention.", "lora"),
    "lora_guidance": Arm(
        "LoRA q,k,v,o, guidance",
        "LoRA on the attention, with the guidance of the meme's cluster in the prompt.",
        "lora",
        clusters="own",
        guidance="own",
    ),
    "lora_matched": Arm(
        "LoRA all, matched",
        "LoRA on attention and MLP, with the rank that gives as many parameters as the experts have.",
        "lora_matched",
    ),
    "hydralora": Arm("HydraLoRA", "Experts without clusters: the router sees the token alone.", "experts"),
    "ssmoe": Arm(
        "SSMoE",
        "Experts, with a prior of the meme's cluster in the router, and its guidance in the prompt.",
        "experts",
        clusters="own",
        guidance="own",
    ),
    "ssmoe_without_guidance": Arm(
        "SSMoE, no guidance", "Experts, with a prior of the meme's cluster in the router.", "experts", clusters="own"
    ),
    "ssmoe_guidance_shuffled": Arm(
        "SSMoE, guidance shuffled",
        "SSMoE where each cluster has the guidance of another.",
        "experts",
        clusters="own",
        guidance="shuffled",
    ),
    "ssmoe_ids_shuffled": Arm(
        "SSMoE, ids shuffled",
        "SSMoE where a meme has the id of a cluster that is drawn, and always the same for the same meme.",
        "experts",
        clusters="shuffled",
        guidance="own",
    ),
}


def arm_recipe(arm: Arm, base: Mapping[str, Any], matched_rank: int | None = None) -> dict[str, Any]:
    """Stage 1 keys of an arm: `base` without a dev split, and with this arm's layers and experts.

    Data, seed, output folder, clusters and guidance differ from run to run and are not part of it.

    Args:
        arm: An arm that is trained.
        base: Keys of the Stage 1 recipe.
        matched_rank: Rank of the matched LoRA.
    """
    left_out = {*_OF_DEV, *SET_BY_STUDY, *_OF_CLUSTERS, "llm_moe", *SETTING_OF_KEY, *_OF_TRAINING}
    keys = {key: value for key, value in base.items() if key not in left_out}
    keys |= {"stage": "sft-classifier", "do_train": True, "save_strategy": "no", "overwrite_output_dir": True}
    keys["lora_target"] = attention_of(base)
    if arm.tuning == "lora_matched":
        rank, alpha = adapter_rank(base)
        # The same scaling alpha / rank as the attention's adapter has in the other arms.
        scaled = round(alpha / rank * (matched_rank or 1))
        keys |= {"lora_target": "all", "lora_rank": matched_rank, "lora_alpha": scaled}
    if arm.tuning == "experts":
        keys["llm_moe"] = True
        # `router_input: none` leaves the prior of the clusters alone, and without clusters there is none.
        alone = ("router_input",) if base.get("router_input") == "none" else ()
        without = () if arm.clusters else (*_OF_CLUSTERS, *alone)
        keys |= {key: base[key] for key in (*SETTING_OF_KEY, *_OF_TRAINING) if key in base and key not in without}
    return keys


def attention_of(base: Mapping[str, Any]) -> str:
    """Layers of the attention's adapter: those that the recipe names, unless it names the MLP's or all."""
    named = base.get("lora_target") or "all"
    names = list(named) if isinstance(named, list | tuple) else [part.strip() for part in str(named).split(",")]
    return ATTENTION if {"all", "gate_proj", "up_proj", "down_proj"} & set(names) else ",".join(names)


def adapter_rank(base: Mapping[str, Any]) -> tuple[int, int]:
    """Rank and alpha of the recipe's adapter, with LLaMA-Factory's defaults."""
    rank = int(base.get("lora_rank", 8))
    return rank, int(base.get("lora_alpha") or 2 * rank)


def optimizer_steps(base: Mapping[str, Any], shots: int) -> int:
    """Optimizer steps of a training on K memes of each of two classes, on one device."""
    batches = math.ceil(2 * shots / int(base.get("per_device_train_batch_size", 8)))
    per_epoch = math.ceil(batches / int(base.get("gradient_accumulation_steps", 1)))
    return math.ceil(per_epoch * float(base.get("num_train_epochs", 3.0)))


def expert_fields(base: Mapping[str, Any], clusters: int) -> dict[str, Any]:
    """Fields of `ExpertSettings` that the recipe sets, for experts with `clusters` clusters (0: without)."""
    return {field: base[key] for key, field in SETTING_OF_KEY.items() if key in base} | {"num_clusters": clusters}
