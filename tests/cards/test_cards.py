"""Cards: they say what was recorded, number for number, and nothing else; the hub can read them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from json_files import read_json
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from ra_hmd.cards.build import make_card
from ra_hmd.cards.evaluation_results import limits, read_report
from ra_hmd.cards.model_index import eval_results
from ra_hmd.cards.render import TO_FILL_IN, CardMetadata, Markdown, _shown, short
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.data.meme_files import read_memes
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate

pytestmark = pytest.mark.slow


def ra_hmd(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"
    return done.output


@pytest.fixture(scope="module")
def lab(stage1_run: Path, memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stage 2 output with thresholds, an evaluation, a bank with a history, an import; a probe on a tiny CLIP."""
    folder = tmp_path_factory.mktemp("cards")
    ra_hmd("tiny-encoder", "--family", "clip", "--output", folder / "clip")
    for split in ("train", "dev", "test"):
        common = ["--data", memes / "a", "--split", split, "--workers", "0", "--output"]
        ra_hmd("extract", "--checkpoint", stage1_run, *common, folder / "features" / split)
        ra_hmd("encode", "--encoder", folder / "clip", "--features", "projected", *common, folder / "encoded" / split)
    (folder / "stage2.yaml").write_text(f"init_head: {stage1_run}\nepochs: 1\nlr: 1.0e-3\n")
    stores = folder / "features"
    ra_hmd("stage2", folder / "stage2.yaml", f"train={stores}/train", f"dev={stores}/dev", f"output_dir={folder}/run")
    ra_hmd("evaluate", "--checkpoint", folder / "run", "--bank", stores / "train", "--queries", stores / "test",
           "--dev", stores / "dev", "--output", folder / "evaluation", "--bootstrap-samples", "100",
           "--final")  # fmt: skip
    ra_hmd("linear-probe", "--train", folder / "encoded" / "train", "--output", folder / "probe")
    ra_hmd("zero-shot", "--encoder", folder / "clip", "--output", folder / "zero")
    ra_hmd("bank", "create", folder / "bank", "--checkpoint", folder / "run", "--features", stores / "train",
           "--reason", "a first reason", "--author", "Jo Doe")  # fmt: skip
    ra_hmd("bank", "remove", folder / "bank", "a00003", "--reason", "a second reason", "--author", "Max Roe")
    ra_hmd("data", "import", "generic", memes / "a", "--output", folder / "imported")
    return folder


def card_of(source: Path, output: Path, *words: str | Path) -> str:
    """A card by the command; the count that it prints is that of the lines."""
    printed = ra_hmd("card", source, "--output", output, *words)
    text = (output / "README.md").read_text()
    assert f"{text.count(TO_FILL_IN)} lines are left" in printed
    assert text.count(TO_FILL_IN) == len(re.findall(rf"^\*\*{TO_FILL_IN} [A-Z' ]+:\*\* \S.*\.$", text, re.MULTILINE))
    assert not re.search(r"\{\{|\{%|None|Undefined|\n\n\n", text)
    return text


def test_stage1_card_replaces_the_trainers(stage1_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.symlink_to(stage1_run)
    assert "generated automatically" in (run / "README.md").read_text()
    text = card_of(run, tmp_path / "card")
    manifest = read_json(run / "ra_hmd.json")
    data = ModelCard.load(tmp_path / "card" / "README.md").data
    assert data.license == "other"
    assert data.library_name == "ra-hmd"
    assert {"hateful-meme-detection", "stage1", "lora"} <= set(data.tags)
    assert data.base_model is None  # a folder is no name on the hub
    for said in ("Not measured", manifest.base_model.fingerprint, manifest.data.train.fingerprint, "0: 14, 1: 18",
                 "| learning_rate | 0.002 |", "| seed | 7 |", "| lora_rank | 8 |", manifest.inputs.prompt_template,
                 manifest.versions.transformers, "No choice is stored", "confounders_a_dev"):  # fmt: skip
        assert said in text
    assert "token" not in "".join(re.findall(r"^\| (\S+) \|", text, re.MULTILINE))
    assert str(Path(manifest.base_model.path).parent) not in text


def test_stage2_card_has_the_evaluations_numbers(lab: Path, tmp_path: Path) -> None:
    text = card_of(lab / "run", tmp_path, "--report", lab / "evaluation", "--name", "Harmless example", "--license",
                   "apache-2.0", "--language", "en")  # fmt: skip
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.language, data.model_name) == ("apache-2.0", ["en"], "Harmless example")
    (scores,) = read_json(lab / "evaluation" / "metrics.json").values()
    assert set(scores) == {"lmh", "lrc", "rkc", "krr"}
    for head, metrics in scores.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {head.upper()} ") and "[" in line]
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        assert cells[: len(metrics)] == [format_estimate(value) for value in metrics.values()]
        assert re.fullmatch(r"chosen on …/dev for macro_f1 \([-\d., e]+\)", cells[-1])
    (header,) = [line for line in text.splitlines() if line.startswith("| head | accuracy")]
    assert [cell.strip() for cell in header.split("|")[2:-3]] == [METRIC_NAMES[key] for key in scores["lrc"]]
    decision = read_json(lab / "run" / "decision.json")
    assert f"{decision.heads.lrc.thresholds[0]:.4g}" in text
    manifest = read_json(lab / "evaluation" / "ra_hmd.json")
    for said in ("### a, split test", "24 memes", "bank a, split train", "K = 20", "opened 0 times before",
                 manifest.bank.sha256, "| batch_size | 64 |"):  # fmt: skip
        assert said in text
    assert read_json(lab / "run" / "ra_hmd.json").features.dev.fingerprint.data in text
    assert "Not measured" not in text


def test_the_hub_reads_the_evaluations_numbers_in_the_metadata(lab: Path, tmp_path: Path) -> None:
    """`model-index`: what the hub's own library reads is each number of the report, and what was written."""
    card_of(lab / "run", tmp_path, "--report", lab / "evaluation", "--name", "Harmless example")
    name, found = model_index_to_eval_results(metadata_load(tmp_path / "README.md")["model-index"])
    (report,) = read_report(
        lab / "evaluation", read_json(lab / "evaluation" / "ra_hmd.json").head_sha256, Problem("binary")
    )
    assert (name, found) == ("Harmless example", eval_results([report]))
    (scores,) = read_json(lab / "evaluation" / "metrics.json").values()
    measured = [value for values in scores.values() for value in values.values() if value.value is not None]
    assert [one.metric_value for one in found] == [value.value for value in measured]
    of = {(one.dataset_type, one.dataset_name, one.dataset_split) for one in found}
    assert of == {("a", "a, split test", "test")}
    auroc = scores["rkc"]["auroc"]
    (one,) = [one for one in found if one.metric_type == "roc_auc" and "RKC" in one.metric_name]
    assert one.metric_name.endswith(f"(95 % interval {auroc.low:.3f} to {auroc.high:.3f})")


def test_without_an_evaluation_the_metadata_have_no_results(lab: Path, tmp_path: Path) -> None:
    card_of(lab / "run", tmp_path)
    assert "model-index" not in metadata_load(tmp_path / "README.md")


def test_values_that_there_are_none_of_are_left_out() -> None:
    unknown = {"value": None, "low": None, "high": None, "why": "one class"}
    plain = {"value": 0.5, "low": None, "high": None}
    entry = {"dataset": "my memes/…", "title": "my memes", "task": None, "split": "test"}
    (found,) = eval_results([entry | {"scores": {"lrc": {"auroc": unknown, "macro_f1": plain}}}])
    assert (found.metric_type, found.metric_args, found.metric_value) == ("f1", {"average": "macro"}, 0.5)
    assert (found.dataset_type, found.metric_name) == ("my-memes", "macro-F1 of LRC (logistic regression)")
    assert not eval_results([entry | {"scores": {"lrc": {"auroc": unknown}}}])


def test_reports_of_others_are_refused(lab: Path, stage1_run: Path, tmp_path: Path) -> None:
    manifest = read_json(lab / "evaluation" / "ra_hmd.json")
    other = tmp_path / "other"
    other.mkdir()
    (other / "ra_hmd.json").write_text(json.dumps(manifest | {"head_sha256": "0" * 64}))
    with pytest.raises(UserError, match="other weights"):
        make_card(lab / "run", tmp_path / "card", reports=[other])
    (other / "ra_hmd.json").write_text(json.dumps({"kind": "evaluation", "runs": {"one": {}, "two": {}}}))
    with pytest.raises(UserError, match=r"several heads; give the one of this head: .*other/one, .*other/two"):
        make_card(lab / "run", tmp_path / "card", reports=[other])
    (other / "ra_hmd.json").write_text(json.dumps({"kind": "evaluation", "in_context": {"format": 1}}))
    with pytest.raises(UserError, match="where no head takes part"):
        make_card(lab / "run", tmp_path / "card", reports=[other])
    with pytest.raises(UserError, match="of kind 'stage1'.*give a folder of `ra-hmd evaluate`"):
        make_card(lab / "run", tmp_path / "card", reports=[stage1_run])
    with pytest.raises(UserError, match="is a data set"):
        make_card(lab / "imported", tmp_path / "card", reports=[other])
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize(("name", "said"), [("probe", "| c | 1.0 |"), ("zero", "The sentences:")])
def test_heads_on_an_encoder(lab: Path, name: str, said: str, tmp_path: Path) -> None:
    text = card_of(lab / name, tmp_path)
    assert said in text
    assert " 1 linear layer on" in text
    assert "an image–text encoder" in text
    assert read_json(lab / name / "ra_hmd.json").features.train.fingerprint.model in text
    assert ModelCard.load(tmp_path / "README.md").data.tags[-1] == {"probe": "linear-probe", "zero": "zero-shot"}[name]


def test_a_model_of_the_hub_is_named_in_the_metadata(lab: Path, tmp_path: Path) -> None:
    manifest = read_json(lab / "run" / "ra_hmd.json")
    manifest.base_model.path = "Qwen/Qwen2-VL-7B-Instruct"
    manifest.base_model.fingerprint = "hub:Qwen/Qwen2-VL-7B-Instruct"  # as `fingerprint_model` has it
    for name in ("head.json", "head.safetensors"):
        (tmp_path / name).write_bytes((lab / "run" / name).read_bytes())
    (tmp_path / "ra_hmd.json").write_text(json.dumps(manifest))
    text = card_of(tmp_path, tmp_path / "card")
    assert ModelCard.load(tmp_path / "card" / "README.md").data.base_model == "Qwen/Qwen2-VL-7B-Instruct"
    assert "where the model underneath can be had" not in text


def test_imported_official_checkpoint(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base, official = tiny("qwen2_vl"), tmp_path / "official"
    model = AutoModelForImageTextToText.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(official)
    layers = {"mlp.0": (8, 64), "output_layer": (1, 8)}
    state = {f"{name}.weight": torch.ones(shape) for name, shape in layers.items()}
    torch.save(state | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()},
               official / "classifier.bin")  # fmt: skip
    ra_hmd("import-official", official, "--base-model", base, "--output", tmp_path / "run")
    text = card_of(tmp_path / "run", tmp_path / "card")
    assert "official RA-HMD code" in text
    assert text.count("- Assumed: ") == 3
    assert "settings and seeds of the official training" in text
    assert "the training data: data set, release" in text


def test_data_sheet_counts_and_shows_no_content(lab: Path, memes: Path, tmp_path: Path) -> None:
    text = card_of(lab / "imported", tmp_path, "--name", "Drawn animals")
    captions = {meme.text for split in ("train", "dev", "test") for meme in read_memes(memes / "a" / f"{split}.jsonl")}
    assert not [caption for caption in captions if caption in text]
    reasons = read_json(lab / "imported" / "dataset.json").reasons
    assert reasons
    assert not [reason for reason in reasons if reason in text]  # they quote the data
    for said in ("| dev | 16 | 16 | 0 | 0 |", "| of no split | – | – | – | 136 |", "| 1: hateful | 8 | 12 | 48 |",
                 "not measured (`ra-hmd data check`)", read_json(lab / "imported" / "dataset.json").fingerprint,
                 "Left out by the import: 136 rows"):  # fmt: skip
        assert said in text
    data = DatasetCard.load(tmp_path / "README.md").data
    assert (data.size_categories, data.pretty_name) == (["n<1K"], "Drawn animals")
    assert CliRunner().invoke(app, ["data", "check", str(lab / "imported"), "--workers", "1"]).exit_code == 0
    text = card_of(lab / "imported", tmp_path / "checked")
    assert "| warning | rejected_row | 136 |" in text
    assert not [caption for caption in captions if caption in text]


def test_bank_sheet_has_the_history_and_no_names(lab: Path) -> None:
    text = card_of(lab / "bank", lab / "bank")  # in its own folder, which stays a bank
    assert "95 memes" in text
    assert re.search(r"^\| 2 \| \S+ \| remove \| 0 \| 1 \| 0 \| 0 \| 95 \|$", text, re.MULTILINE)
    assert "2 authors" in text
    for word in ("Jo Doe", "Max Roe", "a first reason", "a second reason", "a00003", str(lab)):
        assert word not in text
    info = json.loads(ra_hmd("bank", "info", lab / "bank", "--json"))
    assert info["fingerprint"]["embedding_head"] in text
    assert info["rows"] == 95
    assert DatasetCard.load(lab / "bank" / "README.md").data.tags == ["hateful-meme-detection", "retrieval-bank"]


def test_what_somebody_filled_in_is_kept(lab: Path, tmp_path: Path) -> None:
    card = make_card(lab / "run", tmp_path)
    before = card.path.read_text()
    card.path.write_text("filled in")
    with pytest.raises(UserError, match="give another --output, or --overwrite"):
        make_card(lab / "run", tmp_path)
    assert card.path.read_text() == "filled in"
    assert make_card(lab / "run", tmp_path, overwrite=True).path.read_text() == before


def test_folders_without_a_card(lab: Path, tmp_path: Path) -> None:
    for folder, said in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "has neither ra_hmd.json nor dataset.json"),
        (lab / "evaluation", "holds 'evaluation'"),
    ):
        with pytest.raises(UserError, match=said):
            make_card(folder)
    (tmp_path / "ra_hmd.json").write_text('{"kind": "stage2_seeds"}')
    with pytest.raises(UserError, match="give the folder of one of them"):
        make_card(tmp_path)
    (tmp_path / "ra_hmd.json").unlink()
    for name in ("head.json", "head.safetensors"):
        (tmp_path / name).write_bytes((lab / "run" / name).read_bytes())
    with pytest.raises(UserError, match=r"has a head and no ra_hmd\.json"):
        make_card(tmp_path)


def test_what_a_user_says_cannot_break_the_page(lab: Path, tmp_path: Path) -> None:
    name = 'A "name": # with | <b>and</b> [x](y)\n---'
    card = make_card(lab / "run", tmp_path, stated=CardMetadata(name=name, languages=("en", "no")))
    text = card.path.read_text()
    (metadata, page) = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    assert yaml.safe_load(metadata)["model_name"] == name
    assert yaml.safe_load(metadata)["language"] == ["en", "no"]  # which YAML 1.1 takes for False
    assert "<b>" not in page
    assert "[x](y)" not in page


def test_metadata_that_the_hub_cannot_read_are_refused() -> None:
    for licence in ("Apache 2.0", "", "mit\nx: y"):
        with pytest.raises(UserError, match="no name that the hub knows"):
            CardMetadata(licence=licence)
    with pytest.raises(UserError, match="'english'"):
        CardMetadata(languages=("en", "zh-Hant", "english"))


def test_escapes_and_paths() -> None:
    assert _shown("2.0 and RA-HMD, qwen2_vl") == "2.0 and RA-HMD, qwen2_vl"
    assert _shown("1. a list") == r"1\. a list"
    assert _shown("a *b* | c") == r"a \*b\* \| c"
    assert _shown("_b_") == r"\_b\_"
    assert _shown(Markdown("a *b*")) == "a *b*"
    assert short("/home/jo/runs/one: kept (/home/jo/two)") == "…/one: kept (…/two)"
    assert short("features/train and http://milvus:19530/x#y") == "features/train and http://milvus:19530/x#y"


def test_thresholds_of_several_classes_are_told_shortly() -> None:
    assert limits([0.5264230], Problem()) == "0.5264"
    assert limits([0.5] * 22, Problem("multi_label", 22)) == "0.5 for each class"
    assert limits([0.5, 0.25], Problem("multi_label", 2)) == "0.5, 0.25"
    assert "highest score" in limits([0.5, 0.5], Problem("single_label", 2))
