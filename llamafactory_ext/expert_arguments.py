"""YAML keys of LoRA experts with a router, of semantic clusters and of their guidance (SSMoE, HydraLoRA)."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ra_hmd.core.config import Rate
from ra_hmd.models.experts.settings import ATTENTION, SETTING_OF_KEY, ExpertSettings

MLP = ("gate_proj", "up_proj", "down_proj")
"""Linear layers that the experts take the place of."""

_PRIOR = ("cluster_prior_weight", "cluster_prior_init", "cluster_prior_scale")


@dataclass
class ExpertArguments:
    """The keys, with defaults as in docs/stage1.md."""

    llm_moe: bool = field(
        default=False,
        metadata={"help": "sft-classifier: LoRA experts with a router in every MLP of the language model."},
    )
    llm_moe_num_experts: PositiveInt = field(
        default=4,
        metadata={"help": "sft-classifier, llm_moe: number E of experts."},
    )
    expert_rank: PositiveInt = field(
        default=16,
        metadata={"help": "sft-classifier, llm_moe: rank of each expert."},
    )
    expert_alpha: PositiveFloat = field(
        default=16.0,
        metadata={"help": "sft-classifier, llm_moe: what experts add is multiplied by expert_alpha / expert_rank."},
    )
    expert_dropout: Rate = field(
        default=0.05,
        metadata={"help": "sft-classifier, llm_moe: dropout on the input of the experts."},
    )
    universal_expert: bool = field(
        default=False,
        metadata={"help": "sft-classifier, llm_moe: one more expert, whose weight is always 1."},
    )
    clusters: str | None = field(
        default=None,
        metadata={"help": "sft-classifier: folder of semantic clusters (`ra-hmd cluster`); unset: no prior."},
    )
    cluster_prior_weight: NonNegativeFloat = field(
        default=1.0,
        metadata={"help": "sft-classifier, llm_moe: factor of the cluster's prior in the router's logits."},
    )
    router_tau: PositiveFloat = field(
        default=1.0,
        metadata={"help": "sft-classifier, llm_moe: temperature of the router's softmax."},
    )
    cluster_prior_init: Literal["assign", "zero"] = field(
        default="assign",
        metadata={"help": "sft-classifier, llm_moe: the prior begins with one expert per cluster (assign), or at 0."},
    )
    cluster_prior_scale: float = field(
        default=2.0,
        metadata={"help": "sft-classifier, llm_moe: logit of a cluster's own expert where the prior begins."},
    )
    router_input: Literal["token", "none"] = field(
        default="token",
        metadata={"help": "sft-classifier, llm_moe: the router reads each token, or none: the cluster's prior alone."},
    )
    router_lr: PositiveFloat = field(
        default=1e-3,
        metadata={"help": "sft-classifier, llm_moe: learning rate of router and prior."},
    )
    expert_top_k: NonNegativeInt = field(
        default=0,
        metadata={"help": "sft-classifier, llm_moe: experts with a weight above 0 per token; 0 is all of them."},
    )
    moe_balance_w: NonNegativeFloat = field(
        default=0.05,
        metadata={"help": "sft-classifier, llm_moe: weight of the balance loss of the experts."},
    )
    moe_balance_scope: Literal["batch", "sample"] = field(
        default="batch",
        metadata={"help": "sft-classifier, llm_moe: experts are balanced over the memes, or within each meme."},
    )
    guidance: str | None = field(
        default=None,
        metadata={"help": "sft-classifier: file of the clusters' guidance (`ra-hmd guidance`), put into the question."},
    )

    def expert_settings(self, num_clusters: int) -> ExpertSettings:
        """Settings of the experts, with the number K of clusters (0: none)."""
        values = {setting: getattr(self, key) for key, setting in SETTING_OF_KEY.items()}
        return ExpertSettings(num_clusters=num_clusters, **values)


DEFAULTS = {item.name: item.default for item in dataclasses.fields(ExpertArguments)}
"""YAML key to its default."""


def set_default_target(args: Any) -> None:
    """Fill in `lora_target` where the YAML leaves it out: attention with experts, else every linear layer."""
    if args.lora_target is None:
        args.lora_target = ATTENTION if args.llm_moe is True else "all"


def expert_problems(args: Any) -> Iterator[str]:
    """Yield one sentence for each contradiction between the keys, and with those of the host."""
    if args.guidance is not None and args.clusters is None:
        yield "`guidance` is set without `clusters`; give the folder of the clusters that it was made for."
    if not args.llm_moe:
        for name, default in DEFAULTS.items():
            if name not in ("llm_moe", "clusters", "guidance") and getattr(args, name) != default:
                yield f"`{name}` is set without `llm_moe: true`; set that too, or remove it."
        if args.clusters is not None and args.guidance is None:
            yield "`clusters` is set without `llm_moe: true` or `guidance`, and would have no effect; set one of them."
        return
    yield from _routing_problems(args)
    yield from _host_problems(args)


def _routing_problems(args: Any) -> Iterator[str]:
    if args.expert_top_k > args.llm_moe_num_experts:
        yield (
            f"`expert_top_k` is {args.expert_top_k}, and there are {args.llm_moe_num_experts} experts "
            "(`llm_moe_num_experts`); give at most that, or 0 for all."
        )
    if args.clusters is not None:
        if args.router_input == "none" and args.cluster_prior_weight == 0:
            yield "`router_input: none` leaves the prior alone, and `cluster_prior_weight` is 0; raise it."
        return
    if args.router_input == "none":
        yield "`router_input: none` routes by the cluster alone, and there is none; set `clusters`."
    for name in _PRIOR:
        if getattr(args, name) != DEFAULTS[name]:
            yield f"`{name}` is set without `clusters`; set that too, or remove it."


def _host_problems(args: Any) -> Iterator[str]:
    """Arguments of LLaMA-Factory that would change, or tune, the layers that the experts take the place of."""
    if args.finetuning_type != "lora":
        yield (
            f"`finetuning_type: {args.finetuning_type}` with `llm_moe: true`; experts are trained beside a LoRA "
            "adapter: set `finetuning_type: lora`."
        )
    tuned = [name for name in args.lora_target if name == "all" or _names_mlp(name)]
    if tuned:
        yield (
            f"`lora_target` names {', '.join(tuned)}, where the experts of `llm_moe: true` are; leave it out, or set "
            f"`lora_target: {ATTENTION}`."
        )
    saved = [name for name in args.additional_target or () if _names_mlp(name)]
    if saved:
        yield f"`additional_target` names {', '.join(saved)}, where the experts of `llm_moe: true` are; remove it."
    for name in ("use_dora", "use_llama_pro", "freeze_language_model"):
        if getattr(args, name):
            yield f"`{name}: true` does not go with `llm_moe: true`: {_REASONS[name]}. Remove it."


def _names_mlp(name: str) -> bool:
    return any(part in MLP or part == "mlp" for part in name.split("."))


_REASONS = {
    "use_dora": "DoRA rescales whole layers, and experts are plain additions",
    "use_llama_pro": "it trains some blocks of the language model, and the experts are in all of them",
    "freeze_language_model": "the experts are in the language model",
}
