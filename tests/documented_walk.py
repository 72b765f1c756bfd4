"""A folder in which the commands of the documentation run: drawn memes, and tiny models under the names of real ones.

`walked` is that folder after the main block of commands, made once per test run; `walk` is a copy of it to change.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_copies import COPIES
from documented import blocks, expanded
from engines import BIN, ROOT, run
from joblib.externals.loky import get_reusable_executor
from meme_files import jsonl
from once import SharedFolders
from servers import in_process
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.data.meme_files import read_memes
from ra_hmd.models.clip_presets import PRESETS

MAIN = ("docs/walk.md", "ra-hmd doctor")
"""Page of the main block of commands, and words of this block."""
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


def unpack_hateful_memes(folder: Path, memes: Path) -> None:
    """Write the drawn memes as an unpacked copy of Hateful Memes, with a date for each."""
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


@pytest.fixture(scope="session")
def prepared(memes: Path, tiny: Callable[[str], Path], once: SharedFolders) -> Path:
    """The folder before the first command."""

    def make(folder: Path) -> None:
        clip = folder / "models" / "clip"
        assert CliRunner().invoke(app, ["tiny-encoder", "--family", "clip", "--output", str(clip)]).exit_code == 0
        names = {"Qwen/Qwen2-VL-7B-Instruct": tiny("qwen2_vl"), **{preset.hub: clip for preset in PRESETS.values()}}
        for name, target in {**names, "configs": ROOT / "configs"}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target)
        unpack_hateful_memes(folder / "downloads" / "hateful_memes", memes)
        COPIES["mami"](folder / "downloads" / "MAMI")
        for made in ("data", "outputs"):
            (folder / made).mkdir()
        shutil.copy(ROOT / "data" / "dataset_info.json", folder / "data")
        new_files(folder, memes)

    return once("walk_prepared", make)


@pytest.fixture(scope="session")
def walked(prepared: Path, once: SharedFolders) -> tuple[Path, list[str]]:
    """The folder after the main block of commands, and what they printed."""
    folder = once("walk", lambda folder: _walk_through(prepared, folder))
    return folder, json.loads((folder / "printed.json").read_text(encoding="utf-8"))


def _walk_through(prepared: Path, folder: Path) -> None:
    shutil.copytree(prepared, folder, symlinks=True, dirs_exist_ok=True)
    walk = Walk(folder)
    page, words = MAIN
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        (block,) = (one for one in blocks("bash", (page,)) if words in one.text)
        before, mark, after = block.text.partition("# 7 ")
        printed = []
        for part in (before, f"RUN={RUN}\n{mark}{after}"):
            with contextlib.chdir(folder):
                printed += [walk.command(words) for words in expanded(part, folder)]
            if part == before:  # features of new memes, which the block takes for granted
                labelled = ["--data", "labelled.jsonl", "--split", "new"]
                for place in ("NEW_FEATURES", f"{RUN}/features/new"):
                    walk_extract(walk, *labelled, "--output", place)
    (folder / "printed.json").write_text(json.dumps(printed), encoding="utf-8")


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
def walk(walked: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A copy of the folder after the main block, for one test to change."""
    folder = Path(shutil.copytree(walked[0], tmp_path / "walk", symlinks=True))
    monkeypatch.setenv("HOME", str(folder))
    (folder / "runs").mkdir()
    for name, target in {"runs/stage2": f"{RUN}/stage2", "RUN": f"{RUN}/stage2", "BANK": "banks/memes"}.items():
        (folder / name).symlink_to(folder / target)
    return Walk(folder)
