"""Every command of README.md, docs/ and data/README.md is one that the programs understand, without running it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from documented import Block, blocks, expanded
from engines import ROOT
from typer.core import TyperCommand
from typer.main import get_command
from typer.testing import CliRunner

from ra_hmd.cli.app import app

PLACEHOLDER = "…"
# Programs of other projects: that they are called is all that is checked here.
OTHERS = {"ray", "curl", "docker", "hf", "kubectl", "pip", "pre-commit", "sudo", "sqlite3", "tar", "source", "vllm",
          "git", "pipx", "twine"}  # fmt: skip
# Programs that are named by their path: the repository's own, which must exist, and another project's.
PATHS = re.compile(r"^source .*$|&& ~/vllm/bin/pip install vllm$|^(?:\w+=\w+ )*(?P<own>\.ci/run|scripts/\w+\.sh)\b.*$",
                   re.MULTILINE)  # fmt: skip
COMPLETION = {"--install-completion", "--show-completion"}
# Values that a page's earlier sentences or blocks introduce.
VARIABLES = {"RUN": "RUN", "KEY": "KEY", "OUT": "OUT", "DATA": "DATA", "CASE": "CASE"}


def page_of(block: Block) -> str:
    path = ROOT / block.page
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def commands_of(block: Block, work: Path) -> list[list[str]]:
    """The commands of a block; YAML blocks of its page that begin with `# NAME.yaml` are files."""
    for name in ("cat.png", "cake.jpg"):
        (work / name).touch()
    for text, name in re.findall(r"^```yaml\n(# (\w+\.yaml)\n.*?)^```", page_of(block), re.MULTILINE | re.DOTALL):
        (work / name).write_text(text)
    found = expanded(PATHS.sub("", block.text), work, VARIABLES)
    return [[str(work / word) if word.endswith(".yaml") and (work / word).is_file() else word for word in words]
            for words in found]  # fmt: skip


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The usage error of a command line, "" where there is none; the command itself is not called."""
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: None)

    def parse(words: list[str]) -> str:
        done = CliRunner().invoke(app, words, env={"COLUMNS": "1000"})
        if done.exit_code == 0:
            return ""
        if PLACEHOLDER in words:  # stands for options that the page showed before
            done = CliRunner().invoke(app, [word for word in words if word != PLACEHOLDER], env={"COLUMNS": "1000"})
            if "Missing option" in done.output:
                return ""
        return done.output

    return parse


def check_config(words: list[str]) -> None:
    """Files that lie in `configs/` or `scripts/` exist."""
    for word in words:
        if word.startswith(("configs/", "scripts/")) and PLACEHOLDER not in word:
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_parse(block: Block, parse: Callable[..., str], tmp_path: Path) -> None:
    found = commands_of(block, tmp_path)
    own = [match["own"] for match in PATHS.finditer(block.text) if match["own"]]
    assert all((ROOT / name).is_file() for name in own), own
    assert found or own, "a block without a command"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in found:
        words = command[command.index("ra-hmd") :] if command[0] == "torchrun" else command
        program, *rest = words
        check_config(rest)
        if program == "ra-hmd" and rest[0] in COMPLETION:  # writes to the shell's own files as soon as it is read
            assert rest[0] in {name for option in get_command(app).params for name in option.opts}
        elif program == "ra-hmd":
            error = parse(rest)
            assert not error, f"{' '.join(words)}\n{error}"
        elif program == "make":
            assert {word for word in rest if "=" not in word} <= targets, rest
        elif program == "llamafactory-cli":
            assert rest[0] in ("train", "export"), rest
        else:
            assert program in OTHERS | {"python", "python3"}, program


def test_a_command_that_is_not_understood_is_found(parse: Callable[..., str], tmp_path: Path) -> None:
    block = Block("here", 1, "bash", "for k in 1 2; do ra-hmd bank info banks/memes --colour $k; done\n")
    (first, second) = commands_of(block, tmp_path)
    assert [first[-1], second[-1]] == ["1", "2"]
    assert "No such option: --colour" in parse(first[1:])
