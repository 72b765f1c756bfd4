"""The command blocks of README.md and docs/ run, in their order, on drawn memes and tiny models.

A block runs as it is printed. In the working directory lie tiny models under the names of the real ones; training
changes what a CPU cannot do.
"""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from documented import blocks, expanded
from documented_blocks import BLOCKS
from documented_walk import RUN, Walk, walk_extract
from engines import ROOT
from servers import in_process

from ra_hmd.bank.bank import Bank
from ra_hmd.serve.auth import make_key

pytestmark = pytest.mark.slow


def test_from_a_data_set_to_a_verdict(walked: tuple[Path, list[str]]) -> None:
    folder, printed = walked
    metrics = json.loads((folder / RUN / "report" / "metrics.json").read_text())
    assert set(metrics["test"]) == {"lmh", "lrc", "rkc", "krr"}
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").open(encoding="utf-8")]
    assert [one["id"] for one in verdicts] == ["cat", "cake", *map(str, range(8))]
    assert len(printed) == 19
    assert sum('"status"' in text for text in printed[-2:]) == 2, "the API and the console were healthy"


def prepare(walk: Walk, page: str, containing: str) -> None:
    """Make what a page takes for granted, and remove what the block of docs/walk.md left where this block writes."""
    folder = walk.folder
    again = {"ra-hmd bank search": ["banks"], "--dev $RUN/features/dev": [f"{RUN}/report"],
             "init_head=$RUN": [f"{RUN}/stage2"], "--queries $RUN/features/new --head lrc": [],
             "--period-key date": [f"{RUN}/features/dev"]}  # fmt: skip
    for made in again.get(containing, []):
        shutil.rmtree(folder / made)
    for file in folder.glob("verdicts.*"):
        file.unlink()
    if containing == "ra-hmd results":
        shutil.copytree(folder / RUN / "report", folder / "outputs" / "report")
        (folder / "saves" / "x").mkdir()
        (folder / "saves" / "x" / "report").symlink_to(folder / RUN / "report")
        (folder / "saves" / "y").symlink_to(folder / RUN)
    if containing == "--period-key date":
        walk_extract(walk, "--data", "data/imported/hateful_memes", "--split", "dev_seen", "--output",
                     f"{RUN}/features/dev")  # fmt: skip
        for year in ("2019", "2020", "2021"):
            (folder / "F").mkdir(exist_ok=True)
            (folder / "F" / year).symlink_to(folder / RUN / "features" / "dev")


@pytest.mark.parametrize(("page", "containing", "commands"), BLOCKS)
def test_block_runs_after_the_walk(page: str, containing: str, commands: int, walk: Walk) -> None:
    prepare(walk, page, containing)
    assert len(walk.block(page, containing, RUN=RUN)) == commands


def test_a_backup_of_the_bank_opens(walk: Walk) -> None:
    (block,) = (one for one in blocks("bash", ("docs/deploy.md",)) if "tar -C" in one.text)
    shutil.copytree(walk.folder / "banks" / "memes", walk.folder / "deploy" / "bank")
    with contextlib.chdir(walk.folder):
        first, *rest = expanded(block.text, walk.folder)
        walk.command(first)
        shutil.copy(first[-2], "bank-2026-01-31.tar.gz")
        printed = [walk.command(words) for words in rest]
    assert "version" in printed[-1]


def test_requests_of_the_api_page(walk: Walk) -> None:
    """The page's curl commands against a server: without keys, then with one."""
    with contextlib.chdir(walk.folder):
        serving = ("serve", "RUN", "--bank", "BANK", "--jobs", "JOBS")
        with in_process(*serving, log=Path("log"), cwd=walk.folder) as (_, client):
            asked = Walk(walk.folder, str(client.base_url).rstrip("/"))
            answers = [json.loads(text) for text in asked.block("docs/api.md", "/v1/classify")]
            (job,) = asked.block("docs/api.md", "/v1/jobs")
        walk.command(["ra-hmd", "bank", "add", "BANK", "--checkpoint", "RUN", "--features", "NEW_FEATURES",
                      "--reason", "new"])  # fmt: skip
        walk.command(["ra-hmd", "bank", "relabel", "BANK", "cat=1", "--reason", "seen again"])
        key = make_key("keys.json", "ana", "moderator")
        with in_process(*serving, "--keys", "keys.json", log=Path("log"), cwd=walk.folder) as (_, client):
            asked = Walk(walk.folder, str(client.base_url).rstrip("/"))
            relabelled, rows, row, difference = (json.loads(text) for text in
                                                 asked.block("docs/api.md", "/v1/bank/relabel", KEY=key))  # fmt: skip
    assert [len(answer["results"]) for answer in answers[:3]] == [1, 2, 1]
    assert [one["id"] for one in answers[1]["results"]] == ["cat", "cake"]
    assert answers[0]["results"][0]["scores"] == pytest.approx(answers[2]["results"][0]["scores"], abs=1e-4)
    assert answers[3]["explanation"]["generated"]
    assert json.loads(job)["memes"] == 1
    assert Bank.open(walk.folder / "banks" / "memes").version == relabelled["version"] == rows["version"]
    assert [one["label_after"] for one in row["changes"]][-2:] == [1, 0]
    assert difference["kinds"]["added"] > 0


def test_python_of_the_readme_the_bank_page_and_the_explain_page(walk: Walk) -> None:
    with contextlib.chdir(walk.folder):
        for page in ("README.md", "docs/bank.md", "docs/explain.md"):
            (block,) = blocks("python", (page,))
            exec(block.text, {})


def test_plain_sft_baseline(walk: Walk) -> None:
    with contextlib.chdir(walk.folder):
        walk.command(["llamafactory-cli", "train", "configs/stage1/qwen2_vl_7b/hateful_memes_qlora_sft.yaml"])
        assert len(walk.block("docs/pipeline.md", "--backbone-only")) == 6
        metrics = json.loads(Path("saves/qwen2_vl_7b/hateful_memes_qlora_sft/report/metrics.json").read_text())
    assert set(metrics["test"]) == {"lmh", "lrc", "rkc", "krr"}


def test_encoder_track(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/encoders.md, docs/stage2.md and docs/clusters.md about the same features."""
    folder = Path(shutil.copytree(prepared, tmp_path / "walk", symlinks=True))
    monkeypatch.setenv("HOME", str(folder))
    walk = Walk(folder)
    with contextlib.chdir(folder):
        shutil.rmtree("data/imported", ignore_errors=True)
        shutil.rmtree("data/gt", ignore_errors=True)
        assert len(walk.block("data/README.md", "to-sharegpt")) == 2
        walk.command(["ra-hmd", "data", "k-shot", "data/imported/hateful_memes", "--shots", "16"])
        out = "saves/clip-vit-l-14-336/hateful_memes"
        names = {"OUT": out, "DATA": "data/imported/hateful_memes"}
        assert len(walk.block("docs/encoders.md", "# Hate-CLIPper; or _cross", **names)) == 8
        shutil.copytree(f"{out}/features/dev_seen", f"{out}/features/dev")  # as the shipped files call it
        for made in ("saves/probe", "saves/probe_16"):
            shutil.rmtree(made, ignore_errors=True)
        assert len(walk.block("docs/encoders.md", "ra-hmd zero-shot", **names)) == 4
        shutil.rmtree(f"{out}/rgcl")
        shutil.copytree("saves/clip-vit-l-14-336/hateful_memes/features", "saves/clip-vit-l-14/hateful_memes/features")
        assert len(walk.block("docs/stage2.md", "ra-hmd train-head configs/hateclipper/hateful_memes_align.yaml")) == 1
        assert len(walk.block("docs/stage2.md", "ra-hmd stage2 configs/rgcl/hateful_memes.yaml")) == 1
        shutil.rmtree("outputs/clusters", ignore_errors=True)
        assert len(walk.block("docs/clusters.md", "ra-hmd cluster --data")) == 2


def test_tiny_embedder_of_the_encoder_page(memes: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "confounders").symlink_to(memes)
    with contextlib.chdir(tmp_path):
        assert len(Walk(tmp_path).block("docs/encoders.md", "--family qwen3_vl_embedding")) == 6
    report = tmp_path / "outputs" / "encoders" / "embedder" / "report"
    assert set(json.loads((report / "metrics.json").read_text())["test"]) >= {"lrc", "rkc"}


def test_worked_example_of_the_evaluation_page(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with contextlib.chdir(tmp_path):
        (block,) = blocks("python", ("docs/evaluation.md",))
        exec(block.text, {})
        assert len(Walk(tmp_path).block("docs/evaluation.md", "outputs/cancer/stage2")) == 2
    metrics = json.loads((tmp_path / "outputs" / "cancer" / "report" / "metrics.json").read_text())
    assert metrics["test"]["rkc"]["auroc"]["value"] > 0.95
