"""Manifests of every kind, as the version before the models wrote them, and in every older form."""

import json
from pathlib import Path
from typing import Any

import pytest

from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import (
    MODELS,
    BankManifest,
    CrossEvalManifest,
    DatasetManifest,
    DecisionManifest,
    EvaluationManifest,
    KShotManifest,
    Manifest,
    PipelineManifest,
    PredictionsManifest,
    Stage1Manifest,
    StoreManifest,
    TrainedHeadManifest,
    parse_manifest,
    read_folder_manifest,
    read_manifest,
    write_manifest,
)

SPECIMENS = Path(__file__).parent / "specimens"
"""One file per kind, written at commit 5d2218f (long lists cut)."""


def specimen(name: str) -> dict[str, Any]:
    return json.loads((SPECIMENS / f"{name}.json").read_text())


def test_there_is_a_specimen_of_every_kind() -> None:
    assert {specimen(path.stem)["kind"] for path in SPECIMENS.glob("*.json")} == set(MODELS)


@pytest.mark.parametrize("path", sorted(SPECIMENS.glob("*.json")), ids=lambda path: path.stem)
def test_a_specimen_opens_and_is_written_with_all_its_keys_and_values(path: Path, tmp_path: Path) -> None:
    stated = specimen(path.stem)
    manifest = read_manifest(path, Manifest)
    assert type(manifest) is MODELS[stated["kind"]]
    write_manifest(tmp_path / "again.json", manifest)
    written = json.loads((tmp_path / "again.json").read_text())
    added = {"manifest_format": 1} if stated["kind"] == "predictions" else {"format": manifest.format}
    assert written == added | stated
    assert read_manifest(tmp_path / "again.json", Manifest) == manifest


def parsed(values: dict[str, Any]) -> Any:
    return parse_manifest(values, Manifest, "some/ra_hmd.json")


def test_a_new_manifest_states_kind_time_versions_and_format() -> None:
    manifest = StoreManifest.new(rows=3, later="kept")
    assert (manifest.kind, manifest.format, manifest.rows) == ("features", 2, 3)
    assert manifest.versions["python"]
    assert manifest.created.endswith("+00:00")
    assert list(manifest.to_json())[:4] == ["kind", "created", "versions", "format"]
    assert manifest.to_json()["later"] == "kept"


# --- older forms ------------------------------------------------------------------------------------------------------


def test_first_stores_have_no_format() -> None:
    manifest = parsed({"kind": "features", "rows": 2, "shards": 1, "complete": True, "fingerprint": {"model": "m"}})
    assert (type(manifest), manifest.format, manifest.dataset) == (StoreManifest, 1, None)


def test_a_store_that_was_imported_by_an_earlier_version_names_its_file() -> None:
    manifest = parsed({"kind": "features", "source": "old/train.pt"})
    assert (manifest.imported_from, manifest.source) == ("old/train.pt", None)


def test_a_head_on_such_a_store_opens() -> None:
    train = {"path": "f", "rows": 2, "fingerprint": {"data": "d"}, "source": "old/train.pt"}
    manifest = parsed({"kind": "stage2", "features": {"train": train}, "init_head": None})
    assert isinstance(manifest, TrainedHeadManifest)
    assert (manifest.train_store.imported_from, manifest.train_store.dataset) == ("old/train.pt", None)
    assert manifest.train_store.fingerprint == {"data": "d"}


def test_first_stage1_runs_state_the_bits_beside_the_base_model() -> None:
    base = {"path": "models/q", "fingerprint": "hub:q", "quantization_bit": 4}
    manifest = parsed({"kind": "stage1", "base_model": base, "inputs": {"template": "qwen2_vl"}})
    assert isinstance(manifest, Stage1Manifest)
    assert manifest.base_model.loading == {"quantization_bit": 4}
    assert (manifest.base_model.adapters, manifest.base_model.adapter_digests) == ([], None)
    assert manifest.argument("data", "media_dir") is None


def test_first_evaluations_state_neither_system_nor_sets() -> None:
    old = {"kind": "evaluation", "arguments": {"topk": 20}, "seed": 0, "head_sha256": "h", "features": {}}
    manifest = parsed(old)
    assert isinstance(manifest, EvaluationManifest)
    assert (manifest.all_systems, manifest.sets, manifest.decisions, manifest.bank) == ([], {}, {}, None)
    assert list(manifest.rules("test", "lrc")) == []
    later = parsed(old | {"bank": {"place": "bank", "sha256": "b"}, "final": False, "test_sets": {}})
    assert later.bank.data is None


def test_first_cross_evaluations_state_no_systems() -> None:
    manifest = parsed({"kind": "cross_eval", "command": "ra-hmd cross-eval", "arguments": {}, "final": False})
    assert isinstance(manifest, CrossEvalManifest)
    assert manifest.systems is None


def test_first_imports_state_folders_of_images_under_another_key() -> None:
    manifest = parsed({"kind": "dataset", "dataset": "mami", "images": {"train.csv": "img"}, "splits": {"train": 3}})
    assert isinstance(manifest, DatasetManifest)
    assert (manifest.image_folders, manifest.images, manifest.fixes) == ({"train.csv": "img"}, None, 0)


def test_first_decisions_know_no_content_of_the_bank_and_leave_nothing_out() -> None:
    old = specimen("decision")
    del old["bank"]["content"], old["dev"]["left_out"]
    manifest = parsed(old)
    assert isinstance(manifest, DecisionManifest)
    assert (manifest.bank.content, manifest.dev.left_out) == (None, [])


def test_falling_calibrations_of_earlier_versions_are_set_aside() -> None:
    old = specimen("decision")
    old["heads"]["lrc"]["calibration"] = {"kind": "platt", "slope": [-2.0], "intercept": [0.0]}
    rule = parsed(old).heads["lrc"]
    assert rule.calibration == {"kind": "none"}
    assert "falls" in rule.uncalibrated


def test_first_records_of_steps_know_no_files() -> None:
    manifest = parsed({"kind": "demo", "quick": True, "seconds": {"ra-hmd tiny-lmm": 8.5}})
    assert isinstance(manifest, PipelineManifest)
    assert manifest.files == {}


def test_null_where_a_table_is_meant_states_nothing() -> None:
    manifest = parsed({"kind": "head", "features": None, "notes": None, "arguments": None, "encoder": None})
    assert (manifest.features, manifest.notes, manifest.arguments, manifest.encoder) == ({}, [], {}, None)


@pytest.mark.parametrize("style", ["jsonl", "csv"])
def test_the_format_of_predictions_is_that_of_the_file(style: str) -> None:
    manifest = parsed({"kind": "predictions", "format": style, "rows": 3})
    assert isinstance(manifest, PredictionsManifest)
    assert (manifest.style, manifest.format) == (style, 1)
    assert manifest.to_json() == {"kind": "predictions", "rows": 3, "format": style, "manifest_format": 1}


def test_k_shot_lists_that_were_written_by_hand_open() -> None:
    manifest = parsed({"kind": "k_shot", "split": "train", "lists": [{"shots": 1, "seed": 0, "ids": ["a"]}]})
    assert isinstance(manifest, KShotManifest)
    assert manifest.lists[0].ids == ["a"]


# --- later, foreign and damaged files ---------------------------------------------------------------------------------


def test_keys_and_kinds_of_later_versions_are_kept(tmp_path: Path) -> None:
    values = {"kind": "bank", "dimension": 4, "problem": {"kind": "binary", "outputs": 1, "new": 1}, "more": [1]}
    assert parsed(values).to_json() == values | {"format": 1}
    other = {"kind": "of_the_future", "format": 7, "rows": {"a": 1}}
    write_json(tmp_path / "ra_hmd.json", other)
    manifest = read_folder_manifest(tmp_path)
    assert (type(manifest), manifest.to_json()) == (Manifest, other)
    assert read_folder_manifest(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("values", "model", "named"),
    [
        ({"rows": 3}, StoreManifest, ["`kind`", "feature store"]),
        ({"kind": 3}, StoreManifest, ["`kind`"]),
        ({"kind": "bank", "dimension": 3}, StoreManifest, ["'bank'", "'features'", "feature store"]),
        ({"kind": "features", "format": 9}, StoreManifest, ["format 9", "format 2", "update ra-hmd"]),
        ({"kind": "features", "rows": "many"}, StoreManifest, ["`rows`", "'many'", "feature store"]),
        ({"kind": "bank", "problem": {"kind": "ternary"}}, BankManifest,
         ["`dimension`", "`problem.kind`", "'ternary'"]),
        ({"kind": "k_shot", "lists": [{"shots": 1}]}, KShotManifest, ["`lists.0.seed`", "`lists.0.ids`", "k-shot"]),
        ({"kind": "decision", "heads": {"abc": {}}}, DecisionManifest, ["abc", "`criterion`", "--dev"]),
    ],
)  # fmt: skip
def test_what_is_no_such_manifest_is_refused_with_place_value_and_remedy(
    values: dict[str, Any], model: type[Manifest], named: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    write_json(path, values)
    with pytest.raises(UserError) as error:
        read_manifest(path, model)
    for text in [str(path), *named]:
        assert text in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "NaN"])
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ra_hmd.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="ra_hmd"):
        read_folder_manifest(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "gone.json", Manifest)
