"""The command blocks of README.md and docs/ run, in their order, on drawn memes and tiny models.

A block runs as it is printed. In the working directory lie tiny models under the names of the real ones; training
changes what a CPU cannot do.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_copies import COPIES
from documented import blocks, expanded
from engines import BIN, ROOT, run
from joblib.externals.loky import get_reusable_executor
from meme_files import jsonl
from servers import in_process
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app
from ra_hmd.data.meme_files import read_memes
from ra_hmd.models.clip_presets import PRESETS
from ra_hmd.serve.auth import make_key

pytestmark = pytest.mark.slow

RUN = "saves/qwen2_vl_7b/hateful_memes_qlora"
# What the shipped recipe asks of a GPU or of thousands of memes, on a CPU with a few.
ON_A_CPU = (
    "bf16=false",
    "flash_attn=disabled",
    "enable_liger_kernel=false",
    "lora_rank=8",
    "num_train_epochs=1",
    "per_device_train_batch_size=4",
    "preprocessing_num_workers=1",
    "dataloader_num_workers=0",
    "proj_dim=32",
)
# Programs that are not called here; what they are given is not checked.
NOT_HERE = {"docker", "pip", "sudo"}
# (page, a word of the block): why the block is not run here. All commands of these blocks are parsed all the same
# (test_documented_commands.py).
NOT_RUN = {
    ("README.md", "make demo"): "tests/e2e/test_demo.py, and this test run itself",
    ("docs/start.md", "make demo"): "tests/e2e/test_demo.py",
    ("docs/start.md", "ra-hmd demo"): "tests/e2e/test_demo.py",
    ("docs/start.md", "ra-hmd predict"): "tests/e2e/test_demo.py, on what the demo leaves",
    ("docs/development.md", "make test"): "this test run itself",
    ("CONTRIBUTING.md", "make test"): "this test run itself",
    ("docs/performance.md", "gpu_check.sh"): "tests/packaging/test_gpu_check.py",
    ("docs/cli.md", "ra-hmd init memes"): "tests/cli/test_init.py",
    ("docs/cli.md", "data list --json"): "tests/cli/test_guide.py and tests/cli/test_doctor.py",
    ("docs/cli.md", "--install-completion"): "it changes the files of a shell; tests/cli/test_guide.py",
    ("docs/cli.md", "ra-hmd push"): "tests/hub/test_push.py, against a local server",
    ("docs/deploy.md", "docker build"): "tests/packaging; needs a Docker engine",
    ("docs/deploy.md", "--profile replicas"): "needs a Docker engine",
    ("docs/deploy.md", "mkdir -p deploy/cases"): "needs a Docker engine",
    ("docs/deploy.md", "PGPASSWORD"): "needs a Docker engine; tests/desk/test_desk_on_postgresql.py",
    ("docs/cluster.md", "--replicas 3"): "tests/serve/test_ray_serve.py; the rest needs a Docker engine or a cluster",
    ("docs/deploy.md", "docker compose --profile milvus"): "needs a Docker engine",
    ("docs/console.md", "postgresql+psycopg"): "tests/desk/test_desk_on_postgresql.py",
    ("docs/console.md", "sqlite3"): "tests/docs/test_console_page.py",
    ("docs/console.md", "ra-hmd cases export"): "tests/docs/test_console_page.py",
    ("docs/console.md", "ra-hmd cases forget"): "tests/cases/test_forgetting.py",
    ("docs/explain.md", "venv ~/vllm"): "needs a GPU",
    ("docs/cluster.md", "AWS_ACCESS_KEY_ID"): "tests/e2e/test_object_store_walk.py, against a local server",
    ("docs/cluster.md", "NNODES=2"): "tests/llamafactory_ext/test_two_nodes.py",
    ("docs/cluster.md", "ray start --head"): "tests/features/test_extract_on_ray.py",
    ("docs/cluster.md", "USE_RAY=1"): "tests/llamafactory_ext/test_ray_training.py",
    ("docs/cluster.md", "vllm serve"): "needs a GPU",
    ("docs/cluster.md", "--engine-url"): "tests/features/test_vllm_features.py, against a local server",
    ("docs/pipeline.md", "import-official"): "tests/models/test_official_checkpoint.py",
    ("docs/clusters.md", "gemma3:27b --show"): "tests/clusters/test_teacher.py, against a local server",
    ("docs/clusters.md", "--describe-with"): "tests/clusters/test_descriptions.py, against a local server",
    ("docs/clusters.md", "guidance_by_hand"): "tests/clusters/test_hand_written_guidance.py",
    ("docs/judge.md", "--references"): "tests/experiments/test_judge.py, against a local server",
    ("docs/bank.md", "--known-memes 31"): "tests/bank/test_known_memes.py",
    ("docs/bank.md", "export-hashes"): "tests/bank/test_hash_lists.py",
    ("docs/bank.md", "pip install 'ra-hmd[milvus]'"): "tests/bank, with Milvus Lite",
    ("docs/encoders.md", "make-confounders"): "tests/e2e/test_encoder_track.py",
    ("docs/encoders.md", "--encoder qwen3-vl-embedding-2b"): "needs the published weights; the block below it is run",
    ("docs/stage2.md", "k_shot=data/imported/mami"): "tests/training/test_few_shots.py",
    ("docs/stage1.md", "export-clusters"): "tests/clusters/test_export.py",
    ("docs/ssmoe.md", "few-shot"): "tests/e2e/test_few_shot_study.py",
    ("docs/ssmoe.md", "few_shot_ssmoe"): "tests/e2e/test_ssmoe_walk.py, on a tiny LLaVA",
    ("docs/robustness.md", "--check-captions abstain"): "tests/inference/test_defences.py, test_folded_captions.py",
    ("docs/robustness.md", "dataset=hm_clean"): "tests/e2e/test_attacked_training.py",
    ("docs/robustness.md", "bank add banks/memes"): "tests/e2e/test_attacked_training.py",
    ("docs/robustness.md", "--white-box pgd"): "tests/attacks/test_white_box.py",
    ("docs/robustness.md", "ra-hmd bank attack"): "tests/attacks/test_bank_attacks.py",
    ("docs/robustness.md", "--attacks rephrase"): "tests/attacks/test_rephrase.py, against a local server",
    ("docs/retention.md", "retention drawn --checkpoint $RUN"): "tests/experiments/test_retention.py",
    (
        "docs/retention.md",
        "lmms_eval",
    ): "tests/models/test_lmms_eval.py, tests/experiments/test_retention_benchmarks.py",
    ("docs/retention.md", "lm_kl_weight"): "tests/llamafactory_ext/test_base_divergence.py",
    ("docs/retention.md", "retention policy"): "tests/experiments/test_policy_retention.py",
    ("docs/robustness.md", "robustness.yaml --final"): "tests/experiments/test_robustness_study.py",
    ("docs/robustness.md", "robustness_confounders.yaml --final\n"): "the same, and tests/attacks",
    ("docs/robustness.md", "systems.means.transforms"): "tests/experiments/test_robustness_study.py",
    ("docs/studies.md", "ra-hmd demo"): "tests/e2e/test_demo.py, tests/experiments/test_cross_eval.py",
    ("docs/studies.md", "cross.yaml"): "tests/experiments/test_cross_eval.py",
    ("docs/studies.md", "ra-hmd ablate"): "tests/e2e/test_ablate.py, tests/experiments/test_cross_eval.py",
    ("docs/studies.md", "outputs/age --final"): "tests/experiments/test_staleness.py",
}


class Walk:
    """A folder in which the names exist that the documentation uses, and the way to run a block there.

    Attributes:
        folder: Working directory and home of the commands.
        server: Address of a running server, for the commands that ask one.
    """

    def __init__(self, folder: Path, server: str | None = None) -> None:
        self.folder, self.server = folder, server

    def block(self, page: str, containing: str, **variables: str) -> list[str]:
        """Run the one Bash block of a page that contains some words. Returns what each command printed."""
        (found,) = (one for one in blocks("bash", (page,)) if containing in one.text)
        with contextlib.chdir(self.folder):
            every = expanded(found.text, self.folder, variables)
            done = [words for words in every if words[-1] != "…" and words[0] not in NOT_HERE]
            return [self.command(words) for words in done]

    def command(self, words: list[str]) -> str:
        """Run one command, in this process where it is ours."""
        program, *rest = [PRESETS[word].hub if word in PRESETS else word for word in words]
        if program == "ra-hmd" and rest[0] in ("serve", "console") and "--help" not in rest:
            return self.serve(rest)
        if program == "ra-hmd":
            get_reusable_executor().shutdown(wait=True)  # its processes are in the folder of the test before
            done = CliRunner().invoke(app, rest)
            # The doctor says what this machine lacks.
            assert done.exit_code == 0 or rest == ["doctor"], f"{words}\n{done.output}\n{done.exception!r}"
            return done.output
        if program == "llamafactory-cli" and rest[0] == "train":
            assert "hateful_memes" in rest[1]
            rest += [word for word in ON_A_CPU if not (word.startswith("proj_dim") and rest[1].endswith("_sft.yaml"))]
        if program == "torchrun":
            rest[rest.index("--nproc_per_node") + 1] = "2"
        if program == "curl":
            if self.server is None:
                return ""
            rest = ["--fail-with-body", "--silent", rest[0].replace("http://127.0.0.1:8000", self.server), *rest[1:]]
        assert program in ("llamafactory-cli", "torchrun", "tar", "curl"), program
        place = BIN / program if (BIN / program).exists() else Path(shutil.which(program) or program)
        ended = run([str(place), *rest], self.folder)
        assert ended.returncode == 0, f"{words}\n{ended.stdout[-5000:]}"
        return ended.stdout

    def serve(self, words: list[str]) -> str:
        """Start a server, ask whether it is healthy, and end it."""
        words = ["127.0.0.1" if word == "0.0.0.0" else word for word in words]
        with in_process(*words, log=self.folder / "server.log", cwd=self.folder) as (_, client):
            root = str(client.base_url).removesuffix("/").removesuffix("/console")
            return client.get(f"{root}/health").raise_for_status().text


@pytest.fixture(scope="module")
def copy(memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn memes as an unpacked copy of Hateful Memes, with a date for each."""
    folder = tmp_path_factory.mktemp("downloads") / "hateful_memes"
    for split, target in (("train", "train"), ("dev", "dev_seen"), ("test", "test_seen")):
        rows = []
        start = {"train": 1000, "dev": 20000, "test": 30000}[split]
        drawn = read_memes(memes / "a" / f"{split}.jsonl")
        numbers = [start + place for place in range(len(drawn))]
        if split == "train":
            numbers[0] = 1245  # the ids that docs/bank.md names; the second is relabelled to 0
            numbers[next(place for place, meme in enumerate(drawn) if place and meme.label == 1)] = 8291
        for number, meme in zip(numbers, drawn, strict=True):
            image = folder / "img" / f"{number:05d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(meme.image, image)
            date = f"2024-{1 + number % 4:02d}-10"
            rows.append({"id": number, "img": f"img/{image.name}", "label": meme.label, "text": meme.text,
                         "date": date})  # fmt: skip
        jsonl(folder / f"{target}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def prepared(copy: Path, memes: Path, tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder before the first command."""
    folder = tmp_path_factory.mktemp("walk")
    clip = tmp_path_factory.mktemp("clip") / "clip"
    assert CliRunner().invoke(app, ["tiny-encoder", "--family", "clip", "--output", str(clip)]).exit_code == 0
    names = {"Qwen/Qwen2-VL-7B-Instruct": tiny("qwen2_vl"), **{preset.hub: clip for preset in PRESETS.values()}}
    links = {**names, "configs": ROOT / "configs", "downloads/hateful_memes": copy}
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    COPIES["mami"](folder / "downloads" / "MAMI")
    for made in ("data", "outputs"):
        (folder / made).mkdir()
    shutil.copy(ROOT / "data" / "dataset_info.json", folder / "data")
    new_files(folder, memes)
    return folder


@pytest.fixture(scope="module")
def walked(prepared: Path) -> Iterator[tuple[Walk, list[str]]]:
    """The block of docs/walk.md, run, and what it printed."""
    walk = Walk(prepared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(prepared))
        (block,) = (one for one in blocks("bash", ("docs/walk.md",)) if "ra-hmd doctor" in one.text)
        before, mark, after = block.text.partition("# 7 ")
        printed = []
        for part in (before, f"RUN={RUN}\n{mark}{after}"):
            with contextlib.chdir(prepared):
                printed += [walk.command(words) for words in expanded(part, prepared)]
            if part == before:  # features of new memes, which the page takes for granted
                labelled = ["--data", "labelled.jsonl", "--split", "new"]
                for place in ("NEW_FEATURES", f"{RUN}/features/new"):
                    walk_extract(walk, *labelled, "--output", place)
        yield walk, printed


def walk_extract(walk: Walk, *words: str) -> None:
    with contextlib.chdir(walk.folder):
        walk.command(["ra-hmd", "extract", "--checkpoint", RUN, *words])


def new_files(folder: Path, memes: Path) -> None:
    """The files of new memes and texts that the documentation names."""
    drawn = read_memes(memes / "b" / "train.jsonl")[:10]
    shutil.copy(drawn[0].image, folder / "NEW.png")
    for name in ("cat.png", "cake.jpg", "meme.png"):
        shutil.copy(drawn[1].image, folder / name)
    rows = [{"id": name, "image": str(meme.image), "text": meme.text, "label": meme.label}
            for name, meme in zip(["cat", "cake", *map(str, range(8))], drawn, strict=True)]  # fmt: skip
    jsonl(folder / "labelled.jsonl", rows)
    unlabelled = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    for name in ("NEW.jsonl", "memes.jsonl", "reported.jsonl"):
        jsonl(folder / name, unlabelled)
    for name in ("POLICY.txt", "policy.txt"):
        (folder / name).write_text("Rule 1. Memes about cats are welcome.\n")
    (folder / "pictures").mkdir()
    table = ["key,words,hateful"]
    for number, meme in enumerate(drawn[:3]):
        shutil.copy(meme.image, folder / "pictures" / f"{number}.png")
        table.append(f'{number},"{meme.text}",{("no", "yes")[number % 2]}')
    (folder / "memes.csv").write_text("\n".join(table) + "\n")


@pytest.fixture
def walk(walked: tuple[Walk, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A copy of the folder after the block of docs/walk.md, for one test to change."""
    folder = Path(shutil.copytree(walked[0].folder, tmp_path / "walk", symlinks=True))
    monkeypatch.setenv("HOME", str(folder))
    (folder / "runs").mkdir()
    for name, target in {"runs/stage2": f"{RUN}/stage2", "RUN": f"{RUN}/stage2", "BANK": "banks/memes"}.items():
        (folder / name).symlink_to(folder / target)
    return Walk(folder)


def test_from_a_data_set_to_a_verdict(walked: tuple[Walk, list[str]]) -> None:
    walk, printed = walked
    folder = walk.folder
    metrics = json.loads((folder / RUN / "report" / "metrics.json").read_text())
    assert set(metrics["test"]) == {"lmh", "lrc", "rkc", "krr"}
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").open(encoding="utf-8")]
    assert [one["id"] for one in verdicts] == ["cat", "cake", *map(str, range(8))]
    assert len(printed) == 19
    assert sum('"status"' in text for text in printed[-2:]) == 2, "the API and the console were healthy"


# Page, a word that only this block has, how many commands of it are run.
BLOCKS = [
    ("docs/api.md", "ra-hmd serve RUN --bank BANK    ", 2),
    ("docs/api.md", "ra-hmd serve-key", 4),
    ("docs/api.md", "--webhook-secret", 1),
    ("docs/bank.md", "ra-hmd bank search", 11),
    ("docs/bank.md", "ra-hmd bank audit", 2),
    ("docs/bank.md", "ra-hmd bank suggest", 2),
    ("docs/console.md", "--queue reported.jsonl", 3),
    ("docs/data.md", "data import mami", 4),
    ("docs/data.md", "data import generic", 1),
    ("docs/deploy.md", "mkdir -p deploy &&", 3),
    ("docs/deploy.md", "ra-hmd card", 3),
    ("docs/evaluation.md", "--dev $RUN/features/dev", 1),
    ("docs/evaluation.md", "--queries $RUN/features/new --head lrc", 2),
    ("docs/evaluation.md", "torchrun", 3),
    ("docs/evaluation.md", "ra-hmd results", 2),
    ("docs/explain.md", "ra-hmd explain cat.png", 2),
    ("docs/robustness.md", "--suite quick", 1),
    ("docs/stage2.md", "init_head=$RUN", 1),
    ("docs/stage2.md", "seeds=5 output_dir=$RUN", 2),
    ("docs/studies.md", "--period-key date", 2),
    ("docs/studies.md", "ra-hmd in-context", 6),
]


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


# Blocks of the tests above that are not in BLOCKS.
OTHERS = [
    ("data/README.md", "to-sharegpt"),
    ("docs/walk.md", "ra-hmd doctor"),
    ("docs/api.md", "/v1/classify"),
    ("docs/api.md", "/v1/cases -F"),  # tests/docs/test_cases_of_the_api_page.py
    ("docs/api.md", "/v1/cases/$CASE"),
    ("docs/api.md", "/v1/audit"),
    ("docs/api.md", "/v1/moderations"),  # tests/serve/test_documented_requests.py
    ("docs/api.md", "/v1/bank/relabel"),
    ("docs/api.md", "/v1/jobs"),
    ("docs/clusters.md", "ra-hmd cluster --data"),
    ("docs/deploy.md", "tar -C"),
    ("docs/encoders.md", "# Hate-CLIPper; or _cross"),
    ("docs/encoders.md", "ra-hmd zero-shot"),
    ("docs/encoders.md", "--family qwen3_vl_embedding"),
    ("docs/evaluation.md", "outputs/cancer/stage2"),
    ("docs/pipeline.md", "--backbone-only"),
    ("docs/stage2.md", "ra-hmd train-head configs/hateclipper/hateful_memes_align.yaml"),
    ("docs/stage2.md", "ra-hmd stage2 configs/rgcl/hateful_memes.yaml"),
]


def test_every_block_is_run_or_says_why_not() -> None:
    named = [(page, words) for page, words, _ in BLOCKS] + OTHERS + list(NOT_RUN)
    for reason in NOT_RUN.values():
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w/.]+", reason)), reason
    for block in blocks("bash"):
        assert sum(page == block.page and words in block.text for page, words in named) == 1, block
