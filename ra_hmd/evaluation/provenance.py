"""What was evaluated on what, in words: a head by the run that made it, a store by its data set and split."""

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
from ra_hmd.data.resolve import describe_source
from ra_hmd.features.store import STORE_MANIFEST, Features
from ra_hmd.models.head import HeadConfig, read_head_config


def describe_head(folder: str | Path) -> dict[str, Any]:
    """A trained head.

    Returns:
        `name`: what kind of system it is, on which model, as its manifest states it; else its folder. `trained_on`: the
        data set of its training rows, None where that is not known; a zero-shot head has no such key. `kind`: of its
        manifest, or None. `shots`: K, of a head that was trained on a K-shot list.
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
    """A feature store: `dataset`, `task`, `split`, `place`, and `stated`: whether it says which data set it is of.

    A store that does not say so is called by the folder that it lies in.
    """
    return {
        "dataset": origin.dataset or str(Path(place).parent),
        "task": origin.task,
        "split": origin.dataset_split or Path(place).absolute().name,
        "place": str(place),
        "stated": bool(origin.dataset),
    }


def describe_queries(places: Mapping[str, Path], stores: Mapping[Path, Features], outputs: int) -> dict[str, Any]:
    """Query set → `describe_store` of it, with its `rows` and the `outputs` of the head that judged it."""
    return {
        name: {
            **describe_store(place, stores[place].manifest),
            "rows": len(stores[place]),
            "outputs": outputs,
        }
        for name, place in places.items()
    }


def describe_bank(place: str | Path, stores: Mapping[Path, Features]) -> dict[str, Any]:
    """The labelled examples: `describe_store` of a feature store; an example bank is called by its place."""
    features = stores.get(Path(place))
    if features is None:
        return {"dataset": str(place), "task": None, "split": "bank", "place": str(place), "stated": False}
    return describe_store(place, features.manifest)


def _system(manifest: HeadRunManifest, config: HeadConfig) -> str:
    """The kind of system."""
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
    """Data set of the training rows, as the run or the store states it; else the folder of the store."""
    train = manifest.train_store
    if train.path is not None:
        path = Path(train.path) / STORE_MANIFEST
        origin = train if train.dataset or not path.is_file() else read_manifest(path, StoreManifest)
        return describe_store(train.path, origin)["dataset"]
    given = manifest.argument("data", "dataset") if isinstance(manifest, Stage1Manifest) else None
    names = given if isinstance(given, list) else str(given or "").split(",")
    return ", ".join(str(describe_source(name, "train")["dataset"]) for name in names if name) or None
