"""The study of `ra-hmd robustness` on a tiny encoder: results, resuming, the lock on test data, refusals."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from attacked import CHANGES, attack_by_hand
from json_files import read_json
from scipy.special import expit
from sklearn.metrics import accuracy_score, roc_auc_score
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app
from ra_hmd.core.config import load_yaml
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import RobustnessManifest, read_manifest
from ra_hmd.data.benign_transforms import benign_copies
from ra_hmd.data.meme_files import read_memes
from ra_hmd.experiments.robustness import run as module
from ra_hmd.experiments.robustness.config import RobustnessSettings
from ra_hmd.experiments.robustness.extraction import makers_of
from ra_hmd.experiments.robustness.run import robustness
from ra_hmd.experiments.robustness.suite import Suite
from ra_hmd.features.store import read_features
from ra_hmd.features.test_lock import final_records
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.encoders import open_encoder
from ra_hmd.models.head import load_head
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head


def settings_of(folder, **changes):
    """Settings of a study with a plain and a defended system."""
    values = {
        "data": str(folder / "data"),
        "attacked": str(folder / "attacked"),
        "output_dir": str(folder / "out"),
        "memes": 16,
        "systems": {
            "plain": {
                "encoder": {"path": str(folder / "clip")},
                "head": str(folder / "head"),
                "bank": str(folder / "features" / "train"),
            },
            "taught": {"base": "plain", "bank_attacks": ["empty"], "bank_attacked_memes": 12},
            "folded": {"base": "plain", "fold_captions": True},
            "means": {"base": "plain", "transforms": 1},
        },
        "topk": 5,
        "bootstrap_samples": 50,
        "workers": 0,
    }
    path = folder / "robustness.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return load_yaml(RobustnessSettings, path, [])


@pytest.fixture(scope="module")
def made(served_clip, memes, tmp_path_factory):
    """A finished study; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("robustness")
    shutil.copytree(memes / "a", folder / "data")
    for name in ("head", "clip", "features"):
        shutil.copytree(served_clip / name, folder / name)
    attack_by_hand(folder / "data", folder / "attacked", ("train", "dev", "test"))
    robustness(settings_of(folder), final=True, command="ra-hmd robustness robustness.yaml --final")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "study")


def store_of(folder, *key, system="plain"):
    """Folder of a store of a study."""
    settings = settings_of(folder)
    return makers_of(Suite.open(settings))[system].store(settings.system(system), *key)


def table_of(folder, system):
    return pq.read_table(folder / "out" / "scores" / f"{system}.parquet").to_pandas()


def test_metrics_are_those_of_the_written_scores(made):
    result = read_json(made / "out" / "robustness.json")
    table = table_of(made, "plain")
    variants = {one["name"] for one in result["suite"]["variants"]}
    assert set(table["set"]) == {"dev", "clean", *variants}
    assert len(variants) == 3 * len(CHANGES)
    for head in ("lrc", "rkc", "krr"):
        found = result["systems"]["plain"]["heads"][head]
        threshold = found["rule"]["threshold"]
        for name in ("clean", *variants):
            rows = table[table["set"] == name]
            assert len(rows) == 16
            cell = found["clean"] if name == "clean" else found["variants"][name]
            scores = rows[f"{head}_scores"]
            assert cell["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(rows["label"], scores), abs=1e-6)
            expected = accuracy_score(rows["label"], scores >= threshold)
            assert cell["metrics"]["accuracy"]["value"] == pytest.approx(expected)
    assert "lmh" not in result["systems"]["plain"]["heads"]


def test_attacked_memes_stand_in_the_order_of_their_clean_ones_with_other_features_where_they_were_changed(made):
    clean = read_features(store_of(made, "clean", "test", 16))
    attacked = read_features(store_of(made, "empty-3", "test", 16))
    assert attacked.ids == [f"{name}@empty-3" for name in clean.ids]
    assert (attacked.labels == clean.labels).all()
    differs = (attacked.hidden != clean.hidden).any(axis=1)
    assert (differs == (clean.labels == 1)).all()  # the attack is applied to class 1 alone


def test_thresholds_depend_on_clean_dev_memes_alone(made, copy):
    before = read_json(made / "out" / "robustness.json")["systems"]["plain"]["heads"]
    other = robustness(settings_of(copy, attacks=["shout"], memes=8), final=True)["systems"]["plain"]["heads"]
    assert {head: found["rule"] for head, found in other.items()} == {head: one["rule"] for head, one in before.items()}
    assert {head: found["limit"] for head, found in other.items()} == {
        head: one["limit"] for head, one in before.items()
    }


def test_attacked_training_memes_are_added_to_the_bank_and_the_heads_without_a_bank_stay(made):
    systems = read_json(made / "out" / "robustness.json")["systems"]
    assert systems["plain"]["bank"] | {"place": ""} == {"place": "", "rows": 96, "attacked": 0}
    assert systems["taught"]["bank"] | {"place": ""} == {"place": "", "rows": 96 + 3 * 12, "attacked": 36}
    assert systems["taught"]["against_base"]["lrc"] == {"unchanged": True}
    gain = systems["taught"]["against_base"]["krr"]
    both = [table_of(made, name) for name in ("plain", "taught")]
    values = [
        np.mean([roc_auc_score(rows["label"], rows["krr_scores"]) for name, rows in one.groupby("set") if name in
                 ("empty-1", "empty-2", "empty-3")])
        for one in both
    ]  # fmt: skip
    assert gain["seen"]["auroc"]["value"] == pytest.approx(values[1] - values[0], abs=1e-6)
    assert set(gain["families"]) == {"characters", "words"}


def test_folding_undoes_an_attack_and_shares_the_features_of_memes_that_it_leaves_as_they_are(made):
    assert store_of(made, "shout-3", "test", 16, system="folded") == store_of(made, "shout-3", "test", 16)
    folded = store_of(made, "wide-3", "test", 16, system="folded")
    assert folded != store_of(made, "wide-3", "test", 16)
    clean = read_features(store_of(made, "clean", "test", 16))
    assert (read_features(folded).hidden == clean.hidden).all()
    attacked = read_features(store_of(made, "wide-3", "test", 16))
    assert (attacked.hidden != clean.hidden).any()
    variants = read_json(made / "out" / "robustness.json")["systems"]["folded"]["heads"]["lrc"]["variants"]
    assert variants["wide-3"]["difference"]["auroc"]["value"] == 0


def test_scores_are_means_over_the_picture_and_its_harmless_changes(made):
    head = load_head(made / "head")
    stores = [store_of(made, "shout-1", "test", 16, copy, system="means") for copy in (0, 1)]
    picture, copy = (read_features(store) for store in stores)
    scores = [expit(run_head(head, hidden_tensor(one))[1][:, 0].double().numpy()) for one in (picture, copy)]
    rows = table_of(made, "means").query("set == 'shout-1'")
    assert rows["lrc_scores"].to_numpy() == pytest.approx(sum(scores) / 2, abs=1e-6)
    # What the store of the copies holds is what the encoder makes of a copy.
    encoder = open_encoder(EncoderSettings(path=str(made / "clip"))).load(torch.device("cpu"))
    memes = {meme.id: meme for meme in read_memes(made / "attacked" / "shout-1" / "test.jsonl")}
    meme = memes[copy.ids[0]]
    item = encoder.encode(meme.caption, benign_copies(meme.load_image(), 1)[0])
    by_hand = torch.cat(list(encoder.columns(encoder.collate([item])).values()), dim=1).numpy()[0]
    assert copy.hidden[0] == pytest.approx(by_hand, abs=1e-4)
    assert picture.hidden[0] != pytest.approx(by_hand, abs=1e-4)


def test_the_report_has_a_line_for_each_head_and_its_figures(made):
    text = (made / "out" / "robustness.md").read_text()
    assert text.count("| KRR |") >= 4
    for name in ("heat_map", "severity", "defences"):
        assert f"]({name}.png)" in text
        assert (made / "out" / f"{name}.png").is_file()
        assert (made / "out" / f"{name}.svg").is_file()
    assert "taught against plain" in text


def test_a_finished_study_computes_nothing_again_and_opens_no_test_split(copy, monkeypatch):
    before = read_json(copy / "out" / "robustness.json")
    opened = len(final_records(copy / "head"))
    assert opened == 4  # by each system

    def fail(*_, **__):
        raise AssertionError("computed again")

    for name in ("head_results", "defence_results"):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr("ra_hmd.experiments.robustness.scoring.score_set", fail)
    monkeypatch.setattr("ra_hmd.models.clip_encoder.Encoder.load", fail)
    again = robustness(settings_of(copy), final=True)
    assert len(final_records(copy / "head")) == opened
    assert again["summary"] == before["summary"]
    for name, system in before["systems"].items():
        assert again["systems"][name]["heads"] == system["heads"]


def test_what_is_missing_after_a_stop_is_made_again_with_the_same_result(copy):
    finished = robustness(settings_of(copy), final=True)
    next(store_of(copy, "shout-2", "test", 16).glob("part-*.parquet")).unlink()
    shutil.rmtree(store_of(copy, "empty-1", "train", 12, system="taught"))
    (copy / "out" / "scores" / "taught.parquet").unlink()
    next((copy / "out" / "cells").glob("*.json")).unlink()
    assert json.dumps(robustness(settings_of(copy), final=True)) == json.dumps(finished)


def test_test_data_need_final(copy):
    with pytest.raises(UserError, match="--final"):
        robustness(settings_of(copy), final=False)


def test_the_command_prints_one_line_of_results_and_records_itself(copy):
    settings_of(copy)
    done = CliRunner().invoke(app, ["robustness", str(copy / "robustness.yaml"), "bootstrap_samples=20", "--final"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("plain, AUROC clean → attacked: LRC ")
    assert "taught: " in lines[0]
    assert lines[1] == str(copy / "out" / "robustness.md")
    stated = read_manifest(copy / "out" / "ra_hmd.json", RobustnessManifest)
    assert stated.command.endswith("robustness.yaml bootstrap_samples=20 --final")
    assert stated.summary == lines[0]
    assert stated.test["plain"].test_sets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topl": 3}, "unknown key `topl`; did you mean `topk`"),
        ({"systems": {"x": {"banc": "b"}}}, "`systems.x`: unknown key `banc`; did you mean `bank`"),
        ({"systems": {"x": {"base": "y"}}}, "`systems.x.base` is 'y'"),
        ({"systems": {"x": {"head": "h"}}}, "needs `checkpoint` or `encoder`"),
        ({"dev_split": "test"}, "must be three different splits"),
        ({"coverage": 0}, "`coverage` is 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        settings_of(tmp_path, **changes)
    assert message in str(caught.value)


def test_keys_of_a_base_hold_where_a_system_sets_none(tmp_path):
    settings = settings_of(tmp_path)
    assert settings.system("taught").bank == settings.system("plain").bank
    assert settings.system("taught").bank_attacks == ("empty",)


def test_an_unknown_attack_is_refused(copy):
    with pytest.raises(UserError, match="has no such attacks"):
        robustness(settings_of(copy, attacks=["shouting"]), final=True)


def test_another_clean_data_set_than_the_attacked_one_is_refused(copy):
    path = copy / "data" / "test.jsonl"
    path.write_text(path.read_text().replace("text", "text", 1) + "\n")
    with pytest.raises(UserError, match="is not the split that .* was made from"):
        robustness(settings_of(copy), final=True)


def test_a_bank_with_the_measured_memes_is_refused(copy):
    systems = settings_of(copy).model_dump(mode="json")["systems"]
    systems["plain"]["bank"] = str(copy / "features" / "test")
    with pytest.raises(UserError, match="a leak"):
        robustness(settings_of(copy, systems={"plain": systems["plain"]}), final=True)


def test_an_example_bank_gives_what_its_feature_store_gives_and_takes_attacked_memes_for_the_study_alone(
    copy, clip_bank
):
    rows = len(Bank.open(clip_bank))
    systems = settings_of(copy).model_dump(mode="json", exclude_unset=True)["systems"]
    systems["plain"]["bank"] = str(clip_bank)
    chosen = {name: systems[name] for name in ("plain", "taught")}
    before = read_json(copy / "out" / "robustness.json")["systems"]
    found = robustness(settings_of(copy, systems=chosen), final=True)["systems"]
    for name in chosen:
        assert found[name]["bank"] == before[name]["bank"] | {"place": str(clip_bank)}
        for head in ("rkc", "krr"):
            metrics = [one[name]["heads"][head]["suite"]["metrics"]["auroc"]["value"] for one in (before, found)]
            assert metrics[1] == pytest.approx(metrics[0], abs=1e-6)
    assert len(Bank.open(clip_bank)) == rows


def test_a_run_of_an_lmm_has_all_four_heads_and_its_model_is_loaded_once(served_lmm, memes, tmp_path, monkeypatch):
    shutil.copytree(memes / "a", tmp_path / "data")
    attack_by_hand(tmp_path / "data", tmp_path / "attacked", ("dev", "test"))
    run = shutil.copytree(served_lmm / "run", tmp_path / "run")
    system = {"checkpoint": str(run), "bank": str(served_lmm / "features" / "train")}
    loaded = []
    init = MemeModel.__init__
    monkeypatch.setattr(MemeModel, "__init__", lambda self, *given: (loaded.append(1), init(self, *given))[1])
    settings = settings_of(tmp_path, systems={"run": system}, attacks=["shout"], memes=4)
    found = robustness(settings, final=True)["systems"]["run"]["heads"]
    assert list(found) == ["lmh", "lrc", "rkc", "krr"]
    assert len(loaded) == 1
