"""Teaches an imported, unmodified `llamafactory.train.tuner` our stage."""

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from llamafactory_ext.launchers import STAGE, diverted, option

SUPPORTED_HOSTS = ("0.9.5",)
_MARK = "_ra_hmd_installed"


class Tuner(Protocol):
    """Attributes of `llamafactory.train.tuner` that are replaced."""

    _training_function: Callable[[dict[str, Any]], None]
    _ray_training_function: Callable[[Any, dict[str, Any]], None]
    export_model: Callable[..., None]


def install(tuner: ModuleType) -> None:
    """Dispatch our stage and carry its head along on export; stock stages run the host's own functions.

    Idempotent. The host's parser learns our keys only when our stage is requested (`extend_arguments`), so a stock
    stage still refuses them. On a host that we do not know, only our stage fails.
    """
    if getattr(tuner, _MARK, False):
        return
    setattr(tuner, _MARK, True)
    reason = _unknown_host(tuner)
    host = cast(Tuner, tuner)
    _dispatch(host, reason)
    if reason is None:
        _dispatch_ray(host)
        _carry_head_on_export(host)
        if {"-h", "--help"} & set(sys.argv):
            extend_arguments()


def extend_arguments() -> None:
    """Put our argument class into the host's parser, in place of its `FinetuningArguments`. Idempotent."""
    from llamafactory.hparams import FinetuningArguments, parser

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

    for classes in (parser._TRAIN_ARGS, parser._INFER_ARGS):
        if FinetuningArguments in classes:
            classes[classes.index(FinetuningArguments)] = ClassifierFinetuningArguments


def _unknown_host(tuner: ModuleType) -> str | None:
    """Why our stage cannot run on this host, or None."""
    from llamafactory.extras.env import VERSION
    from llamafactory.hparams import parser

    if VERSION not in SUPPORTED_HOSTS:
        return f"LLaMA-Factory {VERSION} is installed"
    needed = [(tuner, name) for name in ("_training_function", "_ray_training_function", "Worker", "export_model")]
    needed += [(parser, "_TRAIN_ARGS"), (parser, "_INFER_ARGS")]
    missing = [name for module, name in needed if not hasattr(module, name)]
    return f"this LLaMA-Factory lacks {', '.join(missing)}" if missing else None


def _dispatch(tuner: Tuner, reason: str | None) -> None:
    host = tuner._training_function

    @functools.wraps(host)
    def training_function(config: dict[str, Any]) -> None:
        if option(config.get("args"), "stage") != STAGE:
            host(config)
            return
        if reason is not None:
            raise RuntimeError(
                f"Stage {STAGE} of ra-hmd works with LLaMA-Factory {', '.join(SUPPORTED_HOSTS)}, but {reason}. "
                f"Install it: pip install 'llamafactory=={SUPPORTED_HOSTS[-1]}'. Stock stages are not affected."
            )
        from llamafactory_ext.installed import check_asked_packages
        from ra_hmd.core.errors import raise_all

        raise_all(diverted(launched=False), f"Stage {STAGE} cannot run")
        check_asked_packages(config.get("args"))
        extend_arguments()
        from llamafactory_ext.run import run_stage

        run_stage(config)

    tuner._training_function = training_function


def _dispatch_ray(tuner: Tuner) -> None:
    host = tuner._ray_training_function

    @functools.wraps(host)
    def ray_training_function(ray_args: Any, config: dict[str, Any]) -> None:
        if option(config.get("args"), "stage") != STAGE:
            host(ray_args, config)
            return
        from llamafactory_ext.installed import end_without

        end_without("USE_RAY=1", extra="ray")
        from llamafactory_ext.ray_training import train_on_ray

        train_on_ray(ray_args, config, install)

    tuner._ray_training_function = ray_training_function


def _carry_head_on_export(tuner: Tuner) -> None:
    host = tuner.export_model

    @functools.wraps(host)
    def export_model(args: Any = None) -> None:
        from llamafactory.hparams import read_args

        args = read_args(args)
        _check_exported(args)
        host(args)
        _copy_head(args)

    tuner.export_model = export_model


def _exported(args: dict[str, Any] | list[str]) -> list[str]:
    """The adapters that an export merges, in order."""
    adapters = option(args, "adapter_name_or_path") or []
    return [name.strip() for name in adapters.split(",")] if isinstance(adapters, str) else list(adapters)


def _check_exported(args: dict[str, Any] | list[str]) -> None:
    """Refuse to merge a run of ours into another model than it was trained on, and runs with experts."""
    from ra_hmd.core.artifacts import MANIFEST_NAME
    from ra_hmd.core.manifests import Stage1Manifest, read_manifest
    from ra_hmd.models.checkpoint import check_adapter, check_base_model
    from ra_hmd.models.experts.files import has_experts

    for adapter in _exported(args):
        if has_experts(adapter):
            _refuse_experts(adapter)
        manifest = Path(adapter) / MANIFEST_NAME
        if manifest.is_file():
            check_adapter(adapter)
            check_base_model(read_manifest(manifest, Stage1Manifest), str(option(args, "model_name_or_path")))


def _refuse_experts(run: str) -> None:
    from ra_hmd.core.errors import UserError
    from ra_hmd.models.experts.files import read_expert_settings

    by_cluster = read_expert_settings(run).router_input == "none"
    raise UserError(
        f"{run} has experts, whose weights depend on the meme, so that no one merged model gives its scores. "
        + (
            f"Its router reads the cluster alone: `ra-hmd export-clusters {run} --output FOLDER` writes a plain LoRA "
            "adapter for each cluster."
            if by_cluster
            else "Use the run as it is (`ra-hmd extract`, `predict`, `serve`), or train with `router_input: none`, "
            "which `ra-hmd export-clusters` turns into plain LoRA adapters."
        )
    )


def _copy_head(args: dict[str, Any] | list[str]) -> None:
    from ra_hmd.core.artifacts import MANIFEST_NAME
    from ra_hmd.models.head import HEAD_CONFIG, HEAD_WEIGHTS, has_head

    adapters = _exported(args)
    source = Path(adapters[-1] if adapters else str(option(args, "model_name_or_path")))
    if has_head(source):
        for name in (HEAD_WEIGHTS, HEAD_CONFIG, MANIFEST_NAME):
            shutil.copy(source / name, Path(option(args, "export_dir")) / name)
        _copy_guides(source, Path(option(args, "export_dir")))


def _copy_guides(run: Path, output: Path) -> None:
    """Copy the clusters and the guidance that the prompts of the merged model need."""
    from ra_hmd.core.artifacts import MANIFEST_NAME
    from ra_hmd.core.config import load_settings
    from ra_hmd.core.manifests import Stage1Manifest, read_manifest
    from ra_hmd.data.guidance import GUIDANCE_FILE
    from ra_hmd.models.checkpoint import CLUSTERS_FOLDER, read_clusters_and_guidance
    from ra_hmd.models.tokenization import InputSettings

    inputs = read_manifest(run / MANIFEST_NAME, Stage1Manifest).inputs or {}
    clusters, guidance = read_clusters_and_guidance(run, load_settings(InputSettings, inputs, run / MANIFEST_NAME))
    if clusters is not None:
        clusters.copy_to(output / CLUSTERS_FOLDER)
    if guidance is not None:
        guidance.copy_to(output / GUIDANCE_FILE)
