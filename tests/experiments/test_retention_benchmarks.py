"""Logged samples of lmms-eval, paired and given to the gate. The lines have the form that lmms-eval 0.7.3 writes."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.experiments.retention.benchmark_logs import read_logs
from ra_hmd.experiments.retention.benchmarks import benchmark_retention
from ra_hmd.experiments.retention.config import BenchmarkSettings


def write_log(folder: Path, task: str, metrics: Sequence[dict[str, Any]], tokens: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"doc_id": number, "target": "Yes", "filtered_resps": "Yes", "token_counts": [None], "doc_hash": f"{number:x}",
         "input": "Is it?", **values}
        for number, values in enumerate(metrics)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows[::-1])  # as ranks are gathered, in no order
    path = folder / f"20261129_161819_samples_{task}.jsonl"
    path.write_text(text, encoding="utf-8")
    results = {"configs": {task: {"generation_kwargs": {"max_new_tokens": tokens}}}}
    (folder / "20261129_161819_results.json").write_text(json.dumps(results), encoding="utf-8")
    return path


def test_every_benchmark_gives_one_score_for_each_question(tmp_path: Path) -> None:
    logged = {
        "gqa": ([{"exact_match": 1.0}, {"exact_match": 0.0}], [1, 0]),
        "pope": ([{"pope_f1_score": {"score": 0.0}, "pope_accuracy": {"score": 1.0, "prediction": "no"}}], [1]),
        "mmstar": ([{"math": {"score": 0.0}, "average": {"score": 0.0}}, {"average": {"score": 1.0}}], [0, 1]),
        "seedbench": (
            [
                {"seed_image": {"pred": "a ", "answer": "A"}, "seed_all": {"pred": "a", "answer": "A"}},
                {"seed_video": {"pred": "B", "answer": "A"}, "seed_all": {"pred": "B", "answer": "A"}},
                {"seed_image": {"pred": "C", "answer": "A"}, "seed_all": {"pred": "C", "answer": "A"}},
            ],
            [1, 0],  # questions about films are left out
        ),
        "own": ([{"right": True}], [1]),
    }
    for task, (metrics, _) in logged.items():
        for name in ("base", "tuned"):
            write_log(tmp_path / name / task, task, metrics)
    found = read_logs(tmp_path / "base", tmp_path / "tuned")
    assert {task: pair.base for task, pair in found.items()} == {task: scores for task, (_, scores) in logged.items()}
    chosen = read_logs(tmp_path / "base", tmp_path / "tuned", {"seedbench": "seed_all"})
    assert chosen["seedbench"].tuned == [1, 0, 0]


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: it judges MMMU")
def test_mmmu_is_judged_by_lmms_eval(tmp_path: Path) -> None:
    def asked(kind: str, answer: str, parsed: Any) -> dict[str, Any]:
        stated = {"id": "validation_Art_1", "subdomain": "Art", "question_type": kind}
        return {"mmmu_acc": {**stated, "answer": answer, "parsed_pred": parsed}, "submission": {}}

    metrics = [
        asked("multiple-choice", "B", ["B"]),
        asked("multiple-choice", "B", ["C"]),
        asked("open", "2.5", [["2.5", 2.5]]),
        asked("open", "2.5", [["about 3", 3.0]]),
    ]
    for name in ("base", "tuned"):
        write_log(tmp_path / name, "mmmu_val", metrics)
    assert read_logs(tmp_path / "base", tmp_path / "tuned")["mmmu_val"].base == [1, 0, 1, 0]


@pytest.fixture
def logs(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Logs of a base model that is right 7 times of 10, and of one that answers otherwise where `lost` says so."""

    def write(lost: float = 0.0, count: int = 1000, tokens: int = 16) -> tuple[Path, Path]:
        generator = np.random.default_rng(0)
        for task in ("gqa", "pope"):
            right = generator.random(count) < 0.7
            kept = right & (generator.random(count) >= lost)
            for name, answers in (("base", right), ("tuned", kept)):
                scores = [{"score": float(one)} for one in answers]
                metrics = [{"exact_match": one["score"]} if task == "gqa" else {"pope_accuracy": one} for one in scores]
                write_log(tmp_path / name / task, task, metrics, 16 if name == "base" else tokens)
        return tmp_path / "base", tmp_path / "tuned"

    return write


@pytest.mark.parametrize(("lost", "verdict"), [(0.0, "pass"), (0.3, "fail"), (0.012, "undecided")])
def test_the_gate_judges_each_task_and_all_questions(
    logs: Callable[..., tuple[Path, Path]], tmp_path: Path, lost: float, verdict: str
) -> None:
    result = benchmark_retention(*logs(lost), tmp_path / "out", BenchmarkSettings(bootstrap_samples=400))
    assert result["gate"]["verdict"] == verdict
    assert [row["task"] for row in result["gate"]["rows"]] == ["gqa", "pope", "pooled"]
    assert [row["margin"] for row in result["gate"]["rows"]] == [0.03, 0.03, 0.01]
    gqa = result["tasks"]["gqa"]
    assert gqa["base"] - gqa["tuned"] == pytest.approx(gqa["lost"] / 1000)
    assert gqa["won"] == 0
    assert json.loads((tmp_path / "out" / "benchmarks.json").read_text(encoding="utf-8")) == result
    assert verdict in (tmp_path / "out" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_command_ends_with_the_exit_code_of_the_gate(
    logs: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    words = ["retention", "benchmarks", *map(str, logs(0.3, count=300)), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--metric", "gqa=exact_match"])
    assert done.exit_code == 1
    assert "Retention: fail: gqa -0." in done.output
    wrong = CliRunner().invoke(app, [*words, "--metric", "gqa"])
    assert wrong.exit_code == 2
    assert "write TASK=METRIC" in " ".join((wrong.output + wrong.stderr).split())


def test_scores_of_another_unit_are_judged_without_pooling(
    logs: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    base, tuned = logs(count=200)
    for folder in (base, tuned):
        write_log(folder / "points", "points", [{"points": 40.0 + number} for number in range(50)])
    result = benchmark_retention(base, tuned, tmp_path / "out")
    assert [row["task"] for row in result["gate"]["rows"]] == ["gqa", "points", "pope"]


def test_logs_that_do_not_belong_together_are_refused(logs: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    base, tuned = logs(count=20)
    (samples,) = (tuned / "gqa").glob("*.jsonl")
    lines = samples.read_text(encoding="utf-8").splitlines(keepends=True)
    samples.write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(UserError, match="task gqa: 1 questions were asked of the base model alone .*--limit"):
        read_logs(base, tuned)
    samples.write_text("".join(lines).replace('"doc_hash": "3"', '"doc_hash": "other"'), encoding="utf-8")
    with pytest.raises(UserError, match="task gqa: question 3 is another one for each model"):
        read_logs(base, tuned)
    with pytest.raises(UserError, match="max_new_tokens': 16.*max_new_tokens': 99"):
        read_logs(*logs(count=20, tokens=99))
    base, tuned = logs(count=20)
    with pytest.raises(UserError, match="no question has the metric accuracy; the metrics are exact_match"):
        read_logs(base, tuned, {"gqa": "accuracy"})
    with pytest.raises(UserError, match="--metric gqq=…: the tasks are gqa, pope"):
        read_logs(base, tuned, {"gqq": "accuracy"})
    samples.with_name("20261130_000000_samples_gqa.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="holds several runs"):
        read_logs(base, tuned)
    with pytest.raises(UserError, match="has the tasks gqa, and .* has pope"):
        read_logs(base / "gqa", base / "pope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no samples of lmms-eval.*--log_samples"):
        read_logs(tmp_path / "empty", tuned)


def test_a_task_with_several_metrics_needs_a_choice(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        write_log(tmp_path / name, "own", [{"one": 1, "other": {"words": "?"}}])
    with pytest.raises(UserError, match="its metrics are one, other; choose one by --metric own=NAME"):
        read_logs(tmp_path / "base", tmp_path / "tuned")
    with pytest.raises(UserError, match="its metric other is .* no score of a question"):
        read_logs(tmp_path / "base", tmp_path / "tuned", {"own": "other"})
