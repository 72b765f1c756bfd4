"""docs/tutorials/quickstart.ipynb: how it is stored, that it runs on the base install, and that what it says is so."""

import ast
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from engines import ROOT
from IPython.core.inputtransformer2 import TransformerManager
from typer.core import TyperCommand
from typer.testing import CliRunner

from ra_hmd.cli.app import app

NOTEBOOK = ROOT / "docs" / "tutorials" / "quickstart.ipynb"
NOT_IN_THE_BASE_INSTALL = ("bitsandbytes", "deepspeed", "gradio", "ipywidgets", "liger_kernel", "llamafactory", "peft")
# Run in the notebook's kernel when its cells are done.
CHECK = """
import json
values = {
    "aurocs": {head: auroc["value"] for head, auroc in aurocs.items()},
    "right": still_right,
    "before": [verdict.verdict for verdict in before],
    "after": [verdict.verdict for verdict in after],
    "vote": after[place].verdicts["rkc"],
    "labels": [meme.label for meme in trend],
    "flipped": flipped,
    "rows": [entry.counts["rows"] for entry in detector.scorer.bank.log],
}
print(json.dumps(values))
"""


def script(name: str) -> ModuleType:
    """A script of `scripts` as a module."""
    path = ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_it_is_stored_without_outputs_and_with_ids_that_stay(stored: nbformat.NotebookNode) -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    for cell in stored.cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id), f"{cell.id!r} is no id that somebody chose"
        assert set(cell.metadata) <= {"tags", "alt"}
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    assert len({cell.id for cell in stored.cells}) == len(stored.cells)
    assert set(stored.metadata) == {"kernelspec", "language_info"}


def test_what_is_not_run_here_says_so_and_can_be_read(
    stored: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells with a tag are Python, and the commands in them are ones that `ra-hmd` understands."""
    tagged = [cell for cell in stored.cells if cell.metadata.get("tags")]
    assert {tag for cell in tagged for tag in cell.metadata.tags} == {"install", "gpu"}
    (first, *_) = [place for place, cell in enumerate(stored.cells) if "gpu" in cell.metadata.get("tags", ())]
    assert "not measured here" in stored.cells[first - 1].source
    assert all("gpu" in cell.metadata.get("tags", ()) for cell in stored.cells[first:] if cell.cell_type == "code")
    for cell in stored.cells:
        if cell.cell_type == "code" and not cell.source.startswith("%%"):
            ast.parse(TransformerManager().transform_cell(cell.source))
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: None)
    lines = [line for cell in tagged for line in cell.source.splitlines() if line.startswith("!ra-hmd ")]
    assert len(lines) > 5
    for line in lines:
        done = CliRunner().invoke(app, shlex.split(line)[1:], env={"COLUMNS": "1000"})
        assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.slow
def test_it_runs_on_the_base_install_and_its_claims_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "work").mkdir()
    hide = f"import sys\nsys.modules.update(dict.fromkeys({NOT_IN_THE_BASE_INSTALL!r}))\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(hide, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    *cells, last = script("run_notebook").run_notebook(tmp_path / "work", CHECK).cells
    claims_hold(json.loads(last.outputs[0].text))
    for cell in cells:
        if cell.cell_type == "code":
            lines_are_few(cell)


def claims_hold(values: dict) -> None:
    """What the text of the notebook says about its numbers."""
    assert set(values["aurocs"]) == {"lrc", "rkc", "krr"}
    assert values["aurocs"]["krr"] > 0.9
    assert values["rows"] == [240, 250], "ten memes were added"
    against = [place for place, label in enumerate(values["labels"]) if label == 1]
    fine = [place for place, label in enumerate(values["labels"]) if label == 0]
    assert (len(against), len(fine)) == (30, 30)
    assert not any(values["before"]), "the detector lets all of these pass"
    assert sum(values["after"][place] for place in against) >= 15, "most are flagged with ten labelled memes"
    assert sum(values["after"][place] for place in fine) <= 3
    assert values["flipped"]
    assert values["vote"] == 0, "the vote of the nearest twenty needs more of them"
    assert values["right"] > 0.9, "it has not forgotten what it knew"


def lines_are_few(cell: nbformat.NotebookNode) -> None:
    """A progress bar is a line; nothing moves the cursor; pictures have an alternative text."""
    kinds = {output.output_type for output in cell.outputs}
    assert kinds <= {"stream", "display_data"}, cell.id
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    assert printed.count("\n") <= 40, f"{cell.id}\n{printed}"
    assert not re.search(r"\x1b\[\d*[ABCDHJK]", re.sub(r"Loading weights.*", "", printed)), cell.id
    assert "Traceback" not in printed
    assert "Error" not in printed
    assert "alt" not in cell.metadata or "display_data" in kinds


def test_its_page_has_every_cell_and_picture(stored: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "docs")
    page = importlib.import_module("site_notebook").notebook_page(NOTEBOOK)
    for cell in stored.cells:
        assert cell.source in page
        if "alt" in cell.metadata:
            assert f"![{cell.metadata['alt']}](quickstart-{cell.id}.png)" in page
            assert (NOTEBOOK.parent / f"quickstart-{cell.id}.png").is_file()
    assert "(quickstart.ipynb)" in page
    assert page.count("```") == 2 * sum(cell.cell_type == "code" for cell in stored.cells)
