"""The page of the notebook: its cells as Markdown, with the pictures that `scripts/run_notebook.py` wrote."""

from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbformat.v4 import new_markdown_cell

_HINT = "This page is a notebook: [download it]({name}), and open it in Jupyter or Colab."


def notebook_page(path: Path) -> str:
    """The Markdown of a notebook that is stored without outputs.

    Args:
        path: The notebook. A cell with an alternative text (`alt` in its metadata) has a picture beside the notebook.
    """
    notebook = nbformat.read(path, as_version=4)
    title, *cells = notebook.cells
    shown = [title, new_markdown_cell(_HINT.format(name=path.name))]
    for cell in cells:
        shown.append(cell)
        if "alt" in cell.metadata:
            shown.append(new_markdown_cell(f"![{cell.metadata['alt']}]({path.stem}-{cell.id}.png)"))
    notebook.cells = shown
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return text
