"""Run the notebook of docs/tutorials without its GPU cells, and write the pictures that its page of the site shows.

Usage: python scripts/run_notebook.py [--folder FOLDER]
"""

import argparse
import base64
import os
import sysconfig
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorials" / "quickstart.ipynb"
SKIPPED = {"gpu", "install"}
"""Tags of the cells that are not run: they need a GPU, or change the environment."""


def run_notebook(folder: Path, check: str = "") -> nbformat.NotebookNode:
    """Run the notebook in a folder; return it with its outputs, those of `check` in the last cell.

    Args:
        folder: Working directory of the notebook.
        check: Code that is run after it, in the same kernel.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not SKIPPED & set(cell.metadata.get("tags", ()))]
    if check:
        notebook.cells.append(nbformat.v4.new_code_cell(check))
    programs = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PATH": programs})
    return notebook


def main() -> None:
    """Write the first picture of every cell that has an alternative text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Working directory; default: a temporary one.")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        notebook = run_notebook(folder or Path(temporary))
    for cell in notebook.cells:
        if "alt" in cell.metadata:
            pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
            target = NOTEBOOK.with_name(f"{NOTEBOOK.stem}-{cell.id}.png")
            target.write_bytes(base64.b64decode(pictures[0]))
            print(target)


if __name__ == "__main__":
    main()
