"""What was evaluated on what, in words: a head by the run that made it, a store by its data set and split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import MANIFEST_NAME, read_json
from ra_hmd.data.resolve import describe_source
from ra_hmd.features.provenance import provenance_of
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
    path = folder / MANIFEST_NAME
    manifest = read_json(path) if path.is_file() else {}
    kind = manifest.get("kind")
    system = _system(manifest, read_head_config(folder))
    shots = _shots(manifest)
    parts = [system, _model(manifest), f"{shots}-shot" if shots else ""] if system else [str(folder)]
    described = {"name": ", ".join(part for part in parts if part), "kind": kind}
    if shots:
        described["shots"] = shots
    return described if kind == "zero_shot" else {**described, "trained_on": _trained_on(manifest)}


def describe_store(place: str | Path, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """A feature store: `dataset`, `task`, `split`, `place`, and `stated`: whether it says which data set it is of.

    A store that does not say so is called by the folder that it lies in.
    """
    known = provenance_of(manifest)
    return {
        "dataset": known.dataset or str(Path(place).parent),
        "task": known.task,
        "split": known.dataset_split or Path(place).absolute().name,
        "place": str(place),
        "stated": known.dataset is not None,
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


def _system(manifest: Mapping[str, Any], config: HeadConfig) -> str:
    """The kind of system; empty where the manifest does not tell."""
    kind, fusion = manifest.get("kind"), config.fusion
    joined = "" if fusion is None else f" {fusion.kind}-{config.blocks}"
    modality = "" if fusion is None else " ({})".format("image + text" if fusion.kind == "concat" else fusion.kind)
    if kind == "stage2":
        fresh = manifest.get("init_head") is None
        return f"RGCL{joined}" if fusion is not None else "Stage 2 on frozen features" if fresh else "RA-HMD Stage 2"
    names = {
        "stage1": "RA-HMD Stage 1",
        "head": f"Hate-CLIPper{joined}" if fusion is not None else "MLP head",
        "linear_probe": f"linear probe{modality}",
        "zero_shot": f"zero-shot{modality}",
    }
    return names.get(str(kind), "")


def _model(manifest: Mapping[str, Any]) -> str:
    """Encoder or base model, by the last part of its path."""
    model = manifest.get("encoder") or manifest.get("base_model") or {}
    return Path(str(model.get("path") or "")).name


def _shots(manifest: Mapping[str, Any]) -> int | None:
    """K of the K-shot list that the head was trained on."""
    arguments = manifest.get("arguments") or {}
    return arguments.get("shots") if arguments.get("k_shot") else None


def _trained_on(manifest: Mapping[str, Any]) -> str | None:
    """Data set of the training rows, as the run or the store says; else the folder that the store lay in."""
    train = (manifest.get("features") or {}).get("train")
    if train is not None:
        path = Path(train["path"]) / STORE_MANIFEST
        stated = train if provenance_of(train).dataset or not path.is_file() else read_json(path)
        return describe_store(train["path"], stated)["dataset"]
    given = ((manifest.get("arguments") or {}).get("data") or {}).get("dataset") or []
    names = given if isinstance(given, list) else str(given).split(",")
    return ", ".join(str(describe_source(name, "train")["dataset"]) for name in names) or None
