"""Experts that are routed by the cluster alone, as one plain LoRA adapter per cluster.

With `router_input: none` the weights pi of the experts depend on the cluster c alone. In a cluster the experts of a
projection are then one low-rank matrix, (alpha / r) · Σ_e pi_e(c) B_e A, and the MLP's part and the attention's part
fit in one LoRA adapter that PEFT and vLLM load.

Shapes: K clusters, E experts, r rank.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ra_hmd.core.artifacts import new_folder, read_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ClusterAdaptersManifest, write_manifest
from ra_hmd.data.guidance import GUIDANCE_FILE
from ra_hmd.models.checkpoint import ADAPTER_CONFIG, CLUSTERS_FOLDER, Run, open_run
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER
from ra_hmd.models.experts.files import EXPERT_WEIGHTS, read_expert_settings
from ra_hmd.models.experts.modules import Router, gates_of
from ra_hmd.models.experts.settings import ExpertSettings

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTERS = "adapters.json"
"""File with the adapter of each cluster."""

_WEIGHTS = "adapter_model.safetensors"
_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_EXPERT = re.compile(r"layers\.(?P<layer>\d+)\.(?P<name>gate|up|down)\.(?P<part>[AB])")
_PLAIN = ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "alora_invocation_tokens")

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Module to its A [r, d_in] and B [d_out, r], with every factor in B."""


def export_clusters(
    run: str | Path, output: str | Path, base_model: str | None = None, command: str = ""
) -> ClusterAdaptersManifest:
    """Write a LoRA adapter for each cluster, and one for memes of no cluster.

    Beside them lie the clusters and the guidance of the run, to find a meme's cluster and its prompt.

    Args:
        run: Folder of a Stage 1 run, or of its checkpoint.
        output: Folder to make; it is complete or absent.
        base_model: Where the base model lies, if it is no longer where the run says.
        command: The command line, for the manifest.

    Returns:
        The manifest: cluster to the folder of its adapter.

    Raises:
        UserError: a run without experts, with a router that reads tokens, or whose adapter is more than plain LoRA.
    """
    opened = open_run(run, base_model)
    settings = _check(opened)
    attention = _attention(opened)
    experts = load_file(Path(run) / EXPERT_WEIGHTS)
    prefix = _layers_of(opened)
    names = {str(cluster): f"cluster-{cluster}" for cluster in range(settings.num_clusters)}
    names |= {str(UNKNOWN_CLUSTER): "unknown"}
    with new_folder(output) as folder:
        for cluster, name in names.items():
            pairs = attention | _mlp(experts, settings, int(cluster), prefix)
            _write_adapter(folder / name, pairs, opened.base_model)
        if opened.clusters is not None:
            opened.clusters.copy_to(folder / CLUSTERS_FOLDER)
        if opened.guidance is not None:
            opened.guidance.copy_to(folder / GUIDANCE_FILE)
        manifest = ClusterAdaptersManifest.new(
            command=command,
            run=str(run),
            base_model=opened.base_model,
            clusters=opened.settings.clusters,
            guidance=opened.settings.guidance,
            rank=_rank(attention | _mlp(experts, settings, UNKNOWN_CLUSTER, prefix)),
            adapters=names,
        )
        write_manifest(folder / ADAPTERS, manifest)
    return manifest


def _check(run: Run) -> ExpertSettings:
    if run.experts is None:
        raise UserError(f"{run.folder} has no experts; `llamafactory-cli export` merges a run without.")
    settings = read_expert_settings(run.experts)
    if settings.router_input != "none":
        raise UserError(
            f"The router of {run.folder} reads each token (`router_input: {settings.router_input}`), so no adapter "
            "stands for a cluster; train with `router_input: none`."
        )
    if run.base_adapters:
        raise UserError(
            f"{run.folder} was trained on a base model with adapters merged into it ({', '.join(run.base_adapters)}); "
            "merge them with `llamafactory-cli export`, and train on the model that this gives."
        )
    return settings


def _attention(run: Run) -> Pairs:
    """The matrices of the run's adapter, scaled as PEFT does."""
    assert run.adapter is not None
    config = read_json(run.adapter / ADAPTER_CONFIG)
    unusual = [f"`{name}: {config[name]}`" for name in _PLAIN if config.get(name)]
    unusual += [f"`bias: {config['bias']}`"] if config.get("bias", "none") != "none" else []
    raise_all(unusual, f"The adapter in {run.adapter} is more than plain LoRA, which cannot be exported")
    rank = int(config["r"])
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(run.adapter / _WEIGHTS).items():
        match = _LORA.fullmatch(name)
        if match is None:
            raise UserError(f"{run.adapter / _WEIGHTS}: `{name}` is no matrix of a LoRA adapter.")
        found.setdefault(match["module"], {})[match["part"]] = tensor.float()
    return {module: (parts["A"], scale * parts["B"]) for module, parts in found.items()}


def _layers_of(run: Run) -> str:
    """Name of the language model's list of layers in the LMM; its weights are not loaded."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(run.base_model))
    layers = model.get_decoder().layers
    return next(name for name, module in model.named_modules() if module is layers)


def _mlp(experts: Mapping[str, Tensor], settings: ExpertSettings, cluster: int, prefix: str) -> Pairs:
    """The experts of all layers as they are weighed in a cluster."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in experts.items():
        match = _EXPERT.fullmatch(name)
        if match is not None:
            found.setdefault((match["layer"], match["name"]), {})[match["part"]] = tensor.float()
    pairs = {}
    for (layer, name), parts in found.items():
        gates = _gates(experts, settings, layer, cluster)
        blocks = parts["B"].unflatten(1, (settings.blocks, settings.rank))  # [d_out, E, r]
        mixed = torch.einsum("e,oer->or", gates, blocks) * (settings.alpha / settings.rank)
        pairs[f"{prefix}.{layer}.mlp.{name}_proj"] = (parts["A"], mixed)
    return pairs


def _gates(experts: Mapping[str, Tensor], settings: ExpertSettings, layer: str, cluster: int) -> Tensor:
    """Weights of the blocks of B in a layer, [E] or with a universal expert [E + 1]."""
    router = Router(1, settings)
    start = f"layers.{layer}.router."
    router.load_state_dict(
        {name.removeprefix(start): value for name, value in experts.items() if name.startswith(start)}
    )
    with torch.no_grad():
        probabilities = router(torch.zeros(1, 1, 1), torch.tensor([cluster]))
        return gates_of(probabilities, settings)[0, 0]


def _rank(pairs: Pairs) -> int:
    return max(len(a) for a, _ in pairs.values())


def _write_adapter(folder: Path, pairs: Pairs, base_model: str) -> None:
    """Write a LoRA adapter of one rank; smaller matrices get rows and columns of 0."""
    rank = _rank(pairs)
    tensors = {}
    for module, (a, b) in pairs.items():
        missing = rank - len(a)
        tensors[f"base_model.model.{module}.lora_A.weight"] = F.pad(a, (0, 0, 0, missing)).contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = F.pad(b, (0, missing)).contiguous()
    folder.mkdir()
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    _lora_config(rank, sorted(pairs), base_model).save_pretrained(str(folder))


def _lora_config(rank: int, modules: list[str], base_model: str) -> "LoraConfig":
    from peft import LoraConfig, TaskType

    return LoraConfig(
        r=rank,
        lora_alpha=rank,  # every factor is in the matrices
        target_modules=modules,
        base_model_name_or_path=base_model,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    )
