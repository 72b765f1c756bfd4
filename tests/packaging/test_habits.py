"""What keeps the code in order: the workflow, the hooks and `make lint` name the same checks."""

import re
import sys
import tomllib
from pathlib import Path

import yaml
from engines import ROOT, run

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def test_the_workflow_is_valid_and_runs_what_a_developer_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout
    (job,) = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-2:] == ["make lint", "make test"]


def test_the_hooks_are_checks_of_make_lint() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.findall(r"^\t\$\(BIN\)/(.*)$", makefile.partition("\nlint:")[2].partition("\n\n")[0], re.MULTILINE)
    hooks = [
        hook["entry"].replace(" --force-exclude", "")
        for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
        for hook in repository["hooks"]
    ]
    assert set(hooks) <= {line.removesuffix(" .") for line in lint}
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    declared = {re.split(r"[<>=\[;! ]", name)[0] for name in extra["dev"]}
    assert {"codespell", "import-linter", "mypy", "pre-commit", "ruff"} <= declared
