"""Checks that feature stores, heads and output folders fit together."""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.artifacts import MANIFEST_NAME, STATED_IF_PRESENT, fingerprint_model, plain, sha256_file
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import HeadRunManifest, Stage1Manifest, ViewDescription, read_folder_manifest
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.features.store import STORE_MANIFEST, Features
from ra_hmd.models.experts.settings import EXPERT_WEIGHTS
from ra_hmd.models.head import HeadConfig

DATA_KEYS = ("data", "head", "dtype")
"""Parts of a fingerprint that may differ between comparable stores: the memes, the head on the same LMM, the precision.
All other parts decide what a hidden state means.
"""
FOLDING_KEYS = ("inputs.fold_captions", "encoder.fold_captions")
"""Parts that say whether captions were folded, stated where they were. A difference is warned of, not refused: captions
that need no folding have the same features.
"""
ENGINE = "engine"
"""The engine that computed features, stated where it is not transformers. A difference is warned of, not refused: one
model and one prompt, and kernels that round differently. One store has the features of one engine.
"""
_log = logging.getLogger(__name__)


def store_fingerprint(features: Features) -> dict[str, Any]:
    """Fingerprint of a store; empty for features that were not read from a store."""
    return features.manifest.fingerprint


def views_of(features: Features) -> dict[str, ViewDescription]:
    """The views of a store by name, as its manifest states them; `hidden`, which every store has, is made as the store
    is.
    """
    own = {key: value for key, value in features.manifest.fingerprint.items() if key not in DATA_KEYS}
    hidden = ViewDescription(fingerprint=own, width=features.hidden.shape[1])
    return {"hidden": hidden, **features.manifest.views}


def head_fingerprint(folder: str | Path) -> dict[str, Any]:
    """Fingerprint of the features that the head in `folder` was trained on; empty where it is not known.

    A head that was trained on features states their fingerprint; beside a Stage 1 head lies the adapter or the tuned
    LMM.
    """
    folder = Path(folder)
    manifest = read_folder_manifest(folder)
    if isinstance(manifest, HeadRunManifest) and not isinstance(manifest, Stage1Manifest):
        return dict(manifest.train_store.fingerprint)
    if (folder / "adapter_model.safetensors").is_file():
        weights = {"adapter": "adapter_model.safetensors", "experts": EXPERT_WEIGHTS}
        return {name: sha256_file(folder / file) if (folder / file).is_file() else None
                for name, file in weights.items()}  # fmt: skip
    if (folder / "config.json").is_file():
        return {"model": fingerprint_model(folder), "adapter": None}
    return {}


def check_same_origin(fingerprints: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `UserError` unless all fingerprints are of comparable hidden states: same LMM, adapter, prompt, image size.

    Parts that one of two does not state (an imported `.pt` states none) are not compared. Experts, clusters and
    guidance are stated only by runs that have them, so there a missing part means none. That captions were folded in
    one place alone is logged as a warning.

    Args:
        fingerprints: Place (folder, for the message) to fingerprint; the first is compared with each of the others.
    """
    (first, expected), *others = ((place, _with_absent(parts)) for place, parts in fingerprints.items())
    for place, found in others:
        if _folding_known(expected) and _folding_known(found) and folds_captions(expected) != folds_captions(found):
            _warn_of_folding(*((first, place) if folds_captions(expected) else (place, first)))
        if _engine(expected) != _engine(found) and expected and found:
            _warn_of_engines(first, _engine(expected), place, _engine(found))
    problems = [problem for place, found in others for problem in _differences(first, expected, place, found)]
    raise_all(problems, "These were not made alike; extract the features again with one checkpoint and prompt")


def folds_captions(fingerprint: Mapping[str, Any]) -> bool:
    """Whether features of this fingerprint are of folded captions."""
    return any(fingerprint.get(key) for key in FOLDING_KEYS)


def _engine(fingerprint: Mapping[str, Any]) -> str:
    return str(fingerprint.get(ENGINE, "transformers"))


def _folding_known(fingerprint: Mapping[str, Any]) -> bool:
    return "inputs.template" in fingerprint or "encoder.features" in fingerprint


@cache
def _warn_of_folding(folded: str, other: str) -> None:
    """Once per pair: each batch of a service is checked."""
    _log.warning(
        "The captions of %s were folded, those of %s were not: captions with disguised letters have other features "
        "there. Make both with --fold-captions, or both without.",
        folded,
        other,
    )


@cache
def _warn_of_engines(first: str, engine: str, place: str, other: str) -> None:
    """Once per pair: each batch of a service is checked."""
    _log.warning(
        "The features of %s are by %s, those of %s by %s: hidden states of two engines differ by rounding, and so may "
        'scores near a threshold (docs/cluster.md, "vLLM"). Make both by one engine where that matters.',
        *(first, engine, place, other),
    )


def check_same_views(views: Mapping[str, Mapping[str, ViewDescription]]) -> None:
    """Raise `UserError` unless views of one name were made alike everywhere, apart from memes and precision.

    Args:
        views: Place (folder, for the message) to its views by name; the first is compared with each of the others.
    """
    (first, expected), *others = views.items()
    problems = [
        f"View {name!r}: {problem}"
        for place, found in others
        for name in sorted(set(expected) & set(found))
        for problem in _differences(
            first, _with_absent(expected[name].fingerprint), place, _with_absent(found[name].fingerprint)
        )
    ]
    raise_all(
        problems,
        "These views have one name and were not made alike; make the features again with the models of the first "
        "place, or give the view another name",
    )


def _differences(first: str, expected: Mapping[str, Any], place: str, found: Mapping[str, Any]) -> list[str]:
    """The parts that both fingerprints state and that differ, each as a sentence."""
    return [
        f"{key}: {_short(expected[key])} in {first}, {_short(found[key])} in {place}."
        for key in sorted(set(expected) & set(found) - {*DATA_KEYS, *FOLDING_KEYS, ENGINE})
        if plain(expected[key]) != plain(found[key])
    ]


def _with_absent(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint with the parts that an LMM's features state only where there is something to state."""
    stated = "inputs.template" in fingerprint
    return {**(dict.fromkeys(STATED_IF_PRESENT) if stated else {}), **fingerprint}


def _short(value: Any) -> str:
    text = repr(plain(value))
    return text if len(text) <= 80 else f"{text[:40]}…{text[-20:]}"


def check_head_fits(config: HeadConfig, head_place: str | Path, features: Features, store_place: str | Path) -> None:
    """Raise `UserError` unless the head takes the store's hidden states, or its image and text features."""
    fusion, width = config.fusion, features.hidden.shape[1]
    if fusion is not None and features.modalities != (fusion.image_dim, fusion.text_dim):
        have = f"one vector of {width}" if features.modalities is None else "{} and {}".format(*features.modalities)
        raise UserError(
            f"The head in {head_place} takes {fusion.image_dim} image and {fusion.text_dim} text features, "
            f"{store_place} has {have}: make the features with the head's encoder (`ra-hmd encode`)."
        )
    if config.input_dim != width:
        raise UserError(
            f"The head in {head_place} takes hidden states of size {config.input_dim}, those in {store_place} have "
            f"{width}: they come from different LMMs. Extract the features with this head's checkpoint."
        )


def check_store(features: Features, place: str | Path, problem: Problem = BINARY, *, labelled: bool = True) -> None:
    """Raise `UserError` unless the store has rows, finite hidden states and, with `labelled`, labels of `problem`."""
    if not len(features):
        raise UserError(f"{place} has no rows.")
    if labelled:
        problem.check(features.labels, place)
    finite = np.isfinite(features.hidden).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise UserError(
            f"{place}: {int((~finite).sum())} rows have hidden states that are not finite, the first is "
            f"{features.ids[row]!r}; extract it again."
        )


def check_output(folder: str | Path, kind: str) -> None:
    """Raise `UserError` if `folder` holds the output of another kind of run."""
    path = Path(folder)
    if (path / MANIFEST_NAME).is_file():
        found = read_folder_manifest(path)
        if found is not None and found.kind != kind:
            raise UserError(f"{folder} holds a {found.kind!r} run; choose another output folder, or remove it.")
    elif (path / STORE_MANIFEST).is_file():
        raise UserError(f"{folder} holds a feature store; choose another output folder.")
