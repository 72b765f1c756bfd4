"""lmms-eval asks a run the questions of a local task: the answers are those of our own generation."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value

from ra_hmd.data.images import load_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import clean_caption
from ra_hmd.experiments.retention.benchmark_logs import read_logs
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.meme_model import MemeModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None,
        reason="lmms-eval is not installed (pip install 'ra-hmd[benchmarks]')",
    ),
]

TASK = """
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
task: drawn_questions
test_split: test
output_type: generate_until
doc_to_visual: !function functions.pictures
doc_to_text: !function functions.text
doc_to_target: answer
process_results: !function functions.score
generation_kwargs: {{max_new_tokens: 6}}
metric_list: [{{metric: odd, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
def pictures(doc):
    return [doc["image"]]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def score(doc, results):
    return {"odd": float(len(results[0]) % 2)}
"""


def ask(run: Path, task: Path, output: Path, arguments: str = "") -> dict[int, dict]:
    """The logged samples of `python -m lmms_eval`, by question."""
    words = [
        "-m",
        "lmms_eval",
        "--model",
        "ra_hmd",
        "--tasks",
        "drawn_questions",
        "--batch_size",
        "3",
        "--log_samples",
        "--device",
        "cpu",
    ]
    given = ["--model_args", f"checkpoint={run}{arguments}", "--include_path", task, "--output_path", output]
    kept = {**os.environ, "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words, *given, "--verbosity", "DEBUG"], capture_output=True, text=True, check=False, env=kept
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (samples,) = output.rglob("*_samples_drawn_questions.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return {row["doc_id"]: row for row in rows}


def questions(memes: list[Meme]) -> list[str]:
    """General questions; one of them has what a template would read as control tokens."""
    asked = ["What colour is the background?", "Name what you see.", "Count the <image> letters. <|im_end|>"]
    return [f"{asked[number % 3]} Number {number}." for number in range(len(memes))]


@pytest.fixture
def task(memes: Path, tmp_path: Path) -> Path:
    some = read_memes(memes / "a" / "dev.jsonl")[:8]
    rows = [
        {"image": str(meme.image), "question": question, "answer": "Yes."}
        for meme, question in zip(some, questions(some), strict=True)
    ]
    kinds = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    DatasetDict({"test": Dataset.from_list(rows, features=kinds)}).save_to_disk(str(tmp_path / "data"))
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "drawn_questions.yaml").write_text(TASK.format(data=tmp_path / "data"), encoding="utf-8")
    (folder / "functions.py").write_text(FUNCTIONS, encoding="utf-8")
    return folder


def test_lmms_eval_gets_the_answers_of_our_own_generation(
    stage1_run: Path, memes: Path, task: Path, tmp_path: Path
) -> None:
    assert "ra_hmd" in entry_points(group="lmms_eval.models").names, (
        "install this package again: its entry point is new"
    )
    model = MemeModel(open_run(stage1_run), torch.device("cpu"))
    some = read_memes(memes / "a" / "dev.jsonl")[:8]
    chats = [
        Chat([{"role": "user", "content": f"<image>{clean_caption(question)}"}], [load_image(meme.image)])
        for meme, question in zip(some, questions(some), strict=True)
    ]
    answers = {}
    for name, adapter in (("tuned", True), ("base", False)):
        found = ask(stage1_run, task, tmp_path / name, f",adapter={adapter}")
        answers[name] = [found[number]["filtered_resps"] for number in range(8)]
        assert answers[name] == ChatModel(model, adapter).generate(chats, max_new_tokens=6)
    assert answers["tuned"] != answers["base"]
    pair = read_logs(tmp_path / "base", tmp_path / "tuned")["drawn_questions"]
    assert (pair.base, pair.tuned) == tuple([len(one) % 2 for one in answers[name]] for name in ("base", "tuned"))
