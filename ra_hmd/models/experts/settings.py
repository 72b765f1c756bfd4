"""Settings of the experts: how many, how large, and how memes are routed to them."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ra_hmd.core.config import Rate, Settings

EXPERT_WEIGHTS = "experts.safetensors"
EXPERT_CONFIG = "experts.json"
"""Names of the experts' files in the folder of a run."""

ATTENTION = "q_proj,k_proj,v_proj,o_proj"
"""`lora_target` beside experts: the linear layers of the attention."""
SETTING_OF_KEY = {
    "llm_moe_num_experts": "num_experts",
    "expert_rank": "rank",
    "expert_alpha": "alpha",
    "expert_dropout": "dropout",
    "universal_expert": "universal",
    "cluster_prior_weight": "prior_weight",
    "router_tau": "tau",
    "cluster_prior_init": "prior_init",
    "cluster_prior_scale": "prior_scale",
    "router_input": "router_input",
    "expert_top_k": "top_k",
}
"""Key of Stage 1's YAML files to the field of `ExpertSettings`."""


class ExpertSettings(Settings):
    """Experts of each language-model MLP and their router; saved as `experts.json`."""

    TITLE: ClassVar[str] = "experts"

    num_experts: PositiveInt = Field(default=4, description="E, experts of each projection.")
    rank: PositiveInt = Field(default=16, description="r, rank of an expert.")
    alpha: PositiveFloat = Field(default=16.0, description="What the experts add is scaled by alpha / rank.")
    dropout: Rate = Field(default=0.05, description="Dropout on the input of the shared matrix A.")
    universal: bool = Field(default=False, description="One more expert that every token passes, with weight 1.")
    num_clusters: NonNegativeInt = Field(
        default=0, description="K, clusters with a prior each; 0 routes by the token alone (HydraLoRA)."
    )
    prior_weight: NonNegativeFloat = Field(default=1.0, description="Weight of the prior in the router's logits.")
    tau: PositiveFloat = Field(default=1.0, description="Temperature of the router's softmax.")
    prior_init: Literal["assign", "zero"] = Field(
        default="assign",
        description="Start of the prior: `assign` gives expert c mod E of cluster c the logit `prior_scale`, `zero` "
        "starts without a preference.",
    )
    prior_scale: NonNegativeFloat = Field(default=2.0, description="Logit that `prior_init: assign` starts from.")
    router_input: Literal["token", "none"] = Field(
        default="token", description="`token` routes by token and cluster, `none` by the cluster alone."
    )
    top_k: NonNegativeInt = Field(
        default=0,
        description="0 uses all experts; k the k most probable ones, their weights scaled to sum 1. A single expert "
        "keeps its probability as weight, so that the router learns from the task.",
    )

    def _problems(self) -> Iterator[str]:
        if self.top_k > self.num_experts:
            yield f"`top_k` is {self.top_k}, there are {self.num_experts} experts (`num_experts`)."
        if self.router_input == "none" and not self.num_clusters:
            yield "`router_input: none` routes by the cluster alone and `num_clusters` is 0; give clusters."

    @property
    def blocks(self) -> int:
        """Blocks of rank r in each B: the experts and, last, the universal one."""
        return self.num_experts + self.universal
