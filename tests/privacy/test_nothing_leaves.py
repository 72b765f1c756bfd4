"""No command asks a host by itself, or writes at home beside the caches that docs/deploy.md names: under a resolver and
a home folder that keep every attempt, native code included.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import BIN, ROOT, child_env, run
from servers import drawn, encoded, in_process

from ra_hmd.core.privacy import _SETTINGS, keep_private

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CACHES = (".cache/huggingface/", ".cache/matplotlib/", ".config/matplotlib/", ".triton/")
"""What docs/deploy.md names."""
FORCED = (*_SETTINGS, "HF_HUB_OFFLINE", "HF_HOME", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "MPLCONFIGDIR")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that keeps the hosts that are asked."""
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        pytest.skip("a library for LD_PRELOAD needs Linux and gcc")
    library = tmp_path_factory.mktemp("shim") / "asked_hosts.so"
    source = HERE / "asked_hosts.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def watched(shim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """For child processes: an empty home, and no setting of the tests' own. Call it to check what they did."""
    home, asked = tmp_path / "home", tmp_path / "asked"
    home.mkdir()
    (tmp_path / "tmp").mkdir()
    for name in [name for name in os.environ if name in FORCED or name.startswith("XDG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("ASKED_HOSTS", str(asked))
    monkeypatch.setenv("LD_PRELOAD", str(shim))

    def check() -> None:
        assert not asked.exists(), asked.read_text()
        written = [str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir()]
        assert [name for name in written if not name.startswith(CACHES)] == []

    yield check
    check()


def test_the_resolver_and_the_home_keep_what_is_done(watched: Callable[[], None], tmp_path: Path) -> None:
    """Else the tests below could not fail. onnxruntime's own setting is what is taken away here."""
    code = "import socket\ntry:\n    socket.create_connection(('models.example.org', 443))\nexcept OSError: pass"
    assert run([sys.executable, "-c", code], tmp_path).returncode == 0
    with pytest.raises(AssertionError, match="resolve models.example.org"):
        watched()
    (tmp_path / "asked").unlink()
    code = "import socket\ntry:\n    socket.create_connection(('192.0.2.7', 443))\nexcept OSError: pass"
    assert run([sys.executable, "-c", code], tmp_path).returncode == 0
    with pytest.raises(AssertionError, match="connect 192.0.2.7"):
        watched()
    (tmp_path / "asked").unlink()
    note = tmp_path / "home" / ".cache" / "Maker" / "deviceid"
    code = f"import pathlib\np = pathlib.Path({str(note)!r})\np.parent.mkdir(parents=True)\np.touch()"
    assert run([sys.executable, "-c", code], tmp_path).returncode == 0
    with pytest.raises(AssertionError, match="deviceid"):
        watched()
    note.unlink()


def _commands(clip: Path, lmm: Path, memes: Path, out: Path) -> list[list[str | Path]]:
    """Every command that can be run on a few drawn memes without another service."""
    picture = out / "cake.png"
    picture.write_bytes(drawn((200, 80)))
    (out / "settings.yaml").write_text(
        "fusion: align\nmap_dim: 16\nproj_dim: 16\nnum_layers: 2\nepochs: 1\nlr: 1.0e-2\n"
    )
    (out / "stage2.yaml").write_text(f"init_head: {clip}/head\nepochs: 1\n")
    f, head, bank, data = clip / "features", shutil.copytree(clip / "head", out / "head"), out / "bank", memes / "a"
    shutil.copytree(clip / "bank", bank)
    trained = shutil.copytree(lmm / "run", out / "run")
    return [
        ["doctor"],
        ["tiny-encoder", "--family", "clip", "--output", out / "clip"],
        ["tiny-lmm", "--output", out / "lmm"],
        ["encode", "--encoder", out / "clip", "--data", data, "--split", "dev", "--workers", "1",
         "--output", out / "encoded"],
        ["extract", "--checkpoint", trained, "--data", data, "--split", "dev", "--workers", "1", "--limit", "4",
         "--output", out / "extracted"],
        ["zero-shot", "--encoder", clip / "clip", "--output", out / "zero"],
        ["linear-probe", "--train", f / "train", "--dev", f / "dev", "--output", out / "probe"],
        ["train-head", out / "settings.yaml", f"train={f}/train", f"dev={f}/dev", f"output_dir={out}/trained"],
        ["stage2", out / "stage2.yaml", f"train={f}/train", f"dev={f}/dev", f"output_dir={out}/refined"],
        ["evaluate", "--checkpoint", head, "--bank", f / "train", "--queries", f / "dev", "--bootstrap-samples", "100",
         "--output", out / "evaluation"],
        ["staleness", "--checkpoint", head, "--bank", f / "train", "--bank", f / "dev", "--output", out / "staleness"],
        ["results", out / "evaluation", "--output", out / "results.md"],
        ["card", head, "--output", out / "card"],
        ["features", "export", f / "dev", "--output", out / "dev.pt"],
        ["features", "import", out / "dev.pt", "--output", out / "imported"],
        ["bank", "info", bank],
        ["bank", "search", bank, "--checkpoint", head, "--queries", f / "dev"],
        ["bank", "effect", bank, "--checkpoint", head, "--queries", f / "dev", "--add", f / "dev"],
        ["bank", "create", out / "bank.db", "--checkpoint", head, "--features", f / "train", "--reason", "start"],
        ["bank", "search", out / "bank.db", "--checkpoint", head, "--queries", f / "dev"],
        ["predict", "--checkpoint", head, "--head", "rkc", "--bank", bank, picture],
        ["predict", "--checkpoint", trained, "--text", "a cake", picture],
        ["explain", "--checkpoint", trained, "--text", "a cake", "--max-new-tokens", "4", picture],
        ["in-context", "--checkpoint", trained, "--data", data, "--split", "dev", "--shots", "0",
         "--output", out / "in-context"],
        ["serve-key", "ana", "--keys", out / "keys.json"],
    ]  # fmt: skip


def test_commands(
    watched: Callable[[], None], served_clip: Path, served_lmm: Path, memes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
    out = tmp_path / "out"
    out.mkdir()
    commands = _commands(served_clip, served_lmm, memes, out)
    lines = "".join(json.dumps([str(word) for word in words]) + "\n" for words in commands)
    program = [sys.executable, str(HERE / "commands_in_turn.py")]
    done = subprocess.run(program, input=lines, cwd=out, env=child_env(), capture_output=True, text=True, timeout=900,
                          check=False)  # fmt: skip
    told: list[list[Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(told) == len(commands), done.stderr[-4000:]
    wrong = {
        " ".join(map(str, words)): found
        for words, found in zip(commands, told, strict=True)
        if found[0] not in ((0, 1) if words[0] == "doctor" else (0,))
        or found[1]
        or not all(file.startswith(CACHES) for file in found[2])
    }
    assert not wrong, f"{wrong}\n{done.stderr[-4000:]}"


def test_training_by_the_host_and_by_module(
    watched: Callable[[], None], stage1_config: Callable[..., dict[str, Any]], served_clip: Path, tmp_path: Path
) -> None:
    config = stage1_config(tmp_path / "run", max_samples=8, eval_dataset=None, plot_loss=True)
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    (tmp_path / "stage2.yaml").write_text(f"init_head: {served_clip}/head\nepochs: 1\n")
    features = served_clip / "features"
    for command in (
        [str(BIN / "llamafactory-cli"), "train", "run.yaml"],
        [sys.executable, "-m", "llamafactory_ext", "run.yaml"],
        [sys.executable, "-m", "stage2", "stage2.yaml", f"train={features}/train", f"dev={features}/dev",
         f"output_dir={tmp_path}/refined"],
    ):  # fmt: skip
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stdout[-4000:]
        watched()


def test_the_service_and_its_page(
    watched: Callable[[], None], served_clip: Path, clip_bank: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
    words = ("console", served_clip / "head", "--bank", clip_bank, "--author", "ana")
    offline = {"HF_HUB_OFFLINE": "0"}  # `in_process` would forbid what shall be seen
    with in_process(*words, log=tmp_path / "log", cwd=tmp_path, **offline) as (_, client):
        base = str(client.base_url).removesuffix("/").removesuffix("/console")
        assert client.get(f"{base}/console/review").status_code == 200
        meme = {"image": encoded(drawn((200, 80)))}  # its caption is read
        assert client.post(f"{base}/v1/classify", json={"memes": [meme]}).status_code == 200


def test_a_user_s_own_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    keep_private()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "True"
    assert {name: os.environ[name] for name in _SETTINGS} == _SETTINGS | {
        "ORT_DISABLE_TELEMETRY": "0",
        "GRADIO_ANALYTICS_ENABLED": "True",
    }


@pytest.mark.parametrize("entry", ["ra_hmd.cli.app", "stage2.__main__", "llamafactory_ext.__main__"])
def test_every_entry_point_sets_it_before_what_heeds_it(entry: str, tmp_path: Path) -> None:
    """A stub of each library looks at the environment when it is imported, as the libraries do."""
    code = (
        "import builtins, os, sys\n"
        f"names = {list(_SETTINGS)}\n"
        "[os.environ.pop(name, None) for name in names]\n"
        "real = builtins.__import__\n"
        "def watching(name, *rest, **more):\n"
        "    if name.partition('.')[0] in ('onnxruntime', 'gradio', 'huggingface_hub', 'transformers', 'wandb'):\n"
        "        assert all(one in os.environ for one in names), name\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = watching\n"
        f"import {entry}\n"
        "assert all(one in os.environ for one in names)\n"
    )
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-2000:]
