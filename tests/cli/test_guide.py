"""The help shows the way through the commands, with examples that the commands accept, and the next command."""

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from engines import BIN
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.cli.finish import Outcome, guide
from ra_hmd.cli.guide import STEPS, About

ABOUT = {words: about for commands in STEPS.values() for words, about in commands.items()}
ROOT = typer.main.get_command(app)


def _commands(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield " ".join((*before, name)), command
        if hasattr(command, "commands"):
            yield from _commands(command, (*before, name))


COMMANDS = dict(_commands(ROOT))
EXPORTS = {"cases export"}  # what it prints is a file


def _options(command: Any) -> set[str]:
    return {option for one in command.params for option in one.opts}


def test_without_a_command_the_steps_are_shown_in_their_order() -> None:
    shown = CliRunner().invoke(app, [], env={"COLUMNS": "120"}).output
    places = [shown.index(f"─ {step} ─") for step in STEPS]
    assert places == sorted(places)
    assert "llamafactory-cli train" in shown
    for name in ROOT.commands:  # type: ignore[attr-defined]
        assert re.search(rf"│ {name} ", shown), name


def test_the_table_has_every_command_and_no_other() -> None:
    assert set(ABOUT) == set(COMMANDS)
    assert [
        words for words, command in COMMANDS.items() if not hasattr(command, "commands") if not command.epilog
    ] == []


def test_every_command_with_a_result_prints_it_as_json() -> None:
    servers = {"serve", "console", "serve-key"}  # what they print is an address, a key
    without = {words for words, command in COMMANDS.items() if "--json" not in _options(command)}
    assert {words for words in without if not hasattr(COMMANDS[words], "commands")} <= servers | EXPORTS


@pytest.mark.parametrize("words", [words for words, about in ABOUT.items() if about.examples])
def test_the_examples_of_a_command_are_accepted_by_its_parser(words: str) -> None:
    for example in ABOUT[words].examples:
        COMMANDS[words].make_context(words, shlex.split(example), resilient_parsing=False)


def test_the_parser_of_examples_refuses_an_option_that_does_not_exist() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["extract"].make_context("extract", ["--no-such-option", "x"])


def test_a_next_command_names_only_commands_that_exist_and_values_that_the_command_has() -> None:
    from_results = {"init": {"first"}, "push": {"folder"}, "train-head": {"output_dir"}, "stage2": {"output_dir"}}
    for words, about in ABOUT.items():
        names = {one.name for one in COMMANDS[words].params} | from_results.get(words, set())
        assert set(re.findall(r"{(\w+)}", about.next)) <= names, words
        for called in re.findall(r"ra-hmd ([a-z][a-z0-9 -]+?)(?= [^a-z]|$| [a-z]+[/.]|,)", about.next):
            assert any(called == known or called.startswith(f"{known} ") for known in COMMANDS), (words, called)


def _small_app() -> typer.Typer:
    """An app with two commands of the table, one of which prints an outcome."""
    small = typer.Typer()

    @small.command("doctor")
    def doctor(folder: str = "a b", code: int = 0) -> Outcome:
        print("on the way")
        return Outcome.of("found it", place=Path("x/y"), exit_code_of=code) if not code else Outcome({}, ["bad"], code)

    @small.command("serve")
    def serve() -> None:
        print("no outcome")

    STEPS["Start"], kept = {"doctor": About((), "ra-hmd init {folder} {place} {missing}")}, STEPS["Start"]
    try:
        guide(small)
    finally:
        STEPS["Start"] = kept
    return small


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_hmd.cli.finish.at_a_terminal", lambda: True)


@pytest.mark.usefixtures("terminal")
def test_a_command_ends_with_the_next_one_filled_in_and_quoted() -> None:
    done = CliRunner().invoke(_small_app(), ["doctor"])
    assert done.stdout == "on the way\nfound it\n"
    assert done.stderr == "Next: ra-hmd init 'a b' x/y MISSING\n"


@pytest.mark.usefixtures("terminal")
def test_no_next_command_after_a_failure() -> None:
    done = CliRunner().invoke(_small_app(), ["doctor", "--code", "1"])
    assert (done.exit_code, done.stdout, done.stderr) == (1, "on the way\nbad\n", "")


@pytest.mark.usefixtures("terminal")
def test_with_json_stdout_is_one_json_value_and_nothing_else() -> None:
    done = CliRunner().invoke(_small_app(), ["doctor", "--json"])
    assert json.loads(done.stdout) == {"place": "x/y", "exit_code_of": 0}
    assert done.stderr == "on the way\n"
    assert CliRunner().invoke(_small_app(), ["serve", "--json"]).exit_code == 2


def test_json_holds_numbers_of_any_kind(capsys: pytest.CaptureFixture[str]) -> None:
    Outcome({"a": np.float32(0.5), "b": float("nan"), "c": (Path("x"), np.int64(2)), 3: None}).show(as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": 0.5, "b": None, "c": ["x", 2], "3": None}


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_at_a_terminal_the_first_rank_says_what_comes_next(rank: str, shown: bool) -> None:
    ours, theirs = pty.openpty()
    command = [str(BIN / "ra-hmd"), "data", "list"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"RANK": rank}, check=True)
    os.close(theirs)
    os.set_blocking(ours, False)
    with contextlib.suppress(OSError):  # nothing was written
        assert (b"Next: ra-hmd data import" in os.read(ours, 4096)) == shown
        return
    assert not shown
    assert b"Next" not in done.stdout


def test_logs_and_pipes_have_no_hint() -> None:
    done = CliRunner().invoke(_small_app(), ["doctor"])
    assert (done.stdout, done.stderr) == ("on the way\nfound it\n", "")


def test_the_shell_completes_commands_and_options() -> None:
    for typed, wanted in (
        ("ra-hmd ext", "extract"),
        ("ra-hmd bank roll", "rollback"),
        ("ra-hmd predict --inp", "--input"),
    ):
        asked = {"_RA_HMD_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        assert CliRunner().invoke(app, [], prog_name="ra-hmd", env=asked).output.split() == [wanted]
