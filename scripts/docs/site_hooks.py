"""Hooks of mkdocs: pages that are made when the site is built, links to files outside docs/, and equations.

The repository's own pages (README.md, CHANGELOG.md, …) are pages of the site too, and the pages of commands, of YAML
keys and of manifests are written from the code. None of them is committed.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_commands import command_pages, pages_by_panel
from site_figures import figures
from site_manifests import manifest_page
from site_notebook import notebook_page
from site_settings import settings_page

ROOT = Path(__file__).parents[2]
COMMANDS = "reference/commands"
REPOSITORY_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "data/README.md": "reference/data.md",
    "LICENSE": "license.txt",
    "CITATION.cff": "citation.txt",
}
"""File of the repository to its place in the site."""

_LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?!\w+:|#)(?P<file>[^)#\s]+)")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the commands into the navigation."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    place = next(place for place, entry in enumerate(reference) if entry == {"Commands": COMMANDS})
    parts = [{panel: [f"{COMMANDS}/{name}" for name in names]} for panel, names in pages_by_panel().items()]
    reference[place] = {"Commands": [f"{COMMANDS}/index.md", *parts]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made now."""
    made = {f"{COMMANDS}/{name}": text for name, text in command_pages().items()}
    made |= {"reference/settings.md": settings_page(), "reference/files.md": manifest_page()}
    made["tutorials/quickstart.md"] = notebook_page(ROOT / "docs" / "tutorials" / "quickstart.ipynb")
    made |= {f"concepts/{name}": text for name, text in figures().items()}
    for source, target in REPOSITORY_PAGES.items():
        made[target] = from_repository(source, (ROOT / source).read_text(encoding="utf-8"))
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def from_repository(source: str, text: str) -> str:
    """The text of a file of the repository, with links from its place in the site."""
    return _LINK.sub(lambda match: _moved(match, Path(source), Path(REPOSITORY_PAGES[source])), text)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links of a page to files outside docs/ lead to their pages of the site, and name pages by their titles."""
    place = Path(page.file.src_uri)
    return _LINK.sub(lambda match: _moved(match, Path("docs") / place, place), markdown)


def _moved(match: re.Match[str], source: Path, target: Path) -> str:
    """A link of a file, as it is from the file's place in the site: to the page, and by the page's title."""
    named = (ROOT / source.parent / match["file"]).resolve()
    if not named.is_relative_to(ROOT):
        return match[0]
    inside = str(named.relative_to(ROOT))
    text = match["text"]
    if text in (inside, named.name) and named.suffix == ".md" and named.is_file():
        text = _TITLE.findall(named.read_text(encoding="utf-8"))[0]
    place = REPOSITORY_PAGES.get(inside, inside.removeprefix("docs/"))
    return f"[{text}]({'../' * len(target.parent.parts)}{place}"


def on_page_content(content: str, **_: Any) -> str:
    """Write equations as MathML, which browsers draw without a script."""
    return _EQUATION.sub(_equation, content)


def _equation(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match[2]).strip(), display=display)
