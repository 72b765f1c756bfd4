"""What a prediction imports: what the run needs, and no more."""

import shutil
import sys
from pathlib import Path

import pytest
from engines import run

pytestmark = pytest.mark.slow

HOST = {"llamafactory", "trl", "deepspeed", "peft", "datasets", "gradio", "fastapi", "pymilvus", "matplotlib", "openai"}
MODELS = {"transformers", "sklearn"}
SCRIPT = (
    "import sys\nfrom ra_hmd.cli.app import app\n"
    "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
    "print('imported', *sorted({name.split('.')[0] for name in sys.modules}))"
)


def imported(folder: Path, *words: object) -> set[str]:
    """The top-level packages that a command imports in a process of its own."""
    lines = run([sys.executable, "-c", SCRIPT, *map(str, words)], folder).stdout.splitlines()
    return set(lines[-1].split()[1:])


def test_an_encoder_run_needs_no_host(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    picture = next((memes / "a").rglob("*.png"))
    shutil.copy(picture, tmp_path / "meme.png")
    one = ["predict", "--checkpoint", served_clip / "head", tmp_path / "meme.png", "--text", "a cat"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "memes.jsonl").write_text('{"id": "1", "image": "../meme.png", "text": "a cat"}\n')
    many = ["predict", "--checkpoint", served_clip / "head", "--input", tmp_path / "folder" / "memes.jsonl",
            "--output", tmp_path / "out.jsonl"]  # fmt: skip
    for words in (one, many):
        found = imported(tmp_path, *words)
        assert "transformers" in found
        assert found & HOST == set()


@pytest.mark.parametrize("command", ["predict", "search"])
def test_features_that_are_there_need_no_model(served_clip: Path, tmp_path: Path, command: str) -> None:
    store = served_clip / "features" / "dev"
    words = {
        "predict": ["predict", "--checkpoint", served_clip / "head", "--queries", store, "--output",
                    tmp_path / "out.jsonl"],
        "search": ["bank", "search", served_clip / "bank", "--checkpoint", served_clip / "head", "--queries", store],
    }  # fmt: skip
    found = imported(tmp_path, *words[command])
    assert "torch" in found
    assert found & (HOST | MODELS) == set()
