"""`ra-hmd retention drawn`: what tuning cost a tiny Qwen2-VL, with its adapter switched off in the same process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import train
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.experiments.parts import Parts
from ra_hmd.experiments.retention.config import DIVERGENCE, VERDICTS, RetentionSettings
from ra_hmd.experiments.retention.measure import PairedModel
from ra_hmd.experiments.retention.pictures import draw_memes, draw_questions
from ra_hmd.experiments.retention.run import retention
from ra_hmd.models.checkpoint import open_backbone, open_run
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.meme_model import MemeModel

pytestmark = pytest.mark.slow

SMALL = RetentionSettings(pictures=16, memes=16, max_new_tokens=8, share_margin=0.3, bootstrap_samples=200)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def untouched(stage1_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with an adapter as before the first step: LoRA's B is zero."""
    folder = tmp_path_factory.mktemp("untouched") / "run"
    shutil.copytree(stage1_run, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(folder / "adapter_model.safetensors")
    still = {name: value * 0 if "lora_B" in name else value for name, value in weights.items()}
    save_file(still, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def overtrained(stage1_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained far too long on a few memes."""
    folder = tmp_path_factory.mktemp("overtrained")
    train(stage1_config(folder / "run", max_samples=16, num_train_epochs=20, learning_rate=1e-2), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def pair(stage1_run: Path) -> PairedModel:
    return PairedModel(MemeModel(open_run(stage1_run), CPU), SMALL)


def verdicts(gate: dict[str, Any]) -> dict[str, str]:
    return {row["task"]: row["verdict"] for row in gate["rows"]}


def run_command(checkpoint: Path, output: Path, code: int) -> str:
    words = ["retention", "drawn", "--checkpoint", checkpoint, "--output", output, "--pictures", 16, "--memes", 16]
    words += ["--max-new-tokens", 8, "--share-margin", 0.3, "--bootstrap-samples", 200]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done.output


def test_an_untouched_adapter_passes(untouched: Path, tmp_path: Path) -> None:
    shown = run_command(untouched, tmp_path / "out", code=0)
    assert "Retention: pass" in shown
    result = json.loads((tmp_path / "out" / "retention.json").read_text())
    assert set(verdicts(result["gate"]).values()) == {"pass"}
    assert result["all"]["divergence"]["value"] == 0
    assert result["all"]["same"]["value"] == 1
    assert json.loads((tmp_path / "out" / "ra_hmd.json").read_text())["gate"] == result["gate"]
    assert "Verdict: pass" in (tmp_path / "out" / "retention.md").read_text()
    assert (tmp_path / "out" / "retention.png").is_file()


def test_a_run_that_was_trained_far_too_long_fails(overtrained: Path, tmp_path: Path) -> None:
    assert "Retention: fail" in run_command(overtrained, tmp_path / "out", code=1)
    result = json.loads((tmp_path / "out" / "retention.json").read_text())
    found = verdicts(result["gate"])
    assert [found[task] for task in (DIVERGENCE, VERDICTS)] == ["fail", "fail"]
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert sum(row["tuned"]["verdict"] for row in answers) > 0.5 * len(answers)
    assert not any(row["base"]["verdict"] for row in answers)


def test_the_base_side_is_the_base_model(pair: PairedModel, stage1_run: Path) -> None:
    items = draw_questions(2, 5) + draw_memes(2, 5)
    base = ChatModel(MemeModel(open_backbone(str(stage1_run)), CPU))
    chats = [Chat([{"role": "user", "content": item.question}], [item.image]) for item in items]
    rows = pair.measure(items)
    assert [row["base"]["answer"] for row in rows] == base.generate(chats, SMALL.max_new_tokens)


def test_divergence_and_likelihood_are_those_of_plain_loops(pair: PairedModel) -> None:
    items = draw_questions(1, 6)[:2] + draw_memes(2, 6)
    for item, row in zip(items, pair.measure(items), strict=True):
        chat = Chat([{"role": "user", "content": item.question}], [item.image])
        ids = pair.chats["base"].answer_ids(chat, item.description or row["base"]["answer"])
        steps = {side: [distribution(speaker, chat, ids[:end]) for end in range(len(ids))]
                 for side, speaker in pair.chats.items()}  # fmt: skip
        if item.description is None:
            expected = sum(
                sum(float(p * (p.log() - q.log())) for p, q in zip(base, tuned, strict=True))
                for base, tuned in zip(steps["base"], steps["tuned"], strict=True)
            ) / len(ids)
            assert row["divergence"] == pytest.approx(expected, rel=1e-3)
        for side in ("base", "tuned") if item.description is not None else ():
            expected = sum(float(steps[side][place][token].log()) for place, token in enumerate(ids)) / len(ids)
            assert row[side]["log_likelihood"] == pytest.approx(expected, rel=1e-4)


def distribution(speaker: ChatModel, chat: Chat, before: list[int]) -> torch.Tensor:
    """Next-token probabilities after a prompt and some tokens, by one forward pass of one row."""
    [(_, found)] = speaker.answer_log_probs([chat], [[*before, 0]])
    return found[-1].exp().double()


def test_batch_size_and_order_do_not_matter(pair: PairedModel) -> None:
    items = draw_questions(2, 7) + draw_memes(3, 7)
    alone = PairedModel(pair.model, SMALL.replace(batch_size=1)).measure(items)
    turned = pair.measure(items[::-1])[::-1]
    for one, other in zip(alone, turned, strict=True):
        assert one["base"]["answer"] == other["base"]["answer"]
        assert one.get("divergence", 0) == pytest.approx(other.get("divergence", 0), rel=1e-3, abs=1e-6)
        assert one["tuned"].get("log_likelihood", 0) == pytest.approx(other["tuned"].get("log_likelihood", 0), rel=1e-4)


def test_an_interrupted_run_continues_to_the_same_files(
    stage1_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(stage1_run)
    retention(run, tmp_path / "whole", SMALL, device="cpu", show=False)
    write = Parts.write

    def stop_after_the_first(parts: Parts, number: int, rows: list[dict[str, Any]]) -> None:
        if number:
            raise KeyboardInterrupt
        write(parts, number, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            retention(run, tmp_path / "cut", SMALL, device="cpu", show=False)
    first = (tmp_path / "cut" / "parts" / "part-00000.jsonl").stat().st_mtime_ns
    assert not (tmp_path / "cut" / "retention.json").exists()
    retention(run, tmp_path / "cut", SMALL, device="cpu", show=False)
    assert (tmp_path / "cut" / "parts" / "part-00000.jsonl").stat().st_mtime_ns == first
    for name in ("retention.json", "answers.jsonl", "retention.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(UserError, match="what differs: pictures"):
        retention(run, tmp_path / "cut", SMALL.replace(seed=1), device="cpu", show=False)


def test_a_model_without_adapter_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter that could be left aside"):
        retention(open_backbone(str(tiny("qwen2_vl"))), tmp_path / "out", SMALL, device="cpu", show=False)
