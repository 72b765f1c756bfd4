"""Progress bars, in a terminal's stead and in the cells of a notebook."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from ra_hmd.core.progress import track

TRACK = """
import time
from ra_hmd.core.progress import track

for item in track(((2, item) for item in range(300)), "Reading", 600, "memes"):
    time.sleep(0.01)
"""
EPOCHS = """
from rich.progress import TextColumn
from ra_hmd.core.progress import notebook_safe_progress

with notebook_safe_progress(TextColumn("a bar")) as progress:
    task = progress.add_task("", total=40)
    for epoch in range(40):
        progress.advance(task)
        progress.console.print(f"epoch {epoch}", soft_wrap=True, highlight=False)
"""


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell printed; it has no other output."""
    assert {output.output_type for output in cell.outputs} == {"stream"}
    assert {output.name for output in cell.outputs} == {"stdout"}, cell.outputs
    return "".join(output.text for output in cell.outputs)


def test_a_notebook_has_one_line_for_a_bar(tmp_path: Path) -> None:
    """A bar, and lines printed beside a bar: each in the kernel, and in a command that it starts."""
    for name, code in (("bar", TRACK), ("lines", EPOCHS)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    cells = (TRACK, EPOCHS, f"!{sys.executable} bar.py", f"!{sys.executable} lines.py")
    notebook = new_notebook(cells=[new_code_cell(code) for code in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    bar, lines, bar_of_command, lines_of_command = map(printed, notebook.cells)
    for text in (bar, bar_of_command):
        assert text.count("\n") <= 1, "a bar that begins a new line for each of its states"
        assert "\x1b[" not in text.replace("\x1b[0m", "")
        assert 2 <= text.count("\r") <= 12
        last = text.rstrip().rpartition("\r")[2]
        assert "Reading: 100%" in last
        assert "600/600" in last
        assert "memes/s" in last
    for text in (lines, lines_of_command):
        assert text.split() == " ".join(f"epoch {number}" for number in range(40)).split()


def test_elsewhere_the_bar_is_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JPY_PARENT_PID", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    assert list(track([(2, "a"), (1, "b")], "Reading", 3, "memes")) == ["a", "b"]
    shown = capsys.readouterr()
    assert not shown.out
    assert "Reading" in shown.err
    assert "3/3" in shown.err
    assert list(track([(1, "a")], "Reading", 1, "memes", show=False)) == ["a"]
    assert capsys.readouterr() == ("", "")


def test_a_hidden_bar_prints_nothing_in_a_notebook(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert list(track([(1, "a")], "Reading", 1, "memes", show=False)) == ["a"]
    assert capsys.readouterr() == ("", "")
