"""Descriptions of what was evaluated: a head by the run that trained it, a store by its data set and split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ra_hmd.core.manifests import (
    FeatureOrigin,
    HeadRunManifest,
    Stage1Manifest,
    StoreManifest,
    read_folder_manifest,
    read_manifest,
)
from ra_hmd.core.storage import as_path
from ra_hmd.data.resolve import describe_source
from ra_hmd.features.store import STORE_MANIFEST, Features
from ra_hmd.models.head import HeadConfig, read_head_config


def describe_head(folder: str | Path) -> dict[str, Any]:
    """Describe a trained head.

    Returns:
        `name`: kind of system and its model, as the manifest states them, or else the folder. `kind`: kind of the
        manifest, or None. `trained_on`: data set of the training rows, None if unknown; absent for a zero-shot head.
        `shots`: K, only for a head that was trained on a K-shot list.
    """
    folder = Path(folder)
    manifest = read_folder_manifest(folder)
    if not isinstance(manifest, HeadRunManifest):
        return {"name": str(folder), "kind": None if manifest is None else manifest.kind, "trained_on": None}
    shots = manifest.shots
    parts = [_system(manifest, read_head_config(folder)), manifest.model_name, f"{shots}-shot" if shots else ""]
    described: dict[str, Any] = {"name": ", ".join(part for part in parts if part), "kind": manifest.kind}
    if shots:
        described["shots"] = shots
    return described if manifest.kind == "zero_shot" else {**described, "trained_on": _trained_on(manifest)}


def describe_store(place: str | Path, origin: FeatureOrigin) -> dict[str, Any]:
    """Describe a feature store: `dataset`, `task`, `split`, `place`, and `stated`: whether it records its data set.

    A store that does not is named after its parent folder.
    """
    return {
        "dataset": origin.dataset or str(as_path(place).parent),
        "task": origin.task,
        "split": origin.dataset_split or Path(place).absolute().name,
        "place": str(place),
        "stated": bool(origin.dataset),
    }


def describe_queries(places: Mapping[str, Path], stores: Mapping[Path, Features], outputs: int) -> dict[str, Any]:
    """Map each query set to its `describe_store`, with its `rows` and the `outputs` of the head."""
    return {
        name: {
            **describe_store(place, stores[place].manifest),
            "rows": len(stores[place]),
            "outputs": outputs,
        }
        for name, place in places.items()
    }


def describe_bank(place: str | Path, stores: Mapping[Path, Features]) -> dict[str, Any]:
    """Describe the labelled examples: a feature store by `describe_store`, an example bank by its place."""
    features = stores.get(as_path(place))
    if features is None:
        return {"dataset": str(place), "task": None, "split": "bank", "place": str(place), "stated": False}
    return describe_store(place, features.manifest)


def _system(manifest: HeadRunManifest, config: HeadConfig) -> str:
    """Kind of system."""
    fusion = config.fusion
    joined = "" if fusion is None else f" {fusion.kind}-{config.blocks}"
    modality = "" if fusion is None else " ({})".format("image + text" if fusion.kind == "concat" else fusion.kind)
    if manifest.kind == "stage2":
        fresh = manifest.init_head is None
        return f"RGCL{joined}" if fusion is not None else "Stage 2 on frozen features" if fresh else "RA-HMD Stage 2"
    names = {
        "stage1": "RA-HMD Stage 1",
        "head": f"Hate-CLIPper{joined}" if fusion is not None else "MLP head",
        "linear_probe": f"linear probe{modality}",
        "zero_shot": f"zero-shot{modality}",
    }
    return names[manifest.kind]


def _trained_on(manifest: HeadRunManifest) -> str | None:
    """Data set of the training rows, as the run or the store records it, or else the parent folder of the store."""
    train = manifest.train_store
    if train.path is not None:
        path = as_path(train.path) / STORE_MANIFEST
        origin = train if train.dataset or not path.is_file() else read_manifest(path, StoreManifest)
        return describe_store(train.path, origin)["dataset"]
    given = manifest.argument("data", "dataset") if isinstance(manifest, Stage1Manifest) else None
    names = given if isinstance(given, list) else str(given or "").split(",")
    return ", ".join(str(describe_source(name, "train")["dataset"]) for name in names if name) or None
