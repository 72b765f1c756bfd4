"""The image's recipe, without an engine: linted, its rules checked, and everything in the context that it copies."""

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser
from engines import BIN, ROOT, run

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
VOLUMES = [volume["target"] for volume in COMPOSE["detector"]["volumes"] if volume["type"] == "volume"]
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


@pytest.fixture(scope="module")
def context() -> set[str]:
    """What an engine is sent: the files below the repository, less those that .dockerignore leaves out."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return {path for path in exclude_paths(str(ROOT), patterns) if (ROOT / path).is_file()}


def hadolint(text: str) -> list[str]:
    """Codes that the linter finds."""
    done = subprocess.run(
        [str(BIN / "hadolint"), "--no-fail", "--format", "json", "-"],
        input=text, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return [finding["code"] for finding in json.loads(done.stdout)]


def parts(text: str) -> list[tuple[str, str]]:
    """(instruction, value) in order."""
    parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    return [(part["instruction"], part["value"]) for part in parser.structure if part["instruction"] != "COMMENT"]


def pinned(image: str) -> bool:
    """Whether an image names one release: a tag with a number of two parts, or a digest."""
    return "@sha256:" in image or bool(re.search(r":[^/]*\d+[.-]\d+", image))


def broken_rules(text: str, context: set[str]) -> list[str]:
    """What the linter cannot know, or leaves open."""
    found, users, defaults, stages = [], [], {}, set()
    for instruction, value in parts(text):
        match instruction:
            case "ARG":
                name, _, default = value.partition("=")
                defaults[name] = default
            case "FROM":
                image, *rest = value.split()
                image = re.sub(r"\$\{(\w+)\}", lambda name: defaults.get(name[1], ""), image)
                found += [] if image in stages or pinned(image) else [f"not pinned: {image}"]
                stages |= {rest[1]} if rest else set()
                users = []
            case "USER":
                users.append(value)
            case "COPY" if "--from=" not in value:
                for source in value.split()[:-1]:
                    names = [path for path in context if path == source or path.startswith(f"{source}/")]
                    found += [] if names else [f"not in the context: {source}"]
        if instruction in ("ARG", "ENV"):
            found += [f"secret: {name}" for name in re.findall(r"(\w+)=", value) if SECRET.search(name)]
    user = users[-1].partition(":")[0] if users else "root"
    found += [] if user.isdecimal() and user != "0" else [f"runs as {user}"]
    last = dict(parts(text[text.rindex("\nFROM ") :]))
    found += [] if "127.0.0.1:8000/health" in last.get("HEALTHCHECK", "") else ["no health check"]
    shared = [re.search(rf"install -d -m 1777 {path}$", text, re.MULTILINE) for path in VOLUMES]
    found += [] if shared and all(shared) else ["cache of one user alone"]
    found += [] if last.get("ENTRYPOINT") == '["ra-hmd"]' else ["entry point"]
    return found


def test_linter_and_rules_find_nothing(context: set[str]) -> None:
    assert hadolint(DOCKERFILE) == []
    assert broken_rules(DOCKERFILE, context) == []


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("python:3.11.14-slim-bookworm", "python:latest", "not pinned: python:latest"),
        ("FROM ${PYTHON_IMAGE} AS runtime", "FROM debian AS runtime", "DL3006"),
        ("USER 10001:10001\n", "", "runs as root"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("USER 10001:10001", "USER 0:0", "runs as 0"),
        ("COPY stage2 stage2", "COPY stage3 stage3", "not in the context: stage3"),
        ("COPY stage2 stage2", "COPY tests tests", "not in the context: tests"),
        ("COPY stage2 stage2", "COPY .git .git", "not in the context: .git"),
        ("ENV PATH=/opt/ra-hmd/bin:$PATH \\", "ENV API_KEY=abc \\", "secret: API_KEY"),
        ("ARG EXTRAS=", "ARG HUB_TOKEN=x\nARG EXTRAS=", "secret: HUB_TOKEN"),
        ("-m 1777 /home", "-o ra-hmd /home", "cache of one user alone"),
        ('ENTRYPOINT ["ra-hmd"]', "ENTRYPOINT ra-hmd serve", "DL3025"),
        ('ENTRYPOINT ["ra-hmd"]\n', "", "entry point"),
        ("/health'", "/'", "no health check"),
        ("EXPOSE 8000", "RUN apt-get update && apt-get install -y curl", "DL3008"),
        ("EXPOSE 8000", "RUN cd /tmp && sudo make", "DL3004"),
        ("EXPOSE 8000", "EXPOSE 80000", "DL3011"),
        ("EXPOSE 8000", "EXPORT 8000", "DL1000"),
    ],
)
def test_a_defect_is_found(context: set[str], old: str, new: str, code: str) -> None:
    assert old in DOCKERFILE
    bad = DOCKERFILE.replace(old, new)
    assert code in [*hadolint(bad), *(broken_rules(bad, context) if code != "DL1000" else [])]


def test_context_holds_what_the_wheel_is_made_of_and_no_more(context: set[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a Git checkout: which files belong to it is not known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {path for path in listed.stdout.splitlines() if (ROOT / path).is_file()}
    tops = {"ra_hmd", "llamafactory_ext", "stage2", "configs", "pyproject.toml", "README.md", "LICENSE"}
    assert {path.partition("/")[0] for path in context} - {"Dockerfile", ".dockerignore"} == tops
    assert {path for path in tracked if path.partition("/")[0] in tops} <= context
    assert not [path for path in context if "__pycache__" in path or path.endswith(".pyc")]


def test_wheel_built_from_the_context_is_whole(context: set[str], tmp_path: Path) -> None:
    for path in context:
        target = tmp_path / "context" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], tmp_path / "context")
    assert done.returncode == 0, done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {path for path in context if path.startswith(("ra_hmd/", "stage2/", "llamafactory_ext/"))}
    start = {"llamafactory_ext/llamafactory_ext.pth", "llamafactory_ext/llamafactory_ext.start"}
    assert packaged - start <= names
    others = {"llamafactory_ext.pth", "llamafactory_ext.start", "ra_hmd/cards/templates/model_card.md.j2"}
    assert others | {"ra_hmd/py.typed"} <= names
    shared = {name.partition("share/ra-hmd/")[2] for name in names if "share/ra-hmd/" in name}
    assert {path for path in context if path.startswith("configs/")} == shared
    assert "[console_scripts]\nra-hmd = ra_hmd.cli.app:app" in zipfile.ZipFile(wheel).read(
        next(name for name in names if name.endswith("entry_points.txt"))
    ).decode().replace("\r", "")


def test_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (given,) = [value.partition("=")[2] for name, value in parts(DOCKERFILE) if value.startswith("EXTRAS=")]
    assert set(given.split(",")) <= set(extras)


def test_build_arguments_of_compose_are_the_recipes() -> None:
    known = {value.partition("=")[0] for name, value in parts(DOCKERFILE) if name == "ARG"}
    given = {name for service in COMPOSE.values() for name in service.get("build", {}).get("args", {})}
    assert given
    assert given <= known
