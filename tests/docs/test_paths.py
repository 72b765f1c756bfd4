"""Files that the pages for developers name exist."""

import re

import pytest
from documented import PAGES
from engines import ROOT

TOPS = ("ra_hmd", "stage2", "llamafactory_ext", "configs", "scripts", "tests", "docs", ".ci", ".github")
_NAMED = re.compile(rf"`((?:{'|'.join(map(re.escape, TOPS))})/[\w./*-]+)`")
# Pages with links to others that are made when the site is built, which looks at all links.
OF_THE_SITE = ("docs/concepts/", "docs/reference/")
_LINKED = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_named_and_linked_files_exist(page: str) -> None:
    text = text_of(page)
    missing = [name for name in _NAMED.findall(text) if not list(ROOT.glob(name.rstrip("/")))]
    if not page.startswith(OF_THE_SITE):
        missing += [link for link in _LINKED.findall(text) if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_twenty_common_changes_have_a_file() -> None:
    table = text_of("docs/development.md").partition("| I want to … | open this file |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert len(rows) >= 20
    assert all(_NAMED.search(files) for _, files in rows), rows


def test_figure_is_what_its_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from make_pipeline_figure import figure

    assert text_of("docs/pipeline.svg") == figure()
