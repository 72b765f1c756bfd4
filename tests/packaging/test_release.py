"""The release workflow: valid by GitHub's schema, actions pinned, no right that a job does not need."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from engines import ROOT, run

SHELL = {"PATH": "/usr/bin:/bin"}
WORKFLOWS = ROOT / ".github" / "workflows"
RIGHTS = {"id-token": "gh-action-pypi-publish", "contents": "mike deploy"}
"""Right to write, and the step that needs it."""
RELEASE = (WORKFLOWS / "release.yml").read_text(encoding="utf-8")


def valid(text: str, folder: Path) -> bool:
    """Whether GitHub's schema of workflows, as check-jsonschema brings it along, holds."""
    path = folder / "workflow.yml"
    path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    return run(command, folder).returncode == 0


def broken_rules(text: str) -> list[str]:
    """What the schema leaves open."""
    content: dict[str, Any] = yaml.safe_load(text)
    found = [f"not pinned: {action}" for action in re.findall(r"uses: (\S+)", text)
             if not re.search(r"@[0-9a-f]{40}$", action)]  # fmt: skip
    if content.get("permissions") != {}:
        found.append("rights of every job")
    for name, job in content["jobs"].items():
        found += [] if "timeout-minutes" in job else [f"{name}: no limit of time"]
        found += [] if "permissions" in job else [f"{name}: rights are not stated"]
        writes = {key for key, value in job.get("permissions", {}).items() if value == "write"}
        steps = " ".join(str(step) for step in job["steps"])
        needed = {right for right, step in RIGHTS.items() if step in steps}
        found += [f"{name}: may write {right}" for right in sorted(writes - needed)]
        if "id-token" in writes and re.search(r"'run'|checkout", steps):
            found.append(f"{name}: runs code beside the right to publish")
    if re.search(r"\$\{\{\s*(github\.(ref|event|head)|secrets)", text):
        found.append("an expression in a script, or a secret")
    return found


@pytest.mark.parametrize("name", sorted(path.name for path in WORKFLOWS.iterdir()))
def test_workflows_are_valid(name: str, tmp_path: Path) -> None:
    assert valid((WORKFLOWS / name).read_text(encoding="utf-8"), tmp_path)


def test_no_rule_is_broken() -> None:
    assert broken_rules(RELEASE) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gh-action-pypi-publish@76f52bc884231f62b9a034ebfe128415bbaabdfc", "gh-action-pypi-publish@v1", "not pinned"),
        ("permissions: {}\n\nconcurrency", "permissions: write-all\n\nconcurrency", "rights of every job"),
        ("contents: read", "contents: write", "build: may write contents"),
        ("    timeout-minutes: 15\n", "", "publish: no limit of time"),
        ("environment: pypi\n", "environment: pypi\n    steps_: 0\n", ""),
        ('$GITHUB_REF_NAME" =', '${{ github.ref_name }}" =', "an expression in a script"),
        ("id-token: write #", "packages: write #", "publish: may write packages"),
    ],
)
def test_a_defect_is_found(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in RELEASE
    bad = RELEASE.replace(old, new)
    if said:
        assert any(said in rule for rule in broken_rules(bad))
    else:
        assert not valid(bad, tmp_path)


def test_jobs_wait_for_each_other_and_a_tag_is_a_version(tmp_path: Path) -> None:
    content = yaml.safe_load(RELEASE)
    waits = {name: job.get("needs") for name, job in content["jobs"].items()}
    assert waits == {"build": None, "install": "build", "publish": "install", "docs": "publish"}
    (step,) = [step for step in content["jobs"]["build"]["steps"] if step.get("name", "").startswith("The tag is")]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "ra_hmd" / "__init__.py").read_text())
    assert version is not None
    changes = (ROOT / "CHANGELOG.md").read_text()
    heading = re.search(rf"^## \[{re.escape(version[1])}\] - (Unreleased|\d{{4}}-\d\d-\d\d)$", changes, re.MULTILINE)
    assert heading is not None, "the section of this version"
    dated = changes.replace(heading[0], f"## [{version[1]}] - 2026-12-24")
    (tmp_path / "ra_hmd").mkdir()
    shutil.copy(ROOT / "ra_hmd" / "__init__.py", tmp_path / "ra_hmd")
    for tag, text, code in (
        (f"v{version[1]}", dated, 0),
        ("v9.9.9", dated, 1),
        (f"v{version[1]}", dated.replace("- 2026-12-24", "- Unreleased"), 1),
    ):
        (tmp_path / "CHANGELOG.md").write_text(text)
        environment = {"GITHUB_REF_NAME": tag, **SHELL}
        done = subprocess.run(["bash", "-ec", step["run"]], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == code, (tag, done)


def test_links_of_the_readme_become_those_of_the_repository_that_releases() -> None:
    (command,) = re.findall(r"sed -i (\".+\") pyproject.toml", RELEASE)
    environment = {"GITHUB_SERVER_URL": "https://forge.example", "GITHUB_REPOSITORY": "some/name", **SHELL}
    done = subprocess.run(
        ["bash", "-ec", f"sed {command} pyproject.toml"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OWNER/" not in done.stdout
    assert done.stdout.count("https://forge.example/some/name/") == 4
