"""Experts of a run: refused backbones, where they come from, and putting them into the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llamafactory.extras import logging

from llamafactory_ext.expert_arguments import MLP
from llamafactory_ext.launchers import STAGE
from llamafactory_ext.sft_classifier.guides import Guides
from llamafactory_ext.sft_classifier.weights import load_expert_weights
from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.models.checkpoint import ADAPTER_CONFIG
from ra_hmd.models.experts.attach import attach_experts
from ra_hmd.models.experts.files import EXPERT_CONFIG, EXPERT_WEIGHTS, has_experts
from ra_hmd.models.experts.settings import ExpertSettings

if TYPE_CHECKING:
    from llamafactory.hparams import ModelArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it

_MIXTURES = ("num_experts_per_tok", "num_experts", "num_local_experts", "n_routed_experts")
"""Fields of a configuration that only a mixture of experts has."""


def settings_of(args: "ClassifierFinetuningArguments", guides: Guides) -> ExpertSettings | None:
    """Settings of the experts that the arguments ask for; None without."""
    if not args.llm_moe:
        return None
    return args.expert_settings(0 if guides.clusters is None else guides.clusters.count)


def check_experts(config: Any, model_args: "ModelArguments", args: "ClassifierFinetuningArguments") -> None:
    """Raise `UserError`, before any weights are loaded, where experts would get no place, or lose the one they had.

    Args:
        config: The configuration of the LMM.
        model_args: And the stage's own arguments, as `args`.
    """
    adapters = model_args.adapter_name_or_path or []
    kept = None if args.create_new_adapter or not adapters else adapters[-1]
    raise_all(
        [f"{each}: its experts depend on the meme" for each in adapters if each != kept and has_experts(each)],
        "An adapter of a run with experts cannot be merged into a model; continue that run (its folder last in "
        "`adapter_name_or_path`, without `create_new_adapter`)",
    )
    if not args.llm_moe:
        return
    text = config.get_text_config()
    found = next((name for name in _MIXTURES if getattr(text, name, None)), None)
    if found is not None:
        raise UserError(
            f"`llm_moe: true` puts experts into dense MLPs, and {model_args.model_name_or_path} is a mixture of "
            f"experts itself (`{found}: {getattr(text, found)}`); take a dense model, or leave `llm_moe` out."
        )
    if kept is None or not (Path(kept) / ADAPTER_CONFIG).is_file():
        return
    targets = read_json(Path(kept) / ADAPTER_CONFIG).get("target_modules") or []
    names = targets if isinstance(targets, list) else [targets]
    tuned = [name for name in MLP if any(name in str(target) for target in names)]
    if tuned:
        raise UserError(
            f"The adapter {kept} tunes {', '.join(tuned)}, where the experts of `llm_moe: true` go; continue it "
            "without experts, or set `create_new_adapter: true`."
        )


def expert_source(adapters: list[str] | None, resume: Path | None, *, trains: bool, wanted: bool) -> Path | None:
    """The folder whose experts to load: the checkpoint resumed from, else the run's own; None for new ones.

    Raises:
        UserError: the folder was trained with experts and has lost them.
    """
    if not wanted:
        return None
    folder = resume or (Path(adapters[-1]) if adapters else None)
    if folder is not None and has_experts(folder):
        return folder
    if resume is not None or not trains:
        raise UserError(
            f"{folder or 'The model'} has no trained experts ({EXPERT_WEIGHTS}, {EXPERT_CONFIG}), and the run has "
            f"`llm_moe: true`: new ones would give other scores. Give the whole folder of a {STAGE} run."
        )
    return None


def attach(
    model: Any, settings: ExpertSettings, source: Path | None, seed: int, *, trains: bool, pure_bf16: bool
) -> None:
    """Put experts into the model: those saved at `source`, or new ones that depend on the seed alone."""
    dtype = torch.bfloat16 if trains and pure_bf16 else torch.float32
    experts = attach_experts(model, settings, seed=seed, trainable=trains, dtype=dtype)
    if source is not None:
        load_expert_weights(experts, source)
        logger.info_rank0(f"Loaded the experts from {source}.")
    trained = sum(value.numel() for name, value in experts.state().items() if name != "share")
    logger.info_rank0(f"Experts: {settings.num_experts} of rank {settings.rank}, {trained:,} parameters.")
