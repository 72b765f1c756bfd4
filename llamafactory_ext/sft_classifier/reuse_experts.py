"""Experts, clusters and guidance of a run that is evaluated or continued: taken over, or refused where they differ."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory.extras import logging

from llamafactory_ext.expert_arguments import DEFAULTS, expert_problems
from llamafactory_ext.launchers import option
from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import raise_all
from ra_hmd.core.manifests import Stage1Manifest
from ra_hmd.data.guidance import GUIDANCE_FILE, Guidance
from ra_hmd.models.checkpoint import CLUSTERS_FOLDER, read_clusters_and_guidance
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.experts.settings import ATTENTION, SETTING_OF_KEY
from ra_hmd.models.tokenization import InputSettings

if TYPE_CHECKING:
    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it

_START_ONLY = ("expert_dropout", "cluster_prior_init", "cluster_prior_scale")
_FIXED = ("llm_moe", *(name for name in SETTING_OF_KEY if name not in _START_ONLY))
"""Keys that trained experts depend on."""


@dataclass
class _Found:
    """What the arguments and the run say of each other.

    Attributes:
        conflicts: Keys whose values differ, with both.
        warnings: The same, of what continued training may change.
        taken: Keys that the YAML leaves out, with the run's value.
    """

    conflicts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)


def take_experts(
    given: Any,
    manifest: Stage1Manifest,
    run: Path,
    args: "ClassifierFinetuningArguments",
    *,
    trains: bool,
    adapters: bool,
) -> None:
    """Make the keys of experts, clusters and guidance those of a run; in place.

    What the YAML leaves out is the run's. Continued training may change the guidance, with a warning; an adapter that
    was trained without experts may get some.

    Args:
        given: The YAML as a dictionary, or the words of the command line.
        manifest: Of the run.
        run: Its folder.
        args: The arguments of the stage.
        trains: Whether training goes on.
        adapters: Whether the run is an adapter.

    Raises:
        UserError: a key is another than the run's: both values are named.
    """
    found = _Found()
    had = bool(manifest.argument("finetuning", "llm_moe"))
    continues = had and adapters and not args.create_new_adapter
    if continues or not trains:
        _take_keys(given, manifest, run, args, found)
    _take_guides(manifest, run, args, found, trains=trains, fixed=continues or not trains)
    raise_all(
        found.conflicts,
        "The run was trained with other experts, clusters or guidance; set the keys back, or leave them out to take "
        "the run's",
    )
    for text in found.warnings:
        logger.warning_rank0(f"Training goes on with other settings than before: {text}.")
    if found.taken:
        logger.warning_rank0(f"Taken from {run}: {', '.join(found.taken)}.")
        if args.llm_moe and option(given, "lora_target") is None:
            args.lora_target = ATTENTION.split(",")  # type: ignore[assignment]  # the host splits it
        raise_all(list(expert_problems(args)), f"Keys that do not go with those of {run}")


def _take_keys(
    given: Any, manifest: Stage1Manifest, run: Path, args: "ClassifierFinetuningArguments", found: _Found
) -> None:
    recorded = DEFAULTS | manifest.arguments.get("finetuning", {})
    for name in _FIXED:
        now, value = getattr(args, name), recorded[name]
        if now == value:
            continue
        if option(given, name) is not None:
            found.conflicts.append(f"`{name}`: {value!r} in {run}, {now!r} here")
        else:
            setattr(args, name, value)
            found.taken.append(f"`{name}: {value}`")


def _take_guides(
    manifest: Stage1Manifest,
    run: Path,
    args: "ClassifierFinetuningArguments",
    found: _Found,
    *,
    trains: bool,
    fixed: bool,
) -> None:
    settings = load_settings(InputSettings, manifest.inputs or {}, run / MANIFEST_NAME)
    kinds: dict[str, tuple[str, Callable[[str], Any]]] = {
        "clusters": (CLUSTERS_FOLDER, Clusters.open),
        "guidance": (GUIDANCE_FILE, Guidance.open),
    }
    for name, (place, open_file) in kinds.items():
        recorded, path = getattr(settings, name), getattr(args, name)
        if path is None:
            if recorded is not None:
                other = {each: None for each in kinds if each != name}
                read_clusters_and_guidance(run, settings.replace(**other))
                setattr(args, name, str(run / place))
                found.taken.append(f"`{name}: {run / place}`")
            continue
        now = open_file(path).digest
        if now != recorded:
            may_change = trains and (name == "guidance" or not fixed)
            text = f"`{name}`: {_short(recorded)} in {run}, {_short(now)} ({path}) here"
            (found.warnings if may_change else found.conflicts).append(text)


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
