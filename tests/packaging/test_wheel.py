"""The wheel and the source distribution as PyPI would get them, and the wheel in an environment of its base alone.

That environment downloads nothing: its `site-packages` holds links to the packages that the base of the project needs,
and to no others, so that LLaMA-Factory, Gradio, DeepSpeed, bitsandbytes, Liger and PEFT are not there.
"""

import email
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from engines import ROOT, child_env, run
from expert_models import bench
from PIL import Image

pytestmark = pytest.mark.slow

HIDDEN = ("llamafactory", "gradio", "deepspeed", "bitsandbytes", "liger_kernel", "peft", "trl", "qwen_vl_utils")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The distributions that `python -m build` makes, by their suffix: the wheel is built from the source."""
    folder = tmp_path_factory.mktemp("dist")
    done = run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder)
    assert done.returncode == 0, done.stdout
    return {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def metadata(built: dict[str, Path]) -> Message:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_string(wheel.read(name).decode())


def test_twine_finds_nothing(built: dict[str, Path]) -> None:
    assert set(built) == {".whl", ".gz"}
    done = run([sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())], ROOT)
    assert done.returncode == 0, done.stdout


def test_the_wheel_has_what_is_read_at_run_time(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
    for pattern in ("*.html", "*.json", "*.j2", "*.yaml", "*.ini", "*.css", "*.js", "*.py", "*.pyi", "*.typed"):
        for top in ("ra_hmd", "stage2", "llamafactory_ext"):
            files = {path.relative_to(ROOT).as_posix() for path in (ROOT / top).rglob(pattern)}
            assert files <= names, files - names
    assert {"ra_hmd/py.typed", "llamafactory_ext.pth", "llamafactory_ext.start"} <= names
    assert any(name.startswith("ra_hmd/desk/locales/de/") for name in names)
    assert any(name.startswith("ra_hmd/cases/migrations/versions/") for name in names)
    shared = {name.partition("share/ra-hmd/")[2] for name in names if "share/ra-hmd/" in name}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")} <= shared
    assert not [name for name in names if name.startswith(("tests/", "docs/", "scripts/")) or "__pycache__" in name]


def test_the_source_distribution_builds_and_tests_the_package(built: dict[str, Path]) -> None:
    with tarfile.open(built[".gz"]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "mkdocs.yml", "tests/conftest.py"} <= names
    assert {"docs/development.md", "configs/stage2/hateful_memes.yaml", "scripts/bench/install_size.py"} <= names


def test_metadata_name_every_extra_and_the_base_has_no_trainer(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    base = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    named = {re.split(r"[^\w-]", text)[0] for text in base}
    assert len(base) == len(PROJECT["dependencies"])
    assert not named & {name.replace("_", "-") for name in HIDDEN}
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_no_link_of_the_description_is_relative(metadata: Message) -> None:
    text = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)", text)
    assert len(links) > 10
    assert [link for link in links if not re.match(r"https?://", link)] == []
    places = re.findall(r"https://github.com/OWNER/ra-hmd/(blob|raw)/v[\d.]+/([^)#\s\"]+)", text)
    assert places
    for kind, place in places:
        assert (ROOT / place).exists(), place
        assert (kind == "raw") == place.endswith((".svg", ".png")), place


@pytest.fixture(scope="module")
def base(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment that has the wheel and what its base needs."""
    folder = tmp_path_factory.mktemp("base")
    made = run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], folder)
    assert made.returncode == 0, made.stdout
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    size = bench("install_size")
    packages, missing = size.closure(*size.project_requirements())
    assert not missing
    for package in packages.values():
        for top in {file.parts[0] for file in package.files or []} - {"..", "bin", "share", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    installed = run([*pip, str(built[".whl"])], folder)
    assert installed.returncode == 0, installed.stdout
    return python.parent


def asked(base: Path, cwd: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of that environment; stdout and stderr apart."""
    env = {key: value for key, value in child_env().items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    command = [str(base / words[0]), *map(str, words[1:])]
    env |= {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)


def test_python_starts_in_silence_and_sees_no_trainer(base: Path, tmp_path: Path) -> None:
    script = f"""
import importlib.util, sys
assert "llamafactory_ext._autoload" in sys.modules, "the .pth file ran"
print([name for name in {HIDDEN!r} if importlib.util.find_spec(name)])
import ra_hmd
from ra_hmd import Detector
print(ra_hmd.__file__)
"""
    done = asked(base, tmp_path, "python", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    hidden, place = done.stdout.splitlines()
    assert hidden == "[]"
    assert Path(place).is_relative_to(base.parent)


def test_help_and_doctor(base: Path, tmp_path: Path) -> None:
    shown = asked(base, tmp_path, "ra-hmd", "--help")
    assert shown.returncode == 0, shown.stderr
    done = asked(base, tmp_path, "ra-hmd", "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    problems = [check for check in checks.values() if check["status"] == "problem"]
    assert not [check for check in problems if not check["name"].startswith("disk")]
    assert done.returncode == int(bool(problems))
    for extra in ("lmm", "train"):
        assert checks[f"extra {extra}"]["status"] == "note"
        assert "llamafactory" in checks[f"extra {extra}"]["found"]
        assert f"pip install 'ra-hmd[{extra}]'" in checks[f"extra {extra}"]["remedy"]
    assert checks["plugin"]["status"] == "ok"
    assert "torchrun" not in checks


# Commands one after the other in one process, as each would import torch again.
JUDGING = """
import sys
from ra_hmd.cli.app import app

def ra_hmd(*words):
    try:
        app([str(word) for word in words])
    except SystemExit as done:
        if done.code:
            sys.exit(f"{words}: {done.code}")

ra_hmd("data", "make-confounders", "--output", "memes", "--size", "24")
ra_hmd("tiny-encoder", "--family", "clip", "--output", "encoder")
for split in ("train", "dev"):
    ra_hmd("encode", "--encoder", "encoder", "--data", "memes/a", "--split", split, "--output", f"features/{split}",
           "--workers", "0")
ra_hmd("tiny-encoder", "--family", "siglip", "--output", "siglip")
ra_hmd("encode", "--encoder", "siglip", "--data", "memes/a", "--split", "dev", "--output", "siglip/dev",
       "--workers", "0")
ra_hmd("linear-probe", "--train", "features/train", "--dev", "features/dev", "--output", "probe")
ra_hmd("bank", "create", "bank", "--checkpoint", "probe", "--features", "features/train", "--reason", "start")
"""


@pytest.fixture(scope="module")
def judged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a head on a tiny CLIP, a bank and a picture, made in that environment."""
    folder = tmp_path_factory.mktemp("judged")
    Image.new("RGB", (64, 64), "orange").save(folder / "cat.png")
    done = asked(base, folder, "python", "-c", JUDGING)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_meme_is_judged_by_a_frozen_encoder_and_a_bank(base: Path, judged: Path) -> None:
    words = ("predict", "cat.png", "--text", "late again", "--checkpoint", "probe", "--bank", "bank", "--json")
    done = asked(base, judged, "ra-hmd", *words)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    verdict = answer[0] if isinstance(answer, list) else answer
    assert verdict["verdict"] in (0, 1)
    assert len(verdict["neighbours"]) > 0


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "cat.png", "--text", "late again", "--checkpoint", "RUN"),
        ("extract", "--checkpoint", "RUN", "--data", "memes/a", "--split", "dev", "--output", "out"),
    ],
)
def test_a_language_model_asks_for_its_extra(
    base: Path, judged: Path, words: tuple[str, ...], stage1_run: Path
) -> None:
    done = asked(base, judged, "ra-hmd", *(stage1_run if word == "RUN" else word for word in words))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert re.search(r"Error: The language model \S+ needs the extra `lmm` \(llamafactory, .* missing\): ", said)
    assert said.endswith("pip install 'ra-hmd[lmm]'.")
    assert not (judged / "out").exists()


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("demo", "--output", "demo"), "train"),
        (("ablate", "--output", "ablation", "--seeds", "1"), "train"),
        (("serve", "probe", "--bank", "bank"), "serve"),
    ],
)
def test_other_commands_ask_before_they_begin(base: Path, judged: Path, words: tuple[str, ...], extra: str) -> None:
    before = sorted(path.name for path in judged.iterdir())
    done = asked(base, judged, "ra-hmd", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"pip install 'ra-hmd[{extra}]'" in done.stderr
    assert sorted(path.name for path in judged.iterdir()) == before


def test_training_ends_with_a_sentence(base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("stage: sft-classifier\n")
    done = asked(base, tmp_path, "python", "-m", "llamafactory_ext", "x.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("ra-hmd: Training needs the extra `train` (llamafactory, ")
