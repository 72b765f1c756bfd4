"""The documentation's site, built once: its links, what it fetches, what its reference holds, how it can be read."""

import ast
import functools
import importlib
import logging
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from engines import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from llamafactory_ext.arguments import OUR_FIELDS
from ra_hmd.cli.app import app
from ra_hmd.core.manifests import MODELS

pytestmark = pytest.mark.slow

CONFIG = ROOT / "mkdocs.yml"
LOOKED_AT = (
    ("index.html", 1280, "light"),
    ("start.html", 390, "dark"),
    ("concepts/contrast.html", 390, "light"),
    ("concepts/heads.html", 1280, "dark"),
    ("reference/data.html", 390, "light"),
    ("reference/commands/predict.html", 1280, "dark"),
    ("console.html", 1280, "light"),
    ("howto/index.html", 1280, "light"),
    ("howto/behind-a-proxy.html", 390, "dark"),
    ("tutorials/quickstart.html", 390, "light"),
)
"""Page, width and colours."""


def built(target: Path, **changes: Any) -> Path:
    """The site in a folder."""
    config = load_config(str(CONFIG), site_dir=str(target), **changes)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; that it is built at all means that no link and no anchor leads nowhere."""
    return built(tmp_path_factory.mktemp("site"))


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[away](nowhere.md)", "'nowhere.md', but the target is not found"),
        ("[away](other.md#nothing)", "does not contain an anchor '#nothing'"),
        ("[away](#nothing)", "there is no such anchor"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(
    text: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Page\n\n{text}\n")
    (pages / "other.md").write_text("# Other\n")
    with caplog.at_level(logging.WARNING), pytest.raises(Abort, match="strict mode"):
        built(tmp_path / "site", docs_dir=str(pages), nav=None, hooks=[], extra_css=[], extra_javascript=[])
    assert said in caplog.text


class Resources(HTMLParser):
    """What a page loads when it is opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "link" and named.get("rel") in ("canonical", "next", "prev"):
            return
        keys = {"link": "href", "a": "", "form": ""}.get(tag, "src")
        self.found += [value for key in (keys, "srcset", "poster") if (value := named.get(key))]


def test_no_page_names_a_resource_of_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    outside = {(page.name, place) for page in pages for place in Resources(text_of(page)).found
               if re.match(r"(\w+:)?//", place)}  # fmt: skip
    outside |= {(page.name, place) for page in site.rglob("*.css")
                for place in re.findall(r"url\([\"']?((?:\w+:)?//[^)]+)", text_of(page))}  # fmt: skip
    assert not outside


def test_a_resource_of_another_host_is_found() -> None:
    page = '<a href="https://a"></a><link rel="stylesheet" href="https://b"><script src="//c"></script>'
    assert Resources(page).found == ["https://b", "//c"]


def test_every_list_and_table_is_rendered_as_one(site: Path) -> None:
    """Markdown that the site's renderer reads as text, for example a list that is indented by too little."""
    left = []
    for page in site.rglob("*.html"):
        apart = r"<pre.*?</pre>|<script.*?</script>|<span class=\"md-ellipsis\">.*?</span>"  # the last: titles in menus
        prose = re.sub(apart, "", text_of(page), flags=re.DOTALL)
        left += [(page.name, line[:60]) for line in re.findall(r"^ *(?:[-*] |\d+\. |\|).*", prose, re.MULTILINE)]
    assert not left


def test_every_concept_has_a_figure_and_an_equation_that_needs_no_script(site: Path) -> None:
    for name in ("heads", "contrast", "bank", "evaluation"):
        page = text_of(site / "concepts" / f"{name}.html")
        assert f'src="{name}.svg"' in page
        assert (site / "concepts" / f"{name}.svg").is_file()
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page
        assert "arithmatex" not in page, "an equation that was left as TeX"


def classes_of_yaml_files() -> Iterator[type]:
    """The classes that `load_yaml` builds somewhere in the code."""
    for path in [*(ROOT / "ra_hmd").rglob("*.py"), *(ROOT / "stage2").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = {name.asname or name.name: str(node.module) for node in ast.walk(tree)
                   if isinstance(node, ast.ImportFrom) for name in node.names}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_yaml":
                name = node.args[0]
                assert isinstance(name, ast.Name), path
                yield getattr(importlib.import_module(imports[name.id]), name.id)


def test_every_yaml_key_is_listed(site: Path) -> None:
    (_, *sections) = re.split(r"<h2 id=", text_of(site / "reference" / "settings.html"))
    listed = [re.findall(r"<tr>\s*<td><code>(\w+)</code>", section) for section in sections]
    kinds = set(classes_of_yaml_files())
    assert len(kinds) >= 5
    assert listed[0] == list(OUR_FIELDS)
    for kind in kinds:
        (keys, *inside) = [list(part.get("properties", ())) for part in parts_of(kind)]
        (section,) = [names for names in listed[1:] if names[: len(keys)] == keys]
        assert set(section) >= {key for names in inside for key in names}, kind


def parts_of(kind: Any) -> list[dict[str, Any]]:
    """The JSON schema of a settings model, and those of the models inside it."""
    schema = kind.model_json_schema()
    return [schema, *schema.get("$defs", {}).values()]


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inside = getattr(command, "commands", None)
    if inside is None:
        yield name, command
    for part, one in (inside or {}).items():
        yield from commands(one, f"{name} {part}")


def test_every_command_and_option_is_listed(site: Path) -> None:
    every = list(commands(typer.main.get_command(app), "ra-hmd"))
    assert len(every) > 50
    index = text_of(site / "reference" / "commands" / "index.html")
    for name, command in every:
        page = text_of(site / "reference" / "commands" / f"{name.split()[1]}.html")
        assert f"<code>{name.removeprefix('ra-hmd ')}</code></a>" in index
        (place,) = re.findall(rf"<h([12]) id=\"{name.replace(' ', '-')}\"", page)
        options = page.partition(f'id="{name.replace(" ", "-")}"')[2].partition(f"<h{place} ")[0]
        named = set(re.findall(r"--[\w-]+", " ".join(re.findall(r"<td><code>([^<]+)</code>", options))))
        assert named >= {flag for one in command.params for flag in one.opts
                         if flag.startswith("--") and not one.hidden}, name  # fmt: skip


def test_every_kind_of_manifest_and_every_public_name_is_described(site: Path) -> None:
    files, names = text_of(site / "reference" / "files.html"), text_of(site / "reference" / "python.html")
    for kind, model in MODELS.items():
        assert f"<code>{kind}</code>" in files
        assert f'id="{model.__module__}.{model.__name__}"' in files
    for name in importlib.import_module("ra_hmd").__all__:
        assert name == "__version__" or re.search(rf'<h2 id="[\w.]+\.{name}"', names), name


@pytest.fixture(scope="module")
def opened(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of the site from the disk; a request to anything else fails the test."""
    contexts, outside = [], []

    def look(name: str, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda asked: outside.append(asked.url) if not asked.url.startswith(site.as_uri()) else None)
        page.goto(f"{site.as_uri()}/{name}")
        return page

    yield look
    for context in contexts:
        context.close()
    assert not [url for url in outside if not url.startswith(("data:", "blob:", "about:"))]


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKED_AT)
def test_a_page_has_no_serious_barrier(name: str, width: int, scheme: str, opened: Callable[..., Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(name, width, scheme)
    page.wait_for_load_state("load")
    found = axe.run(page, options={"preload": False}).response["violations"]
    serious = [(one["id"], [node["html"][:150] for node in one["nodes"]][:3]) for one in found
               if one["impact"] in ("serious", "critical")]  # fmt: skip
    assert not serious


def test_no_page_is_wider_than_a_telephone(opened: Callable[..., Any], site: Path) -> None:
    page = opened("index.html", 390)
    wide = []
    pages = (place for place in site.glob("*.html") if place.name != "404.html")  # which only a server shows
    below = (file for part in ("concepts", "howto", "reference", "tutorials") for file in site.glob(f"{part}/*.html"))
    for file in sorted([*pages, *below]):
        page.goto(file.as_uri(), wait_until="domcontentloaded")
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            wide.append(file.name)
    assert not wide


def test_search_works_on_pages_from_the_disk(opened: Callable[..., Any]) -> None:
    page = opened("index.html")
    page.locator("input[name=query]").click()
    page.keyboard.type("loss_ratio")
    first = page.locator(".md-search-result__link").first
    first.wait_for(timeout=20000)
    first.click()
    page.locator("h1").wait_for()
    assert "loss_ratio" in page.content()
