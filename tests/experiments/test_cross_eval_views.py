"""Kernel ridge regression in the cross-evaluation, by the views of a meme that it compares."""

from dataclasses import replace

import numpy as np
import pytest
from cross_lab import SHOTS, cell_of, check_metrics
from json_files import read_json
from lab import FINGERPRINT
from sklearn.metrics import roc_auc_score

from ra_hmd.core.errors import UserError
from ra_hmd.experiments.common import regress
from ra_hmd.experiments.cross_eval.config import HeadAndBank
from ra_hmd.experiments.cross_eval.run import cross_eval
from ra_hmd.features.store import read_features, write_features
from ra_hmd.models.head import load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings


def with_untuned(lab, system):
    """Give the stores of a system a further view, in which class 1 is another direction, in both domains the same."""
    views = {}
    for path in sorted((lab.folder / system / "features").glob("*/*")):
        features = read_features(path)
        rng = np.random.default_rng(len(views))
        view = rng.normal(size=(len(features), 5)).astype(np.float32)
        view[:, 0] += 2 * features.labels - 1
        views[str(path.relative_to(lab.folder / system / "features"))] = view
        stated = {"untuned": {"fingerprint": {"model": "u" * 8}, "encoder": None}}
        for file in path.iterdir():
            file.unlink()
        fingerprint = FINGERPRINT | {"data": str(path), "model": system * 8}
        write_features(path, replace(features, views={"untuned": view}), fingerprint, views=stated)
    return views


def cell_of_views(result, system, target, bank, views, shots=None):
    chosen = [one for one in result["cells"] if one.get("views") == views]
    return cell_of({"cells": chosen}, system, target, "krr", bank, shots)


def test_the_kernel_head_has_a_cell_for_each_choice_of_views(lab, cross):
    views = with_untuned(lab, "alpha")
    choices = ["embedding", "untuned", "hidden+untuned"]
    result = cross_eval(cross(heads=["rkc", "krr"], views=choices))
    queries = read_features(lab.folder / "alpha/features/beta/dev")
    train = read_features(lab.folder / "alpha/features/beta/train")
    rows = [train.ids.index(name) for name in read_json(lab.folder / "beta_k.json").lists[0]["ids"]]
    head = load_head(lab.folder / "alpha/head")
    asked, known = Embeddings.of(queries, head), Embeddings.of(train, head)
    np.testing.assert_array_equal(asked.views["untuned"], views["beta/dev"])
    for choice in choices:
        settings = KernelSettings(views=tuple(choice.split("+")))
        cell = cell_of_views(result, "alpha", "beta", "target", choice)
        check_metrics(cell, regress(asked, known, settings), queries.labels, 0.0)
        few = regress(asked, known.select(np.array(rows)), settings)
        runs = cell_of_views(result, "alpha", "beta", "k_shot", choice, SHOTS[0])["auroc"]["runs"]
        assert runs[0] == pytest.approx(roc_auc_score(queries.labels, few), abs=1e-6)
    of_a = [cell_of_views(result, "alpha", "beta", "train", choice)["auroc"]["value"] for choice in choices]
    assert of_a[0] < 0.3, "by its embedding the class turns around between the domains"
    assert of_a[1] > 0.8, "by the untuned view it does not"
    told = "ra-hmd extract --checkpoint {} --data data/{} --split {} --output {} --views untuned"
    gaps = {(one["views"], one["target"], one["command"]) for one in result["missing"] if one["bank"] == "target"}
    place = lab.folder / "beta/features/beta/dev"
    assert ("untuned", "beta", told.format(lab.folder / "beta/head", "beta", "dev", place)) in gaps
    assert {system["system"] for system in result["missing"]} == {"beta"}
    report = (lab.folder / "out/cross_eval.md").read_text().replace("\\", "")
    for title in ("### KRR, training bank", "### KRR of hidden+untuned, 5-shot bank of the target"):
        assert title in report


def test_a_model_without_an_adapter_is_its_own_untuned_view(lab, cross):
    for split in ("train", "dev"):
        place = lab.folder / "alpha/features/alpha" / split
        features = read_features(place)
        for file in place.iterdir():
            file.unlink()
        lab.store(f"alpha/features/alpha/{split}", features, model="alpha" * 8, adapter=None)
    system = {"head": str(lab.folder / "alpha/head"), "features": str(lab.folder / "alpha/features/{target}/{split}")}
    changed = cross(systems={"alpha": system}, targets={"alpha": {"split": "dev"}}, views=["untuned"], banks=["target"])
    (gap,) = cross_eval(changed)["missing"]
    assert (gap["command"], "`hidden` is its view `untuned`" in gap["reason"]) == ("", True)


def test_what_a_cell_depends_on_is_named_as_before_the_kernel_head_but_for_its_own():
    """Finished cells of earlier versions are found by the digest of these fields."""
    assert HeadAndBank("rkc", "k_shot", 5).to_dict() == {"head": "rkc", "bank": "k_shot", "shots": 5}
    assert HeadAndBank("lmh").to_dict() == {"head": "lmh", "bank": None, "shots": None}
    assert HeadAndBank("krr", "train", None, "hidden").to_dict()["views"] == "hidden"


def test_views_of_one_name_that_differ_are_refused(lab, cross):
    with_untuned(lab, "alpha")
    place = lab.folder / "alpha/features/beta/train"
    features = read_features(place)
    for file in place.iterdir():
        file.unlink()
    stated = {"untuned": {"fingerprint": {"model": "other"}, "encoder": None}}
    write_features(place, features, FINGERPRINT | {"model": "alpha" * 8}, views=stated)
    with pytest.raises(UserError, match="View 'untuned'"):
        cross_eval(cross())
