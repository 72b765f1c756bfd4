"""YAML keys of experts, clusters and guidance: defaults, and what is refused before anything is loaded."""

import dataclasses
from typing import Any

import pytest

from llamafactory_ext.arguments import OUR_FIELDS, STAGE, ClassifierFinetuningArguments
from llamafactory_ext.expert_arguments import ExpertArguments
from ra_hmd.core.errors import UserError

KEYS = {field.name: field.default for field in dataclasses.fields(ExpertArguments)}


def arguments(**changes: Any) -> ClassifierFinetuningArguments:
    return ClassifierFinetuningArguments(stage=STAGE, **changes)


def refused(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        arguments(**changes)
    return str(error.value)


def test_keys_and_defaults_are_the_documented_ones() -> None:
    assert KEYS == {
        "llm_moe": False,
        "llm_moe_num_experts": 4,
        "expert_rank": 16,
        "expert_alpha": 16,
        "expert_dropout": 0.05,
        "universal_expert": False,
        "clusters": None,
        "cluster_prior_weight": 1.0,
        "router_tau": 1.0,
        "cluster_prior_init": "assign",
        "cluster_prior_scale": 2.0,
        "router_input": "token",
        "router_lr": 1e-3,
        "expert_top_k": 0,
        "moe_balance_w": 0.05,
        "moe_balance_scope": "batch",
        "guidance": None,
    }
    assert set(OUR_FIELDS) >= set(KEYS)


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({}, ["all"]),
        ({"llm_moe": True}, ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ({"llm_moe": True, "lora_target": "q_proj,v_proj"}, ["q_proj", "v_proj"]),
        ({"clusters": "c", "guidance": "g.json"}, ["all"]),
    ],
)
def test_the_adapter_is_in_the_attention_where_experts_are_in_the_mlp(
    changes: dict[str, Any], target: list[str]
) -> None:
    assert arguments(**changes).lora_target == target
    assert ClassifierFinetuningArguments(stage="sft").lora_target == ["all"]


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"llm_moe", "clusters", "guidance"}))
def test_keys_of_experts_need_experts(key: str) -> None:
    other = {"cluster_prior_init": "zero", "router_input": "none", "moe_balance_scope": "sample",
             "universal_expert": True, "expert_dropout": 0.5}.get(key, 3)  # fmt: skip
    assert f"`{key}` is set without `llm_moe: true`" in refused(**{key: other})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"guidance": "g.json", "llm_moe": True}, "`guidance` is set without `clusters`"),
        ({"clusters": "c"}, "`clusters` is set without `llm_moe: true` or `guidance`"),
        ({"llm_moe": True, "router_input": "none"}, "`router_input: none` routes by the cluster alone"),
        ({"llm_moe": True, "clusters": "c", "router_input": "none", "cluster_prior_weight": 0},
         "`cluster_prior_weight` is 0"),
        ({"llm_moe": True, "cluster_prior_scale": 4}, "`cluster_prior_scale` is set without `clusters`"),
        ({"llm_moe": True, "cluster_prior_init": "zero"}, "`cluster_prior_init` is set without `clusters`"),
        ({"llm_moe": True, "cluster_prior_weight": 0.5}, "`cluster_prior_weight` is set without `clusters`"),
        ({"llm_moe": True, "expert_top_k": 5}, "`expert_top_k` is 5, and there are 4 experts"),
        ({"llm_moe": True, "lora_target": "all"}, "`lora_target` names all"),
        ({"llm_moe": True, "lora_target": "q_proj, up_proj,mlp.down_proj"}, "names up_proj, mlp.down_proj"),
        ({"llm_moe": True, "additional_target": "lm_head,gate_proj"}, "`additional_target` names gate_proj"),
        ({"llm_moe": True, "use_dora": True}, "`use_dora: true`"),
        ({"llm_moe": True, "use_llama_pro": True}, "`use_llama_pro: true`"),
        ({"llm_moe": True, "freeze_language_model": True}, "`freeze_language_model: true`"),
        ({"llm_moe": True, "finetuning_type": "full"}, "`finetuning_type: full`"),
        ({"llm_moe": True, "finetuning_type": "oft"}, "`finetuning_type: oft`"),
        ({"llm_moe": True, "llm_moe_num_experts": 0}, "`llm_moe_num_experts` is 0"),
        ({"llm_moe": True, "expert_rank": 0}, "`expert_rank` is 0"),
        ({"llm_moe": True, "expert_dropout": 1}, "`expert_dropout` is 1"),
        ({"llm_moe": True, "router_tau": 0}, "`router_tau` is 0"),
        ({"llm_moe": True, "router_lr": 0}, "`router_lr` is 0"),
        ({"llm_moe": True, "moe_balance_w": -1}, "`moe_balance_w` is -1"),
        ({"llm_moe": True, "moe_balance_scope": "token"}, "'token' is not one of 'batch', 'sample'"),
        ({"llm_moe": True, "router_input": "image"}, "'image' is not one of 'token', 'none'"),
        ({"llm_moe": "moe"}, "`llm_moe`: 'moe' is not true or false"),
    ],
)  # fmt: skip
def test_contradictions_are_told(changes: dict[str, Any], named: str) -> None:
    assert named in refused(**changes)


def test_contradictions_are_told_together() -> None:
    text = refused(llm_moe=True, lora_target="all", use_dora=True, expert_top_k=9, expert_rank=0)
    for problem in ("`lora_target`", "`use_dora: true`", "`expert_top_k` is 9", "`expert_rank` is 0"):
        assert problem in text


def test_other_stages_are_left_alone() -> None:
    assert ClassifierFinetuningArguments(stage="sft", expert_rank=0).expert_rank == 0
