"""`evaluate` from stores and a head to metrics, evidence, update curve and report."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from json_files import read_json
from scipy.special import expit

from ra_hmd.core.artifacts import sha256_file, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.markdown import escape
from ra_hmd.core.problem import BINARY
from ra_hmd.evaluation.bank_update import nested_order
from ra_hmd.evaluation.metrics.classification import BINARY_METRICS, classification_metrics
from ra_hmd.evaluation.request import UPDATE_KEY
from ra_hmd.features.store import Features, read_features, write_features
from ra_hmd.models.head import HEAD_WEIGHTS, INITIAL_HEAD, HeadConfig, MemeHead, load_head
from ra_hmd.retrieval.embeddings import Embeddings, run_head
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.knn import search
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.kernel_classifier import fit_kernel_classifier


def test_metrics_are_those_of_the_heads(lab):
    result = lab.evaluate()
    test, bank = read_features(lab.folder / "test"), read_features(lab.folder / "bank")

    def embed(hidden):
        return np.maximum(np.concatenate([hidden, -hidden], axis=1), 0)

    expected = {
        "lmh": (test.lmh_score[:, 0], 0.5),
        "lrc": (expit(test.hidden[:, 0].astype(np.float64)), 0.5),
        "rkc": (Voting().vote(search(embed(test.hidden), embed(bank.hidden), 20), bank.labels).scores[:, 0], 0.0),
        "krr": (_kernel_scores(Embeddings(test.ids, test.labels, embed(test.hidden)),
                               Embeddings(bank.ids, bank.labels, embed(bank.hidden))), 0.0),
    }  # fmt: skip
    written = json.loads((lab.folder / "out" / "metrics.json").read_text())
    assert written == result["metrics"]
    assert list(written) == ["test"]
    assert list(written["test"]) == ["lmh", "lrc", "rkc", "krr"]
    for head, (scores, threshold) in expected.items():
        values = classification_metrics(scores, test.labels, threshold)
        assert list(written["test"][head]) == list(BINARY_METRICS)
        for metric, value in values.items():
            found = written["test"][head][metric]
            assert found["value"] == pytest.approx(value, abs=1e-6)
            assert found["low"] <= found["value"] <= found["high"]


@pytest.mark.renders
def test_everything_is_written(lab):
    lab.store("more", lab.features(80, 5, "more", domain=1.0))
    lab.store("pool", lab.features(100, 6, "pool", domain=1.0))
    result = lab.evaluate(
        queries=[lab.folder / "test", lab.folder / "more"], update=lab.folder / "pool", update_sizes=[8, 32]
    )
    output = lab.folder / "out"
    assert {path.name for path in output.iterdir()} == {
        "metrics.json", "evidence.json", "predictions.jsonl", "ra_hmd.json", "report.md",
        "analysis.json", "roc.png", "scores.png", "reliability.png", "abstention.png", "bank.png", "bank_update.png",
    }  # fmt: skip
    manifest = read_json(output / "ra_hmd.json")
    assert manifest.kind == "evaluation"
    assert manifest.head_sha256 == sha256_file(lab.folder / "head" / HEAD_WEIGHTS)
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 200
    assert set(rows[0]) == {"set", "id", "label", "lmh_score", "lrc_score", "rkc_score", "krr_score"}
    report = (output / "report.md").read_text()
    for text in (
        "K = 20",
        "seed 0",
        "ra-hmd evaluate --checkpoint",
        "memes added",
        "--update-sizes 8,32",
        "test0",
        "50 draws",
        "torch ",
    ):
        assert text in report, text
    assert result["report"] == str(output / "report.md")
    for image in re.findall(r"\]\((\w+\.png)\)", report):
        assert (output / image).read_bytes().startswith(b"\x89PNG")


def _kernel_scores(queries, bank):
    return fit_kernel_classifier(bank, BINARY, KernelSettings()).predict(queries).scores[:, 0]


def test_an_update_turns_the_bank_to_the_new_domain(lab):
    """In the other domain the class direction is turned around: only its own examples can help."""
    lab.store("other", lab.features(150, 5, "other", domain=1.0))
    lab.store("pool", lab.features(200, 6, "pool", domain=1.0))
    settings = {"queries": [lab.folder / "test", lab.folder / "other"], "update": lab.folder / "pool"}
    result = lab.evaluate(**settings, update_sizes=(128, 8, 32), bootstrap_samples=300)
    curve = result["updates"]["other"]
    assert [entry["added"] for entry in curve] == [0, 8, 32, 128]
    assert curve[0]["gain"] is None
    assert curve[0]["accuracy"] == result["metrics"]["other"]["rkc"]["accuracy"]
    assert curve[-1]["gain"]["low"] > 0
    assert curve[-1]["gain"]["value"] == pytest.approx(curve[-1]["accuracy"]["value"] - curve[0]["accuracy"]["value"])
    assert curve[-1]["auroc"]["value"] > 0.9
    assert curve[0]["krr"]["auroc"] == result["metrics"]["other"]["krr"]["auroc"]
    assert curve[-1]["krr"]["auroc_gain"]["low"] > 0
    assert json.loads((lab.folder / "out" / "metrics.json").read_text())[UPDATE_KEY]["other"] == curve
    assert lab.evaluate(**settings, update_sizes=(8, 32, 128), bootstrap_samples=300) == result


def test_several_draws_of_an_update_are_averaged(lab):
    lab.store("pool", lab.features(200, 6, "pool", domain=1.0))
    settings = {"update": lab.folder / "pool", "update_sizes": (8,), "bootstrap_samples": 0}
    single = [lab.evaluate(**settings, seed=seed)["updates"]["test"] for seed in (3, 4)]
    both = lab.evaluate(**settings, seed=3, update_draws=2)["updates"]["test"]
    assert both[0] == single[0][0]
    for one, *others in ((curve[1] for curve in (both, *single)), (curve[1]["krr"] for curve in (both, *single))):
        for metric in ("accuracy", "auroc", "gain", "auroc_gain"):
            values = [other[metric]["value"] for other in others]
            assert one[metric]["value"] == pytest.approx(np.mean(values))
        assert one["auroc"]["std"] == pytest.approx(np.std([other["auroc"]["value"] for other in others], ddof=1))
    assert "means over 2 draws, seeds 3 to 4" in (lab.folder / "out" / "report.md").read_text()


def test_the_report_says_what_each_view_gives(lab):
    for name, seed in (("bank", 1), ("test", 2)):
        features = read_features(lab.folder / name)
        clear = features.labels[:, None] + np.random.default_rng(seed).normal(0, 0.1, (len(features), 3))
        stated = {"clear": {"width": 3, "seconds": 0.002, "fingerprint": {"model": "one"}}}
        features = replace(features, views={"clear": clear.astype(np.float32)})
        write_features(lab.folder / "viewed" / name, features, features.manifest.fingerprint, views=stated)
    settings = {"bank": lab.folder / "viewed/bank", "queries": lab.folder / "viewed/test", "bootstrap_samples": 0}
    plain = lab.evaluate(**settings)["metrics"]["test"]
    mixed = lab.evaluate(**settings, views=("embedding", "clear"))["metrics"]["test"]
    assert mixed["rkc"] == plain["rkc"]
    assert mixed["krr"]["auroc"]["value"] == 1 > plain["krr"]["auroc"]["value"]
    choices = json.loads((lab.folder / "out" / "ra_hmd.json").read_text())["kernel"]["choices"]
    assert [choice["views"] for choice in choices] == [["embedding"], ["hidden"], ["clear"], ["embedding", "clear"]]
    assert choices[0]["sets"]["test"]["auroc"] == pytest.approx(plain["krr"]["auroc"]["value"])
    assert choices[3]["sets"]["test"]["auroc"] == pytest.approx(mixed["krr"]["auroc"]["value"])
    assert choices[2]["loss"] < choices[0]["loss"]
    report = (lab.folder / "out" / "report.md").read_text()
    assert "what each view gives" in report
    assert "| 3 | 12 |" in report
    with pytest.raises(UserError, match="'untuned'"):
        lab.evaluate(**settings, views=("untuned",))


def test_samples_of_an_update_are_nested_balanced_and_seeded():
    labels = np.array([0] * 70 + [1] * 30)
    order = nested_order(labels, 3)
    assert len(order) == 60
    assert len(set(order.tolist())) == 60
    for size in (2, 8, 32, 60):
        assert labels[order[:size]].sum() == size // 2
    assert np.array_equal(order, nested_order(labels, 3))
    assert not np.array_equal(order, nested_order(labels, 4))


def test_a_query_in_the_bank_does_not_vote_for_itself(lab):
    """Evaluating the bank on itself is leave-one-out: labels that are noise must not be predictable."""
    noise = lab.features(200, 0, "bank")
    noise = Features(noise.ids, np.random.default_rng(7).permutation(noise.labels), noise.hidden)
    lab.store("noise", noise)
    result = lab.evaluate(bank=lab.folder / "noise", queries=[lab.folder / "noise"], topk=1)
    assert abs(result["metrics"]["noise"]["rkc"]["accuracy"]["value"] - 0.5) < 0.12
    assert any("200 query ids are also in the bank" in note for note in result["notes"])


def test_evidence_adds_up_to_the_score(lab):
    lab.evaluate(topk=7)
    memes = json.loads((lab.folder / "out" / "evidence.json").read_text())["test"]
    assert [meme["id"] for meme in memes] == [f"test{row}" for row in range(5)]
    bank = read_features(lab.folder / "bank")
    labels = dict(zip(bank.ids, bank.labels.tolist(), strict=True))
    for meme in memes:
        near = meme["neighbours"]
        assert len(near) == 7
        assert sum(item["vote"] for item in near) == pytest.approx(meme["scores"]["rkc"])
        assert sum(item["share"] for item in near) == pytest.approx(1)
        assert all(item["label"] == labels[item["id"]] for item in near)
        assert [item["similarity"] for item in near] == sorted((item["similarity"] for item in near), reverse=True)


def test_without_lmh_scores_the_head_is_left_out_and_said_so(lab):
    lab.store("plain", lab.features(40, 2, "plain", lmh=False))
    result = lab.evaluate(queries=[lab.folder / "plain", lab.folder / "test"])
    assert list(result["metrics"]["plain"]) == ["lrc", "rkc", "krr"]
    assert list(result["metrics"]["test"]) == ["lmh", "lrc", "rkc", "krr"]
    assert "plain: LMH is left out" in result["notes"][0]
    assert "no scores in the store" in (lab.folder / "out" / "report.md").read_text()


def test_one_class_only(lab):
    features = lab.features(20, 2, "one")
    lab.store("ones", Features(features.ids, np.ones(20, int), features.hidden))
    result = lab.evaluate(queries=[lab.folder / "ones"])
    assert result["metrics"]["ones"]["rkc"]["auroc"] == {"value": None, "low": None, "high": None}
    assert any("AUROC is undefined" in note for note in result["notes"])


@pytest.mark.renders
def test_before_and_after_stage_2(lab):
    """A Stage 2 folder brings the head that it started from; any other may be named."""
    pictures = {}
    lab.evaluate()
    pictures["alone"] = (lab.folder / "out" / "bank.png").read_bytes()
    assert read_json(lab.folder / "out" / "ra_hmd.json").arguments.before is None
    lab.evaluate(before=lab.head("earlier", proj_dim=7, num_layers=3))
    pictures["named"] = (lab.folder / "out" / "bank.png").read_bytes()
    lab.head(f"head/{INITIAL_HEAD}")
    lab.evaluate()
    pictures["found"] = (lab.folder / "out" / "bank.png").read_bytes()
    assert read_json(lab.folder / "out" / "ra_hmd.json").arguments.before.endswith(INITIAL_HEAD)
    assert len(set(pictures.values())) == 3
    with pytest.raises(UserError, match="size 5"):
        lab.evaluate(before=lab.head("narrow", input_dim=5))


def test_batch_size_does_not_matter(lab):
    head, hidden = load_head(lab.folder / "head"), torch.randn(33, 12)
    whole = run_head(head, hidden)
    for size in (1, 8, 32):
        for a, b in zip(whole, run_head(head, hidden, size), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_run_head_uses_evaluation_mode_and_restores_training():
    head = MemeHead(HeadConfig(input_dim=4, proj_dim=8, dropout=(0.5,))).train()
    hidden = torch.randn(6, 4)
    first, second = (run_head(head, hidden) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert not first[0].requires_grad
    assert head.training


def change(features, **fields):
    return Features(**{name: getattr(features, name) for name in ("ids", "labels", "hidden")} | fields)


def test_what_does_not_belong_together_is_refused(lab):
    plain = lab.features(20, 3, "x")
    cases = {
        "wide": (change(plain, hidden=np.ones((20, 5), np.float32)), {}, r"takes hidden states of size 12.*have 5"),
        "prompt": (plain, {"inputs.prompt_template": "?"}, "inputs.prompt_template: '<image> {text}"),
        "adapter": (plain, {"adapter": None}, "adapter: 'aaa.* in .*bank, None in .*adapter"),
        "missing": (change(plain, labels=np.r_[-1, np.ones(19, int)]), {}, "1 of 20 rows have no label"),
        "three": (change(plain, labels=np.arange(20) % 3), {}, r"labels \[2\]; classes 0 and 1"),
        "lmh": (change(plain, lmh_score=np.full((20, 1), np.nan)), {}, "LMH scores that are not finite"),
    }
    for name, (features, fingerprint, message) in cases.items():
        with pytest.raises(UserError, match=message):
            lab.evaluate(queries=[lab.store(name, features, **fingerprint)])


def test_other_data_dtype_and_head_are_no_mismatch(lab):
    lab.store("fine", lab.features(20, 3, "x"), dtype="float32", head="other", data="d")
    lab.evaluate(queries=[lab.folder / "fine"])


def test_a_head_of_another_adapter_or_stage_2_run_is_refused(lab):
    stage2 = lab.head("stage2")
    write_json(
        stage2 / "ra_hmd.json", {"kind": "stage2", "features": {"train": {"fingerprint": {"model": "z", "data": "t"}}}}
    )
    with pytest.raises(UserError, match=r"model: 'z' in .*stage2, 'mmm"):
        lab.evaluate(checkpoint=stage2)
    stage1 = lab.head("stage1")
    (stage1 / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"adapter: '[0-9a-f]+.* in .*stage1"):
        lab.evaluate(checkpoint=stage1)
    with pytest.raises(UserError, match="has one output, not 3"):
        lab.evaluate(checkpoint=lab.head("many", output_dim=3))
    with pytest.raises(UserError, match="has no trained head"):
        lab.evaluate(checkpoint=lab.folder / "bank")


def test_a_leak_or_a_bad_size_is_refused(lab):
    pool = lab.features(50, 6, "pool")
    pool.ids[3] = "test7"
    lab.store("leak", pool)
    with pytest.raises(UserError, match=r"1 ids are also in query set 'test', for example \['test7'\]"):
        lab.evaluate(update=lab.folder / "leak", update_sizes=[8])
    lab.store("pool", lab.features(50, 6, "pool"))
    with pytest.raises(UserError, match=r"(?s)size 0 is not.*size 64 is more than the 50"):
        lab.evaluate(update=lab.folder / "pool", update_sizes=[8, 0, 64])
    with pytest.raises(UserError, match="no size is given"):
        lab.evaluate(update=lab.folder / "pool")
    lab.store("one", change(lab.features(20, 2, "one"), labels=np.ones(20, int)))
    with pytest.raises(UserError, match="one class only"):
        lab.evaluate(update=lab.folder / "one", update_sizes=[8])


def test_names_settings_and_outputs_are_checked(lab):
    lab.store("a/test", lab.features(10, 2, "t"))
    with pytest.raises(UserError, match="both called 'test'"):
        lab.evaluate(queries=[lab.folder / "test", lab.folder / "a" / "test"])
    with pytest.raises(UserError, match="No query set"):
        lab.evaluate(queries=[])
    with pytest.raises(UserError, match="cannot be called 'bank_update'"):
        lab.evaluate(queries=[lab.store(UPDATE_KEY, lab.features(10, 2, "t"))])
    with pytest.raises(UserError, match=r"(?s)topk is 0.*weights 'flat' are unknown"):
        lab.evaluate(topk=0, weights="flat")
    with pytest.raises(UserError, match="bootstrap_samples is -1"):
        lab.evaluate(bootstrap_samples=-1)
    with pytest.raises(UserError, match="holds a feature store"):
        lab.evaluate(output=lab.folder / "bank")
    write_json(lab.folder / "head" / "ra_hmd.json", {"kind": "stage1"})
    with pytest.raises(UserError, match="holds a 'stage1' run"):
        lab.evaluate(output=lab.folder / "head")


@pytest.mark.renders
def test_markdown_shows_names_as_they_are(lab):
    assert escape("a|b_c*d\n<i>`x`") == r"a\|b\_c\*d \<i\>\`x\`"
    features = lab.features(10, 2, "x|y_*<b>")
    lab.store("odd|na_me", features)
    lab.evaluate(queries=[lab.folder / "odd|na_me"], commands=["echo ```", "ra-hmd demo"])
    report = (lab.folder / "out" / "report.md").read_text()
    assert "### odd\\|na\\_me" in report
    assert r"x\|y\_\*\<b\>0" in report
    assert "````sh\necho ```\nra-hmd demo\n````" in report
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) > 2 for line in tables)


def test_stage2_is_not_imported_by_the_library():
    code = "import ra_hmd.evaluation.evaluate, sys; sys.exit('stage2' in sys.modules or 'llamafactory' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_resamples_no_intervals(lab):
    result = lab.evaluate(bootstrap_samples=0)
    assert result["metrics"]["test"]["rkc"]["accuracy"]["low"] is None
    assert "–" not in (lab.folder / "out" / "report.md").read_text().split("## Figures")[0]
