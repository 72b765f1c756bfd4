"""`ra-hmd in-context` on a trained tiny Qwen2-VL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import BIN, run
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.data.images import load_image
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.synthetic.confounders import make_confounders
from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.head import load_head
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.retrieval.embeddings import Embeddings

pytestmark = pytest.mark.slow

LIMIT = 80  # more than a part


def ra_hmd(*words: str | Path | int, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, f"{words}\n{done.output}\n{done.exception!r}"
    return done.output


def copy_rows(source: Path, target: Path, count: int) -> None:
    """The first rows of a file of synthetic memes, with absolute paths."""
    rows = [json.loads(line) for line in source.read_text().splitlines()[:count]]
    for row in rows:
        row["img"] = str(source.parent / row["img"])
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def lab(stage1_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of its own, with stores of train and dev."""
    folder = tmp_path_factory.mktemp("in_context")
    shutil.copytree(stage1_run, folder / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    make_confounders(folder / "synthetic", size=480, seed=1)
    for split, count in (("train", 120), ("dev", LIMIT)):
        copy_rows(folder / "synthetic" / "a" / f"{split}.jsonl", folder / f"{split}.jsonl", count)
        ra_hmd("extract", "--checkpoint", folder / "run", "--data", folder, "--split", split, "--workers", 0,
               "--output", folder / "features" / split)  # fmt: skip
    return folder


def words(lab: Path, output: Path, **options: Any) -> list[str]:
    asked = {
        "checkpoint": lab / "run",
        "data": lab,
        "split": "dev",
        "bank-features": lab / "features" / "train",
        "query-features": lab / "features" / "dev",
        "batch-size": 8,
        "output": output,
    } | options
    found = ["in-context"]
    for name, value in asked.items():
        found += [] if value is None else [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return found


def predictions(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two_shots(lab: Path) -> Path:
    ra_hmd(*words(lab, lab / "two", shots=2))
    return lab / "two"


def test_without_demonstrations_it_is_the_lmh(lab: Path, tmp_path: Path) -> None:
    ra_hmd(*words(lab, tmp_path / "out", shots=0))
    store = read_features(lab / "features" / "dev")
    found = predictions(tmp_path / "out")
    assert [row["id"] for row in found] == store.ids
    np.testing.assert_allclose([row["lmh_score"] for row in found], store.lmh_score[:, 0], atol=1e-4)
    assert len({round(row["lmh_score"], 5) for row in found}) > LIMIT // 4
    manifest = json.loads((tmp_path / "out" / "ra_hmd.json").read_text())
    assert manifest["system"]["name"].endswith("in context (no shots)")
    assert manifest["examples"] is None


def test_a_caption_that_training_shortened_is_shortened_here(lab: Path, tmp_path: Path) -> None:
    row = json.loads((lab / "dev.jsonl").read_text().splitlines()[0])
    (tmp_path / "dev.jsonl").write_text(json.dumps(row | {"text": "a cake and a cat " * 60}) + "\n" + json.dumps(row
                                        | {"id": "other", "label": 1 - row["label"]}) + "\n")  # fmt: skip
    ra_hmd("extract", "--checkpoint", lab / "run", "--data", tmp_path, "--split", "dev", "--workers", 0, "--output",
           tmp_path / "store")  # fmt: skip
    ra_hmd(*words(lab, tmp_path / "out", data=tmp_path, shots=0))
    expected = read_features(tmp_path / "store").lmh_score[:, 0]
    np.testing.assert_allclose([row["lmh_score"] for row in predictions(tmp_path / "out")], expected, atol=1e-4)


def test_it_shows_the_nearest_with_question_and_answer_of_training(lab: Path, two_shots: Path) -> None:
    found = predictions(two_shots)
    model = MemeModel(open_run(lab / "run"), "cpu")  # type: ignore[arg-type]
    head = load_head(lab / "run")
    embedded = {split: Embeddings.of(read_features(lab / "features" / split), head) for split in ("train", "dev")}
    hashes = {split: read_features(lab / "features" / split).image_hashes for split in ("train", "dev")}
    known = {split: {meme.id: meme for meme in read_memes(lab / f"{split}.jsonl")} for split in ("train", "dev")}
    units = {split: one.embedding / np.linalg.norm(one.embedding, axis=1, keepdims=True)
             for split, one in embedded.items()}  # fmt: skip
    for row in (0, 7, 70):
        cosine = units["train"] @ units["dev"][row]
        cosine[(hashes["train"] == hashes["dev"][row]) & (hashes["train"] != 0)] = -2
        names = found[row]["demonstrations"]
        places = [embedded["train"].ids.index(name) for name in names]
        best = np.sort(cosine)[-2:]
        np.testing.assert_allclose(cosine[places], best, atol=1e-6)
        shown = [known["train"][name] for name in names]
        turns, pictures = [], []
        for meme in [*shown, known["dev"][found[row]["id"]]]:
            text = f'<image> This is an image with: "{meme.text}" written on it. Is it hateful?'
            answer = ("No. It is not a hateful meme.", "Yes. It is a hateful meme.")[meme.label]
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            pictures.append(load_image(meme.image))
        expected = ChatModel(model).answer_probs([Chat(turns[:-1], pictures)], model.run.settings.expected_answers)
        assert found[row]["lmh_score"] == pytest.approx(expected[0, 1], abs=1e-4)
    manifest = json.loads((two_shots / "ra_hmd.json").read_text())
    assert manifest["longest_prompt"] > 3 * 20
    assert manifest["demonstrations"]["similarity"] > 0


def _pairs(value: Any) -> list[dict[str, Any]]:
    """All comparisons in a JSON value."""
    if isinstance(value, dict) and "mcnemar" in value:
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [pair for one in inner for pair in _pairs(one)]


def test_evaluate_and_results_read_it(lab: Path, two_shots: Path, tmp_path: Path) -> None:
    metrics = json.loads((two_shots / "metrics.json").read_text())["dev"]["lmh"]
    rows = predictions(two_shots)
    right = [(row["lmh_score"] >= 0.5) == row["label"] for row in rows]
    assert metrics["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert metrics["accuracy"]["low"] <= np.mean(right) <= metrics["accuracy"]["high"]
    ra_hmd("results", two_shots, "--output", tmp_path / "alone.md")
    evaluate(lab / "run", lab / "features" / "train", [lab / "features" / "dev"], lab / "evaluation",
             bootstrap_samples=50, compare=[two_shots])  # fmt: skip
    analysis = json.loads((lab / "evaluation" / "analysis.json").read_text())
    named = f"LMH of {two_shots}"
    (pair,) = [pair for pair in _pairs(analysis) if named in (pair["first"], pair["second"])]
    assert pair["memes"] == LIMIT
    alone = json.loads((lab / "evaluation" / "metrics.json").read_text())["dev"]["lmh"]["auroc"]["value"]
    assert pair["difference"]["auroc"]["value"] == pytest.approx(alone - metrics["auroc"]["value"])
    refused = ra_hmd(*words(lab, lab / "evaluation", shots=0), code=2)
    assert "holds an evaluation of another command" in refused
    ra_hmd("results", two_shots, lab / "evaluation", "--output", tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text().replace("\\", "")
    assert "in context (2 shots, retrieved)" in page


def test_settings_change_what_is_shown(lab: Path, tmp_path: Path) -> None:
    ra_hmd(*words(lab, tmp_path / "out", shots=1, limit=6, demonstrations="random", answer=None, **{
        "per-class": True, "bank-features": None, "query-features": None, "seed": 3}), "--answer", "No", "--answer",
        "Yes")  # fmt: skip
    labels = {meme.id: meme.label for meme in read_memes(lab / "train.jsonl")}
    for row in predictions(tmp_path / "out"):
        assert sorted(labels[name] for name in row["demonstrations"]) == [0, 1]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "No / Yes" in report
    assert "1 per class, random" in report
    for split in ("train", "dev"):
        ra_hmd("extract", "--checkpoint", lab / "run", "--backbone-only", "--data", lab, "--split", split, "--workers",
               0, "--output", tmp_path / split)  # fmt: skip
    bare = {"backbone-only": True, "bank-features": tmp_path / "train", "query-features": tmp_path / "dev"}
    ra_hmd(*words(lab, tmp_path / "bare", shots=1, limit=6, **bare))
    embedded = {split: read_features(tmp_path / split) for split in ("train", "dev")}
    units = {split: one.hidden / np.linalg.norm(one.hidden, axis=1, keepdims=True) for split, one in embedded.items()}
    ids, hashes = embedded["train"].ids, embedded["train"].image_hashes
    for row, found in enumerate(predictions(tmp_path / "bare")):
        cosine = np.where(hashes == embedded["dev"].image_hashes[row], -2, units["train"] @ units["dev"][row])
        assert cosine[ids.index(found["demonstrations"][0])] == pytest.approx(cosine.max(), abs=1e-6)
    mixed = bare | {"query-features": lab / "features" / "dev"}
    assert "not made alike" in ra_hmd(*words(lab, tmp_path / "mixed", shots=1, **mixed), code=2)
    del bare["backbone-only"]
    assert "not made alike" in ra_hmd(*words(lab, tmp_path / "mixed", shots=1, **bare), code=2)  # not the head's
    untuned = predictions(tmp_path / "bare")
    assert [row["lmh_score"] for row in untuned] != [row["lmh_score"] for row in predictions(tmp_path / "out")]


def test_a_killed_run_goes_on(lab: Path, two_shots: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ra_hmd", *words(lab, tmp_path / "out", shots=2, **{"batch-size": 1})]
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    part = tmp_path / "out" / "parts" / "part-00000.jsonl"
    until = time.monotonic() + 200
    while not part.is_file() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    first = json.loads(part.read_text().splitlines()[0])
    marked = part.read_text().replace(json.dumps(first["score"]), "[0.125]", 1)
    part.write_text(marked)
    ra_hmd(*words(lab, tmp_path / "out", shots=2))
    found, whole = predictions(tmp_path / "out"), predictions(two_shots)
    for one, other in zip(found, whole, strict=True):
        assert one["demonstrations"] == other["demonstrations"]
        kept = one["id"] == first["id"]
        assert one["lmh_score"] == (0.125 if kept else pytest.approx(other["lmh_score"], abs=1e-4))
    refused = ra_hmd(*words(lab, tmp_path / "out", shots=1), code=2)
    assert "what differs: choice, shown" in refused


def test_two_ranks(lab: Path, two_shots: Path, tmp_path: Path) -> None:
    launch = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone", "--no-python",
              str(BIN / "ra-hmd")]  # fmt: skip
    done = run([*launch, *words(lab, tmp_path / "out", shots=2)], tmp_path)
    assert done.returncode == 0, done.stdout
    found, expected = predictions(tmp_path / "out"), predictions(two_shots)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    np.testing.assert_allclose([row["lmh_score"] for row in found], [row["lmh_score"] for row in expected], atol=1e-4)


def test_a_threshold_is_chosen_on_dev_alone(lab: Path, two_shots: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (lab / "dev.jsonl").read_text().splitlines()]
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "dev.jsonl").write_text(
        "".join(json.dumps(row | {"id": f"later-{row['id']}"}) + "\n" for row in rows[:20])
    )
    common = {"shots": 2, "demonstrations": "random", "bank-features": None, "query-features": None, "limit": 20}
    ra_hmd(*words(lab, tmp_path / "dev", **common))
    judged = words(lab, tmp_path / "out", **common, data=tmp_path / "later", examples=lab, dev=tmp_path / "dev")
    ra_hmd(*judged)
    rule = json.loads((tmp_path / "out" / "ra_hmd.json").read_text())["decisions"]["dev"]["lmh"]
    assert rule["chosen"]
    scores = np.array([row["lmh_score"] for row in predictions(tmp_path / "dev")])
    labels = np.array([row["label"] for row in predictions(tmp_path / "dev")])

    def macro_f1(threshold: float) -> float:
        said = scores >= threshold
        f1 = [2 * ((said == c) & (labels == c)).sum() / max(1, (said == c).sum() + (labels == c).sum()) for c in (0, 1)]
        return float(np.mean(f1))

    tried = [*scores, 0.5, 1.1]
    assert macro_f1(rule["thresholds"][0]) == pytest.approx(max(map(macro_f1, tried)))
    refused = ra_hmd(*words(lab, tmp_path / "same", **common, dev=tmp_path / "dev"), code=2)
    assert "are in --dev" in refused
    refused = ra_hmd(*words(lab, tmp_path / "x", shots=2, limit=3, dev=tmp_path / "dev"), code=2)
    assert "what differs: choice" in refused
    shutil.copytree(lab / "run", tmp_path / "other", ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(lab / "run" / "head.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, tmp_path / "other" / "head.safetensors")
    refused = ra_hmd(*words(lab, tmp_path / "y", shots=2, dev=two_shots, head=tmp_path / "other"), code=2)
    assert "what differs: compared_by" in refused


def test_test_data_are_opened_on_purpose_and_once(lab: Path, tmp_path: Path) -> None:
    copy_rows(lab / "synthetic" / "a" / "test.jsonl", tmp_path / "test.jsonl", 5)
    record = lab / "run" / "final_evaluations.jsonl"
    common = {"data": tmp_path / "test.jsonl", "split": "dev", "examples": lab, "shots": 1, "demonstrations": "random",
              "bank-features": None, "query-features": None}  # fmt: skip
    refused = ra_hmd(*words(lab, tmp_path / "out", **common), code=2)
    assert "only with `--final`" in refused
    assert not record.exists()
    assert not (tmp_path / "out" / "parts").exists()
    for _ in range(2):
        ra_hmd(*words(lab, tmp_path / "out", **common, final=True))
        assert len(record.read_text().splitlines()) == 1
    assert "only with `--final`" in ra_hmd(*words(lab, tmp_path / "out", **common), code=2)
    assert json.loads((tmp_path / "out" / "ra_hmd.json").read_text())["test_sets"]
    record.unlink()


def test_bad_requests_are_refused_before_anything_is_scored(lab: Path, tmp_path: Path) -> None:
    far = {"demonstrations": "random", "bank-features": None, "query-features": None, "limit": 70}
    told = ra_hmd(*words(lab, tmp_path / "long", shots=100, **far), code=2)
    assert "with its 100 demonstrations has" in told
    assert "context is 4096: about" in told
    assert not list((tmp_path / "long" / "parts").glob("part-*"))
    fit = int(told.split("about ")[1].split()[0])
    assert 10 < fit < 100
    assert "need --bank-features" in ra_hmd(*words(lab, tmp_path / "a", **{"bank-features": None, "query-features":
                                                                          None}), code=2)  # fmt: skip
    without_stores = {"bank-features": None, "query-features": None}
    headed = words(lab, tmp_path / "h", head=lab / "run", demonstrations="random", **without_stores)
    assert "give --bank-features and --query-features" in ra_hmd(*headed, code=2)
    assert "has no features of these" in ra_hmd(*words(lab, tmp_path / "b", **{"bank-features": lab / "features" /
                                                                             "dev"}), code=2)  # fmt: skip
    assert "give with --examples" in ra_hmd(*words(lab, tmp_path / "e", data=lab / "dev.jsonl"), code=2)
    assert "give one for each class" in ra_hmd(*words(lab, tmp_path / "c", answer="Maybe"), code=2)
    assert "120 are needed" in ra_hmd(
        *words(lab, tmp_path / "d", shots=120, split="train", **{"query-features": lab / "features" / "train"}), code=2
    )
