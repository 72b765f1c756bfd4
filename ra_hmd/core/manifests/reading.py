"""Reading and writing of manifests.

`upgrade` is the only place that knows the forms of earlier versions; everything else sees the current models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ra_hmd.core.artifacts import MANIFEST_NAME, read_json, write_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import (
    attacks,
    bank_review,
    clusters,
    guidance,
    heads,
    jobs,
    published,
    reports,
    retention,
    robustness,
    stores,
)
from ra_hmd.core.manifests.base import Manifest
from ra_hmd.core.storage import as_path

_MODELS: tuple[type[Manifest], ...] = (
    stores.StoreManifest,
    stores.DatasetManifest,
    stores.KShotManifest,
    stores.ShareGptManifest,
    stores.CheckManifest,
    attacks.AttackManifest,
    clusters.ClustersManifest,
    clusters.ClusterAdaptersManifest,
    guidance.GuidanceManifest,
    heads.Stage1Manifest,
    heads.TrainedHeadManifest,
    heads.LinearProbeManifest,
    heads.ZeroShotManifest,
    heads.SeedsManifest,
    heads.SweepManifest,
    heads.DecisionManifest,
    heads.BankManifest,
    reports.EvaluationManifest,
    reports.CrossEvalManifest,
    reports.StalenessManifest,
    reports.AblationManifest,
    reports.FewShotManifest,
    reports.PipelineManifest,
    reports.JudgeManifest,
    reports.LeaderboardManifest,
    reports.BankSearchManifest,
    bank_review.BankAuditManifest,
    bank_review.BankSuggestionsManifest,
    reports.PredictionsManifest,
    reports.TinyEncoderManifest,
    robustness.RobustnessManifest,
    retention.RetentionManifest,
    jobs.JobManifest,
    published.PublishedManifest,
)
MODELS = {kind: model for model in _MODELS for kind in model.KINDS}
"""Kind to the model of its manifest."""

M = TypeVar("M", bound=Manifest)


def read_manifest(path: str | Path, model: type[M]) -> M:
    """Read a manifest of a known kind, in any format that was ever written.

    Args:
        path: The JSON file.
        model: Model of the kinds that are accepted; a base class accepts all kinds below it.

    Raises:
        UserError: no such file, a file of another kind, of a newer version, or a damaged one.
    """
    return parse_manifest(read_json(path), model, path)


def parse_manifest(values: Mapping[str, Any], model: type[M], place: str | Path) -> M:
    """The manifest that `values` hold; `place` names them in messages.

    Raises:
        UserError: see `read_manifest`.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or not kind:
        raise UserError(f"{place} has no `kind`, so it is no manifest of ra-hmd; {model.REMEDY}.")
    exact = MODELS.get(kind, Manifest)
    if not issubclass(exact, model):
        raise UserError(f"{place} is of kind {kind!r}, not {' or '.join(map(repr, kinds_of(model)))}; {model.REMEDY}.")
    current = upgrade(values)
    found = current["format"]
    if exact is not Manifest and isinstance(found, int) and found > exact.FORMAT:
        raise UserError(
            f"{place} has format {found}, and this version of ra-hmd reads {kind!r} up to format {exact.FORMAT}; "
            "update ra-hmd."
        )
    try:
        return exact.model_validate(current)  # type: ignore[return-value]  # a subclass of `model`, see above
    except ValidationError as error:
        problems = [
            f"`{'.'.join(map(str, one['loc']))}`: {_short(one['input'])}: {one['msg']}" for one in error.errors()
        ]
        raise_all(problems, f"{place} is damaged, or no {kind!r} manifest; {exact.REMEDY}")
        raise AssertionError from error


def read_folder_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of a run's folder, as the model of its kind; None where there is none.

    Raises:
        UserError: see `read_manifest`.
    """
    path = as_path(folder) / MANIFEST_NAME
    return read_manifest(path, Manifest) if path.is_file() else None


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write a manifest, atomically."""
    write_json(path, manifest.to_json())


def kinds_of(model: type[Manifest]) -> list[str]:
    """The kinds that a model, or the models below it, describe."""
    return [kind for kind, exact in MODELS.items() if issubclass(exact, model)]


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a manifest of any earlier version, in the current form.

    The format number stays that of the file: files beside it may be of that format too.
    """
    current = dict(values)
    kind = current["kind"]
    if kind == "predictions":  # whose `format` is the file format of the predictions
        if "format" in current:
            current["style"] = current.pop("format")
        current["format"] = current.pop("manifest_format", 1)
    current.setdefault("format", 1)
    fields = MODELS.get(kind, Manifest).model_fields
    # Null where a table or a list is meant states nothing.
    for name in [name for name, value in current.items() if value is None and name in fields]:
        if fields[name].get_default(call_default_factory=True) is not None:
            del current[name]
    if kind == "features":
        return _upgrade_origin(current)
    if kind == "dataset" and isinstance(current.get("images"), Mapping):  # the folders, before `image_folders`
        current["image_folders"] = current.pop("images")
    if kind == "decision":
        current["heads"] = {name: _upgrade_decision(rule) for name, rule in _table(current.get("heads")).items()}
    if MODELS.get(kind) is not None and issubclass(MODELS[kind], heads.HeadRunManifest):
        _upgrade_head_run(current)
    return current


def _upgrade_origin(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Origin of a store's rows. `source` was the path of an imported file; what is written from Python may hold
    anything under these keys, and a value of another type states nothing.
    """
    current = dict(stated)
    source = current.get("source")
    if isinstance(source, str) and source and "imported_from" not in current:
        current["imported_from"] = source
    for name, kinds in (("fingerprint", Mapping), ("source", Mapping), ("encoder", Mapping), ("split", str)):
        if name in current and not isinstance(current[name], kinds):
            del current[name]
    if "imported_from" in current and not isinstance(current["imported_from"], str):
        del current["imported_from"]
    if not current.get("source"):
        current.pop("source", None)
    else:
        named = ("dataset", "split", "task", "place")
        current["source"] = {
            key: value for key, value in current["source"].items() if key not in named or isinstance(value, str | None)
        }
    return current


def _upgrade_head_run(current: dict[str, Any]) -> None:
    """In place: the origin of the features, and quantisation of the base model before `loading` was recorded."""
    if isinstance(current.get("features"), Mapping):
        current["features"] = {
            role: _upgrade_origin(store) for role, store in current["features"].items() if isinstance(store, Mapping)
        }
    base = current.get("base_model")
    if isinstance(base, Mapping) and "loading" not in base and "quantization_bit" in base:
        current["base_model"] = {**base, "loading": {"quantization_bit": base["quantization_bit"]}}


def _upgrade_decision(rule: Any) -> Any:
    """A head's decision. Falling calibrations were written before they were refused: on dev a higher score went with
    fewer memes of class 1.
    """
    slope = _table(_table(rule).get("calibration")).get("slope")
    if not isinstance(slope, list) or not slope or min(slope) >= 0:
        return rule
    reason = "its stored map falls: on dev a higher score went with fewer memes of class 1"
    return {**rule, "calibration": {"kind": "none"}, "uncalibrated": rule.get("uncalibrated") or reason}


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"
