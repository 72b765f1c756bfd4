"""The commands of docs/howto run, on what the walk of docs/walk.md leaves; each page has the parts of such a page."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
from documented import blocks
from documented_blocks import HOWTO
from documented_walk import RUN, Walk
from engines import ROOT
from servers import drawn, in_process

from ra_hmd.cases.database import Database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.serve.auth import make_key

HOW = ROOT / "docs" / "howto"
PAGES = sorted(path for path in HOW.glob("*.md") if path.name != "index.md")
PARTS = ["## See that it worked", "## What goes wrong"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_answers_one_question(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    title, _, rest = text.partition("\n\n")
    assert re.fullmatch(r"# [A-Z].*\?", title), "the title is the question"
    assert not rest.startswith(("#", "|", "-", "`")) or rest.startswith("`ra-hmd"), "the answer comes first"
    assert 25 <= len(text.splitlines()) <= 90
    assert all(any(line.startswith(part) for line in text.splitlines()) for part in PARTS)
    assert f"]({page.name})" in (HOW / "index.md").read_text(encoding="utf-8")
    assert f"[{title.removeprefix('# ')}]({page.name})" in (HOW / "index.md").read_text(encoding="utf-8")


def decided(folder: Path) -> None:
    """Two decided cases in the database of the desk."""
    store, kept = CaseStore(Database(folder / "banks/memes.cases.sqlite")), CasePictures(folder / "kept")
    for label, name in enumerate(("cat-of-a-case", "cake-of-a-case")):
        picture, digest = kept.keep(drawn(colour=("red", "blue")[label]))
        case = store.add([NewCase(meme_id=name, picture=picture, picture_digest=digest, caption=f"the {name}")])[0][0]
        store.finish(store.begin(case, "ana", Decision("label", label, "a joke")).id)


def prepare(walk: Walk, page: str, containing: str) -> None:
    """Make what a page takes for granted, and remove what the walk left where the page's block writes."""
    folder = walk.folder
    for file in folder.glob("verdicts.*"):
        file.unlink()
    name = Path(page).stem
    if name == "captions-from-pictures":
        rows = ["id,image,text,label", "cat,pictures/0.png,,0", "cake,pictures/1.png,,1"]
        (folder / "no_captions.csv").write_text("\n".join(rows) + "\n")
    if name == "behind-a-proxy":
        (block,) = blocks("yaml", (page,))
        (folder / "serve.yaml").write_text(block.text)
    if name == "decisions-as-training-data":
        decided(folder)
    if containing == "site-2026-12":
        make_key(folder / "keys.json", "site", "reader")
    if name == "several-classes":
        shutil.rmtree(folder / "data" / "gt")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "containing", "commands"), HOWTO)
def test_block_runs_after_the_walk(page: str, containing: str, commands: int, walk: Walk) -> None:
    prepare(walk, page, containing)
    assert len(walk.block(page, containing, RUN=RUN)) == commands


@pytest.mark.slow
def test_a_key_is_seen_to_work(walk: Walk) -> None:
    with contextlib.chdir(walk.folder):
        key = make_key("keys.json", "site", "reader")
        serving = ("serve", "RUN", "--bank", "BANK", "--keys", "keys.json")
        with in_process(*serving, log=Path("log"), cwd=walk.folder) as (_, client):
            assert client.get("/v1/info").json()["code"] == "key_required"
            asked = Walk(walk.folder, str(client.base_url).rstrip("/"))
            (answer,) = asked.block("docs/howto/api-keys.md", "/v1/info", KEY=key)
    assert json.loads(answer)["bank"]
