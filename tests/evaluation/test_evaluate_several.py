"""`evaluate` over several classes, several seeds, example banks and abstaining votes, through its files."""

import json
import re

import numpy as np
import pytest
import torch
from json_files import read_json
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import HEAD_KEY, embed_store
from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import sha256_file, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.metrics.classification import classification_metrics
from ra_hmd.evaluation.metrics.seeds import expand_checkpoints
from ra_hmd.evaluation.request import OperatingPointSettings
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import HEAD_WEIGHTS, HeadConfig, MemeHead, load_head, save_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.scoring.operating_point import read_operating_point

HIDDEN = 12


def class_head(lab, kind, outputs=3):
    """A head whose logits are the first hidden directions, and whose embedding keeps all, both signs."""
    config = HeadConfig(input_dim=HIDDEN, proj_dim=2 * HIDDEN, output_dim=outputs, problem_type=kind)
    head, eye = MemeHead(config), torch.eye(HIDDEN)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.cat([eye, -eye]))
        head.layers[0].bias.zero_()
        head.output.weight.copy_(torch.cat([eye, -eye], dim=1)[:outputs])
        head.output.bias.zero_()
    save_head(lab.folder / kind, config, head.state_dict())
    return lab.folder / kind


def class_features(kind, rows, seed, prefix):
    rng = np.random.default_rng(seed)
    hidden = 0.7 * rng.normal(size=(rows, HIDDEN))
    if kind == "single_label":
        labels = rng.integers(0, 3, rows)
        hidden[:, :3] += 2 * np.eye(3)[labels]
    else:
        labels = (rng.random((rows, 3)) < [0.5, 0.3, 0.15]).astype(int)
        hidden[:, :3] += 2 * labels - 1
    lmh = np.clip(0.5 + 0.2 * rng.normal(size=(rows, 3)), 0.01, 1)
    ids = [f"{prefix}{row}" for row in range(rows)]
    return Features(ids, labels, hidden.astype(np.float32), lmh_score=lmh.astype(np.float32))


@pytest.fixture(params=["single_label", "multi_label"])
def classes(lab, request):
    kind = request.param
    class_head(lab, kind)
    for number, (name, rows) in enumerate((("cbank", 200), ("c_dev", 120), ("c_test", 150), ("cpool", 60))):
        lab.store(name, class_features(kind, rows, number, name))
    settings = {
        "checkpoint": lab.folder / kind,
        "bank": lab.folder / "cbank",
        "queries": [lab.folder / "c_test"],
    }
    return kind, settings


def read(lab, name, place="out"):
    return json.loads((lab.folder / place / name).read_text())


@pytest.mark.renders
def test_several_classes_end_to_end(lab, classes):
    kind, settings = classes
    result = lab.evaluate(**settings, operating_point=OperatingPointSettings(thresholds="official"))
    test = read_features(lab.folder / "c_test")
    problem = Problem(kind, 3)
    member = problem.membership(test.labels)
    lines = [json.loads(line) for line in (lab.folder / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == test.labels.tolist()
    for head in ("lmh", "lrc", "rkc"):
        scores = np.array([line[f"{head}_score"] for line in lines])
        assert scores.shape == (150, 3)
        said = (
            scores.argmax(axis=1) if kind == "single_label" else (scores >= (0 if head == "rkc" else 0.5)).astype(int)
        )
        values = {name: item["value"] for name, item in result["metrics"]["c_test"][head].items()}
        assert values["auroc"] == pytest.approx(roc_auc_score(member, scores))
        assert values["micro_auroc"] == pytest.approx(roc_auc_score(member, scores, average="micro"))
        assert values["macro_f1"] == pytest.approx(f1_score(test.labels, said, average="macro", zero_division=0))
        assert values["accuracy"] == pytest.approx((said == test.labels).reshape(150, -1).all(axis=1).mean())
        if head != "lmh":
            assert values["auroc"] > 0.9
    lrc = np.array([line["lrc_score"] for line in lines])
    logits = test.hidden[:, :3].astype(np.float64)
    expected = torch.tensor(logits).softmax(-1) if kind == "single_label" else torch.tensor(logits).sigmoid()
    assert lrc == pytest.approx(expected.numpy(), abs=1e-6)
    rows = read(lab, "analysis.json")["c_test"]["classes"]["lrc"]
    for c, row in enumerate(rows):
        assert row["memes"] == member[:, c].sum()
        assert row["auroc"]["value"] == pytest.approx(roc_auc_score(member[:, c], lrc[:, c]))
    names = {path.name for path in (lab.folder / "out").glob("*.png")}
    expected_names = {"roc.png", "classes.png", "reliability.png", "abstention.png", "bank.png"}
    assert names == expected_names | ({"confusion.png"} if kind == "single_label" else set())
    report = (lab.folder / "out" / "report.md").read_text()
    assert "## Class by class" in report
    for image in re.findall(r"\]\((\w+\.png)\)", report):
        assert (lab.folder / "out" / image).is_file()


def test_several_classes_choose_on_dev_update_and_compare(lab, classes):
    kind, settings = classes
    lab.evaluate(**settings, output=lab.folder / "old", bootstrap_samples=0)
    result = lab.evaluate(
        **settings,
        operating_point=OperatingPointSettings(dev=lab.folder / "c_dev", criterion="f1"),
        update=lab.folder / "cpool",
        update_sizes=[6, 12],
        compare=[lab.folder / "old"],
    )
    decision = read_operating_point(lab.folder / kind)
    assert decision.problem == Problem(kind, 3)
    assert [entry["added"] for entry in result["updates"]["c_test"]] == [0, 6, 12]
    assert result["updates"]["c_test"][0]["accuracy"] == result["metrics"]["c_test"]["rkc"]["accuracy"]
    old, new = (read(lab, "metrics.json", place)["c_test"] for place in ("old", "out"))
    moved = {head: rule.thresholds.tolist() for head, rule in decision.rules.items()}
    if kind == "single_label":
        assert old["lrc"]["accuracy"]["value"] == new["lrc"]["accuracy"]["value"], "the highest score decides"
        assert decision.rules["rkc"].calibration.kind == "temperature"
    else:
        assert len(set(moved["lmh"])) == 3, "each class has its own threshold"
        assert all(decision.values[head]["chosen"] >= decision.values[head]["official"] for head in moved)
    (run,) = read(lab, "analysis.json")["c_test"]["runs"]
    assert [entry["memes"] for entry in run["comparisons"]] == [150] * 4
    calibration = read(lab, "analysis.json")["c_test"]["calibration"]
    assert calibration["rkc"]["after"]["nll"]["value"] < calibration["rkc"]["before"]["nll"]["value"]


def test_lmh_scores_of_another_number_are_left_out(lab, classes):
    kind, settings = classes
    features = class_features(kind, 40, 9, "n")
    lab.store(
        "narrow_test", Features(features.ids, features.labels, features.hidden, lmh_score=np.ones((40, 1), np.float32))
    )
    result = lab.evaluate(**settings | {"queries": [lab.folder / "narrow_test"]})
    assert list(result["metrics"]["narrow_test"]) == ["lrc", "rkc", "krr"]
    assert any("1 LMH scores per meme for 3 outputs" in note for note in result["notes"])


@pytest.fixture
def seeds(lab):
    run = lab.folder / "stage2"
    for seed in (3, 4, 5):
        folder = lab.head(f"stage2/seed-{seed}")
        head = load_head(folder)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for weight in head.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        save_head(folder, head.config, head.state_dict())
    write_json(run / "seeds.json", {"runs": [{"seed": seed} for seed in (3, 4, 5)]})
    return run


def test_seeds_are_evaluated_each_and_together(lab, seeds):
    result = lab.evaluate(checkpoint=seeds, bootstrap_samples=200)
    alone = [lab.evaluate(checkpoint=seeds / f"seed-{seed}", output=lab.folder / f"alone{seed}", bootstrap_samples=200)
             for seed in (3, 4, 5)]  # fmt: skip
    written = read(lab, "metrics.json")
    assert written == result["metrics"]
    for head, metrics in written["test"].items():
        for name, item in metrics.items():
            values = [one["metrics"]["test"][head][name]["value"] for one in alone]
            assert item["runs"] == pytest.approx(values)
            assert item["value"] == pytest.approx(np.mean(values))
            assert item["std"] == pytest.approx(np.std(values, ddof=1))
            assert item["low"] < item["value"] < item["high"]
    lmh, single = written["test"]["lmh"]["auroc"], alone[0]["metrics"]["test"]["lmh"]["auroc"]
    assert (lmh["std"], lmh["low"], lmh["high"]) == pytest.approx((0, single["low"], single["high"])), "LMH has no seed"
    for seed in (3, 4, 5):
        assert read(lab, f"seed-{seed}/metrics.json") == read(lab, "metrics.json", f"alone{seed}")
        manifest = read_json(lab.folder / "out" / f"seed-{seed}" / "ra_hmd.json")
        assert manifest.head_sha256 == sha256_file(seeds / f"seed-{seed}" / HEAD_WEIGHTS)
    report = (lab.folder / "out" / "report.md").read_text()
    assert "± " in report
    assert "[report.md](seed-4/report.md)" in report
    listed = lab.evaluate(checkpoint=[seeds / "seed-3", seeds / "seed-5"], bootstrap_samples=0)
    assert listed["metrics"]["test"]["lrc"]["auroc"]["runs"] == [
        written["test"]["lrc"]["auroc"]["runs"][place] for place in (0, 2)
    ]


def test_seeds_choose_on_dev_each_for_itself(lab, seeds):
    lab.store("dev", lab.features(80, 7, "dev"))
    lab.evaluate(checkpoint=seeds, operating_point=OperatingPointSettings(dev=lab.folder / "dev"), bootstrap_samples=0)
    limits = {read_operating_point(seeds / f"seed-{seed}").rules["lrc"].thresholds[0] for seed in (3, 4, 5)}
    assert len(limits) == 3


def test_checkpoints_that_cannot_be_told_apart(lab, seeds):
    assert list(expand_checkpoints(seeds)) == ["seed-3", "seed-4", "seed-5"]
    assert expand_checkpoints([lab.folder / "head"]) == {"head": lab.folder / "head"}
    with pytest.raises(UserError, match="both called 'seed-3'"):
        expand_checkpoints([seeds, seeds / "seed-3"])
    with pytest.raises(UserError, match="No checkpoint"):
        expand_checkpoints([])


def test_an_example_bank_gives_what_its_store_gives(lab):
    store = lab.evaluate(output=lab.folder / "by_store")
    made = embed_store(lab.folder / "head", lab.folder / "bank")
    bank = Bank.create(lab.folder / "examples", made.rows(), made.embeddings.embedding, fingerprint=made.fingerprint,
                       author="a", reason="r")  # fmt: skip
    bank.close()
    result = lab.evaluate(bank=lab.folder / "examples")
    assert result["metrics"] == store["metrics"]
    for meme, same in zip(*(read(lab, "evidence.json", place)["test"] for place in ("out", "by_store")), strict=True):
        assert [item["id"] for item in meme["neighbours"]] == [item["id"] for item in same["neighbours"]]
        assert meme["scores"]["rkc"] == pytest.approx(same["scores"]["rkc"], abs=1e-6)
    manifest = read_json(lab.folder / "out" / "ra_hmd.json")
    assert manifest.bank.version == 1
    lab.store("pool", lab.features(60, 6, "pool", domain=1.0))
    settings = {"update": lab.folder / "pool", "update_sizes": [8]}
    assert lab.evaluate(bank=lab.folder / "examples", **settings)["updates"] == lab.evaluate(**settings)["updates"]
    other = lab.head("other")
    head = load_head(other)
    save_head(other, head.config, {name: 2 * tensor for name, tensor in head.state_dict().items()})
    with pytest.raises(UserError, match="is not the one that embedded"):
        lab.evaluate(bank=lab.folder / "examples", checkpoint=other)


def test_an_example_bank_of_another_prompt_is_refused(lab):
    features = read_features(lab.folder / "bank")
    embedded = Embeddings.of(features, load_head(lab.folder / "head"))
    made = embed_store(lab.folder / "head", lab.folder / "bank")
    fingerprint = {"model": "z", HEAD_KEY: sha256_file(lab.folder / "head" / HEAD_WEIGHTS)}
    Bank.create(lab.folder / "examples", made.rows(), embedded.embedding, fingerprint=fingerprint, author="a",
                reason="r").close()  # fmt: skip
    with pytest.raises(UserError, match="model: 'z' in"):
        lab.evaluate(bank=lab.folder / "examples")


def test_abstention_is_reported_as_coverage(lab):
    result = lab.evaluate(min_similarity=0.75)
    found = read(lab, "analysis.json")["test"]["abstention"]["rkc"]
    lines = [json.loads(line) for line in (lab.folder / "out" / "predictions.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line["rkc_score"] != 0]
    assert 0 < found["abstained"] == 120 - len(rows) < 120
    assert found["coverage"]["value"] == pytest.approx(len(rows) / 120)
    labels, scores = (np.array([row[key] for row in rows]) for key in ("label", "rkc_score"))
    for name, value in classification_metrics(scores, labels, 0.0).items():
        assert found["answered"][name]["value"] == pytest.approx(value)
    assert any(f"RKC abstains on {found['abstained']} memes" in note for note in result["notes"])
    assert "similar enough for" in (lab.folder / "out" / "report.md").read_text()
    nothing = lab.evaluate(min_similarity=1.0)
    assert nothing["metrics"]["test"]["rkc"]["auroc"]["value"] == 0.5
    assert read(lab, "analysis.json")["test"]["calibration"]["rkc"] is None
    assert {meme["rkc_class"] for meme in read(lab, "evidence.json")["test"]} == {None}
    assert "| abstains | +0.000 |" in (lab.folder / "out" / "report.md").read_text()


def test_prior_correction_and_weights_reach_the_vote(lab):
    features = lab.features(200, 0, "bank")
    keep = np.r_[np.flatnonzero(features.labels == 0), np.flatnonzero(features.labels == 1)[:20]]
    lab.store("tilted", features.select(keep))
    settings = {"bank": lab.folder / "tilted", "bootstrap_samples": 0}
    for weights in ("mean", "similarity"):
        results = [lab.evaluate(**settings, weights=weights, prior_correction=prior) for prior in (False, True)]
        plain, corrected = (result["metrics"]["test"]["rkc"]["recall"]["value"] for result in results)
        assert corrected > plain


def test_the_command_line(lab):
    lab.store("dev", lab.features(80, 7, "dev"))
    words = ["evaluate", "--bootstrap-samples", "100"]
    for option, value in (("checkpoint", "head"), ("bank", "bank"), ("queries", "test"), ("output", "out")):
        words += [f"--{option}", str(lab.folder / value)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "--final" in refused.output
    words += ["--final", "--dev", str(lab.folder / "dev"), "--criterion", "accuracy", "--calibration", "isotonic"]
    words += ["--weights", "similarity", "--min-similarity", "0.1", "--prior-correction"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    manifest = read_json(lab.folder / "out" / "ra_hmd.json")
    assert (manifest.final, manifest.arguments.criterion, manifest.arguments.min_similarity) == (True, "accuracy", 0.1)
    (command,) = manifest.commands
    metrics = read(lab, "metrics.json")
    again = CliRunner().invoke(app, command.split()[1:])
    assert again.exit_code == 0, again.output
    assert read(lab, "metrics.json") == metrics, "the command that the report names gives the same"
    assert read_json(lab.folder / "out" / "ra_hmd.json").commands == [command]
