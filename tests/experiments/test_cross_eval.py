"""The cross-evaluation matrix: cells recomputed from scratch, gaps, resuming, the lock, leaks."""

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cross_lab import SHOTS, cell_of, check_metrics, k_shot
from json_files import read_json
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from typer.main import get_command
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.config import load_yaml
from ra_hmd.core.errors import UserError
from ra_hmd.experiments.cross_eval import run as module
from ra_hmd.experiments.cross_eval.config import CrossEvalArguments, HeadAndBank
from ra_hmd.experiments.cross_eval.run import cross_eval
from ra_hmd.features.store import read_features
from ra_hmd.features.test_lock import final_records
from ra_hmd.models.fusion import FusionConfig
from ra_hmd.models.head import load_head
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head

ROOT = Path(__file__).parents[2]


def naive_vote(queries, query_ids, bank, labels, bank_ids, k):
    """RKC with arithmetic weights, one query at a time; equal ids do not vote."""

    def embed(hidden):
        both = np.maximum(np.concatenate([hidden, -hidden], axis=1), 0).astype(np.float64)
        return both / np.linalg.norm(both, axis=1, keepdims=True)

    scores = []
    for point, name in zip(embed(queries), query_ids, strict=True):
        near = [(-float(point @ row), number) for number, row in enumerate(embed(bank)) if bank_ids[number] != name]
        near = sorted(near)[:k]
        weights = range(k, k - len(near), -1)
        terms = [w * (2 * labels[n] - 1) * -s for w, (s, n) in zip(weights, near, strict=True)]
        # Absent neighbours have no weight.
        scores.append(sum(terms) / sum(weights))
    return np.array(scores)


@pytest.mark.parametrize(("system", "target"), [("alpha", "alpha"), ("alpha", "beta"), ("beta", "alpha")])
def test_cells_are_those_of_a_naive_recomputation(lab, cross, system, target):
    result = cross_eval(cross())
    queries = read_features(lab.folder / system / "features" / target / "dev")
    own = read_features(lab.folder / system / "features" / system / "train")
    train = read_features(lab.folder / system / "features" / target / "train")
    lrc = cell_of(result, system, target, "lrc")
    check_metrics(lrc, expit(queries.hidden[:, 0].astype(np.float64)), queries.labels, 0.5)
    assert lrc["rows"] == len(queries)
    for bank, store in (("train", own), ("target", train)):
        scores = naive_vote(queries.hidden, queries.ids, store.hidden, store.labels, store.ids, 7)
        cell = cell_of(result, system, target, "rkc", bank)
        check_metrics(cell, scores, queries.labels, 0.0)
        assert cell["bank_rows"] == 60
    lists = read_json(lab.folder / f"{target}_k.json").lists
    for shots in SHOTS:
        values = []
        for one in lists:
            if one["shots"] == shots:
                rows = [train.ids.index(name) for name in one["ids"]]
                scores = naive_vote(queries.hidden, queries.ids, train.hidden[rows], train.labels[rows], one["ids"], 7)
                values.append(roc_auc_score(queries.labels, scores))
        cell = cell_of(result, system, target, "rkc", "k_shot", shots)
        assert cell["auroc"]["runs"] == pytest.approx(values, abs=1e-6)
        assert cell["auroc"]["value"] == pytest.approx(statistics.fmean(values), abs=1e-6)
        assert cell["auroc"]["std"] == pytest.approx(statistics.stdev(values), abs=1e-6)
        assert cell["bank_rows"] == 2 * shots


def test_lmh_is_there_where_the_store_has_it(lab, cross):
    result = cross_eval(cross())
    queries = read_features(lab.folder / "alpha/features/beta/dev")
    check_metrics(cell_of(result, "alpha", "beta", "lmh"), queries.lmh_score[:, 0], queries.labels, 0.5)
    gaps = [one for one in result["missing"] if one["system"] == "beta"]
    assert {(one["head"], one["target"]) for one in gaps} == {("lmh", "alpha"), ("lmh", "beta")}
    assert all("has no LMH scores" in one["reason"] for one in gaps)
    assert len(result["missing"]) == 2
    assert len(result["cells"]) == 4 * (2 + 2 * (2 + len(SHOTS))) - 2


def test_equal_ids_of_different_data_sets_are_different_memes(lab, cross):
    """The training bank of alpha votes with all of its rows on beta, whose memes have the same ids."""
    renamed = read_features(lab.folder / "alpha/features/alpha/train")
    assert set(renamed.ids).isdisjoint(read_features(lab.folder / "alpha/features/beta/dev").ids)
    before = cell_of(cross_eval(cross()), "alpha", "beta", "rkc", "train")
    dev = read_features(lab.folder / "alpha/features/beta/dev")
    dev.ids[:] = renamed.ids[: len(dev.ids)]
    lab.store("alpha/features/other/dev", dev, model="alpha" * 8)
    changed = cross(targets={"other": {"split": "dev"}}, heads=["rkc"], banks=["train"])
    after = cell_of(cross_eval(changed), "alpha", "other", "rkc", "train")
    assert after["auroc"] == before["auroc"]


def test_a_missing_store_is_said_with_its_command(lab, cross):
    targets = {"gamma": {"data": "data/imported/gamma", "split": "dev"}, "alpha": {"split": "dev"}}
    systems = {
        "alpha": {
            "head": str(lab.folder / "alpha/head"),
            "features": str(lab.folder / "alpha/features/{target}/{split}"),
            "checkpoint": "saves/run 1",
        }
    }
    result = cross_eval(cross(targets=targets, systems=systems))
    place = lab.folder / "alpha/features/gamma/dev"
    command = f"ra-hmd extract --checkpoint 'saves/run 1' --data data/imported/gamma --split dev --output {place}"
    gaps = [one for one in result["missing"] if one["target"] == "gamma"]
    assert {one["head"] for one in gaps} == {"lmh", "lrc", "rkc", "krr"}
    assert {one["command"] for one in gaps} == {command}
    assert {one["target"] for one in result["cells"]} == {"alpha"}
    report = (lab.folder / "out/cross_eval.md").read_text()
    assert command in report
    assert "## Missing" in report
    with pytest.raises(UserError, match=r"(?s)Nothing can be evaluated yet.*ra-hmd extract --checkpoint"):
        cross_eval(cross(targets={"gamma": {"split": "dev"}}))


@pytest.mark.renders
def test_everything_is_written_and_finished_cells_are_not_done_again(lab, cross, monkeypatch):
    first = cross_eval(cross(), command="ra-hmd cross-eval x.yaml")
    output = lab.folder / "out"
    assert {path.name for path in output.iterdir()} == {
        "cells", "cross_eval.json", "cross_eval.md", "cross_eval.png", "ra_hmd.json",
    }  # fmt: skip
    assert json.loads((output / "cross_eval.json").read_text()) == first
    assert read_json(output / "ra_hmd.json").arguments.topk == 7
    report = (output / "cross_eval.md").read_text()
    for kind in (
        HeadAndBank("lmh"),
        HeadAndBank("rkc", "train"),
        HeadAndBank("rkc", "k_shot", 5),
        HeadAndBank("rkc", "target"),
        HeadAndBank("krr", "train", views="embedding"),
    ):
        assert f"### {kind.title}".replace("-", r"\-") in report
    assert "ra-hmd cross-eval x.yaml" in report
    done = []
    real = module.estimate
    monkeypatch.setattr(module, "estimate", lambda *args, **kwargs: done.append(1) or real(*args, **kwargs))
    assert cross_eval(cross()) == first
    assert not done
    # One cell is lost, one store is extracted anew: only what depends on them is done.
    changed = lab.features(40, 99, "dev-", domain=1.0, lmh=False)
    for path in (lab.folder / "beta/features/beta/dev").iterdir():
        path.unlink()
    lab.store("beta/features/beta/dev", changed, model="beta" * 8)
    again = cross_eval(cross())
    of_banks = 2 * (2 + len(SHOTS))
    assert len(done) == 1 + of_banks
    same = [one for one in again["cells"] if (one["system"], one["target"]) != ("beta", "beta")]
    assert same == [one for one in first["cells"] if (one["system"], one["target"]) != ("beta", "beta")]
    cross_eval(cross(topk=5, heads=["lrc", "rkc", "krr"], banks=["train"]))
    assert len(done) == 1 + of_banks + 4, "another K is another vote, but the same logistic and kernel regression"
    cross_eval(cross(topk=5, heads=["lrc", "rkc", "krr"], banks=["train"], views=["embedding", "hidden"]))
    assert len(done) == 1 + of_banks + 8, "another view is new to the kernel regression alone"


def test_the_test_split_needs_final_and_leaves_a_record(lab, cross):
    for system in ("alpha", "beta"):
        features = lab.features(40, 7, "judged-")
        lab.store(f"{system}/features/beta/test", features, model=system * 8)
    targets = {"beta": {"split": "test"}}
    with pytest.raises(UserError, match="--final"):
        cross_eval(cross(targets=targets))
    assert not (lab.folder / "out").exists()
    assert not final_records(lab.folder / "alpha/head")
    cross_eval(cross(targets=targets), final=True, command="the command")
    (record,) = final_records(lab.folder / "alpha/head")
    assert record["command"] == "the command"
    manifest = read_json(lab.folder / "out/ra_hmd.json")
    assert manifest.final is True
    assert len(manifest.test) == 2
    again = cross_eval(cross(targets=targets), final=True)
    assert len(final_records(lab.folder / "alpha/head")) == 1, "what is done is not opened again"
    assert {cell["split"] for cell in again["cells"]} == {"test"}


def test_examples_from_the_judged_split_are_refused(lab, cross):
    dev, path = read_features(lab.folder / "alpha/features/beta/dev"), lab.folder / "beta_k.json"
    k_shot(dev, path)
    with pytest.raises(UserError, match=r"memes of the 2-shot list of seed 0.*a leak"):
        cross_eval(cross())
    k_shot(read_features(lab.folder / "alpha/features/beta/train"), path, split="dev")
    with pytest.raises(UserError, match="drawn from split 'dev', examples come from 'train'"):
        cross_eval(cross())
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        cross_eval(cross())


def test_a_judged_meme_in_its_own_bank_is_refused(lab, cross):
    train = read_features(lab.folder / "alpha/features/alpha/train")
    lab.store("alpha/features/alpha/leak", train.select(np.arange(30)), model="alpha" * 8)
    targets = {"alpha": {"split": "leak"}}
    for bank, name in (("train", "the training bank"), ("target", "the bank")):
        with pytest.raises(UserError, match=f"30 memes of {name} .* are among the queries"):
            cross_eval(cross(targets=targets, banks=[bank], heads=["rkc"]), final=True)


def test_lists_that_do_not_fit_the_store_are_refused(lab, cross):
    train, path = read_features(lab.folder / "alpha/features/beta/train"), lab.folder / "beta_k.json"
    manifest = json.loads(path.read_text())
    manifest["lists"][0]["ids"][0] = "nobody"
    write_json(path, manifest)
    with pytest.raises(UserError, match=r"names 1 memes that .*beta/train lacks, for example \['nobody'\]"):
        cross_eval(cross())
    ones = [name for name, label in zip(train.ids, train.labels, strict=True) if label == 1][:4]
    write_json(path, {"kind": "k_shot", "split": "train", "lists": [{"shots": 2, "seed": 0, "ids": ones}]})
    with pytest.raises(UserError, match="class 1 alone"):
        cross_eval(cross())
    with pytest.raises(UserError, match=r"has lists of \[2\] shots, not of \[9\]"):
        cross_eval(cross(targets={"beta": {"split": "dev", "k_shot": str(path)}}, shots=[9]))


def test_a_store_of_another_model_is_refused(lab, cross):
    for path in (lab.folder / "beta/features/alpha/dev").iterdir():
        path.unlink()
    lab.store("beta/features/alpha/dev", lab.features(40, 3, "dev-"), model="alpha" * 8)
    with pytest.raises(UserError, match="not made alike"):
        cross_eval(cross())


def test_all_problems_of_the_file_are_told_together(cross):
    with pytest.raises(UserError) as error:
        cross(systems={"x": {"head": "h", "features": "f", "hed": 1}}, targets={})
    for text in ("`systems.x`: unknown key `hed`", "`targets` is {}"):
        assert text in str(error.value)
    with pytest.raises(UserError) as error:
        cross(systems={"x": {"head": "h", "features": "f/{target}"}}, topk=0, heads=["rkc", "rkc"], bootstrap_samples=0)
    with pytest.raises(UserError, match=r"`views` has 'hidden\+'.*\n.*`views` has 'a\+a'"):
        cross(views=["hidden+", "a+a"])
    for text in ("must contain {split}", "`topk` is 0", "each once", "`bootstrap_samples` is 0"):
        assert text in str(error.value)


def test_the_example_file_and_that_of_the_documentation_can_be_read(tmp_path):
    shipped = load_yaml(CrossEvalArguments, ROOT / "configs/studies/cross_eval_confounders.yaml", ["shots=[8]"])
    assert shipped.shots == (8,)
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/studies.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "cross.yaml").write_text(example)
    documented = load_yaml(CrossEvalArguments, tmp_path / "cross.yaml", ["targets.harm_c.split=dev"])
    assert documented.targets["harm_c"].split == "dev"
    assert str(documented.systems["harm_c"].store("hateful_memes", "test_seen")).endswith("hateful_memes/test_seen")


def test_the_command_line(lab, cross):
    cross()
    done = CliRunner().invoke(app, ["cross-eval", str(lab.folder / "cross.yaml"), "topk=3"])
    assert done.exit_code == 0, done.output
    assert str(lab.folder / "out/cross_eval.md") in done.output
    assert "Missing:" in done.output
    assert read_json(lab.folder / "out/ra_hmd.json").arguments.topk == 3


@pytest.fixture
def encoded(lab, cross):
    """System gamma: features of an encoder, and the head that was trained on them."""
    fusion = FusionConfig(image_dim=8, text_dim=4, kind="align", map_dim=6)
    folder = lab.head("gamma/head", proj_dim=16, fusion=fusion, embedding="linear")
    settings = {"path": "openai/clip-vit-large-patch14", "revision": "abc", "features": "pooled"}
    settings |= {"long_text": "average", "dtype": "auto"}
    train = {"path": "x", "fingerprint": {"model": "gamma" * 8}}
    write_json(folder / "ra_hmd.json", {"kind": "head", "features": {"train": train}, "encoder": settings})
    for place, target in enumerate(("alpha", "beta")):
        for split, rows in (("train", 60), ("dev", 40)):
            features = lab.features(rows, rows + place, f"{split}-", domain=float(place), lmh=False)
            lab.store(f"gamma/features/{target}/{split}", replace(features, modalities=(8, 4)), model="gamma" * 8)
    for target in ("alpha", "beta"):
        features = read_features(lab.folder / f"gamma/features/{target}/train")
        k_shot(features, lab.folder / f"{target}_k.json")

    def make(**changes):
        system = {"head": str(folder), "features": str(lab.folder / "gamma/features/{target}/{split}"),
                  "trained_on": "alpha"}  # fmt: skip
        return cross(systems={"gamma": system | changes})

    return make


def test_features_of_an_encoder_have_no_lmh_and_nothing_is_missing(lab, encoded):
    result = cross_eval(encoded())
    assert result["missing"] == []
    assert {cell["head"] for cell in result["cells"]} == {"lrc", "rkc", "krr"}
    assert len(result["cells"]) == 2 * (1 + 2 * (2 + len(SHOTS)))
    head = load_head(lab.folder / "gamma/head")
    for target in ("alpha", "beta"):
        queries = read_features(lab.folder / f"gamma/features/{target}/dev")
        _, logits = run_head(head, hidden_tensor(queries))
        check_metrics(cell_of(result, "gamma", target, "lrc"), expit(logits[:, 0].numpy()), queries.labels, 0.5)
    args = encoded().replace(heads=("lmh",), output_dir=lab.folder / "other")
    with pytest.raises(UserError, match=r"heads: \['lmh'\]: features of an encoder have no LMH"):
        cross_eval(args)


def test_a_missing_store_of_an_encoder_is_made_by_encode(lab, encoded):
    for path in (lab.folder / "gamma/features/beta/dev").iterdir():
        path.unlink()
    store = lab.folder / "gamma/features/beta/dev"
    command = (
        "ra-hmd encode --encoder {} --features pooled --long-text average --dtype auto {}--data data/beta --split dev"
    )
    stated = command.format("openai/clip-vit-large-patch14", "--revision abc ") + f" --output {store}"
    given = command.format("copies/clip", "") + f" --output {store}"
    extracted = f"ra-hmd extract --checkpoint saves/x --data data/beta --split dev --output {store}"
    for changes, told in (({}, stated), ({"encoder": "copies/clip"}, given), ({"checkpoint": "saves/x"}, extracted)):
        missing = cross_eval(encoded(**changes))["missing"]
        assert {gap["command"] for gap in missing} == {told}
        assert {gap["target"] for gap in missing} == {"beta"}
    with pytest.raises(UserError, match="`encoder` and `checkpoint` are both set"):
        encoded(encoder="x", checkpoint="y")


def test_the_told_commands_are_ones_that_the_command_line_knows():
    for words in (["encode", "--encoder", "--features", "--long-text", "--dtype", "--revision", "--data", "--split"],
                  ["extract", "--checkpoint", "--data", "--split", "--output"]):  # fmt: skip
        command = get_command(app).commands[words[0]]
        assert {option for one in command.params for option in one.opts} >= set(words[1:])


def test_the_example_file_of_encoders(tmp_path):
    shipped = load_yaml(CrossEvalArguments, ROOT / "configs/studies/cross_eval_encoders.yaml", [])
    assert shipped.heads == ("lrc", "rkc")
    assert {system.checkpoint for system in shipped.systems.values()} == {None}
