"""The check of a single meme: a verdict of which nothing is kept, and a correction that becomes a case."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import browser
from desks import MakeDesk, ServedDesk
from servers import drawn, encoded

from ra_hmd.bank.bank import Bank
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import history_of, list_cases
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.explainer import Explainer
from ra_hmd.serve.auth import KeyRing, make_key

WHY = "It is a recipe"

__all__ = ["browser"]


@pytest.fixture
def alone(desk: MakeDesk) -> Iterator[ServedDesk]:
    with desk() as served:
        yield served


def check(client: httpx.Client, picture: bytes, caption: str = "a cake", **form: Any) -> httpx.Response:
    files = {"image": ("cake.png", picture, "image/png")}
    return client.post("/console/check", data={"caption": caption, **form}, files=files)


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of the form that corrects a verdict."""
    form = page.split('action="/console/check/correct"')[1]
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))


def multipart(client: httpx.Client, path: str, **form: str) -> httpx.Response:
    return client.post(f"/console/{path}", files={name: (None, value) for name, value in form.items()})


def cases(served: ServedDesk) -> list[Any]:
    return list_cases(served.cases.store.database, CaseFilter())[0]


def verdict(page: str) -> int:
    """The label that is marked as the verdict's."""
    return next(int(label) for label, rest in re.findall(r'name="label" value="(\d)"(.*?)</button>', page, re.DOTALL)
                if "as judged" in rest)  # fmt: skip


def test_nothing_of_a_checked_meme_is_kept(alone, tmp_path):
    version = alone.cases.bank_service.version()
    page = check(alone.client, drawn(size=(200, 150)))
    assert page.status_code == 200
    assert "data:image/jpeg;base64," in page.text
    assert "Most similar" in page.text
    assert cases(alone) == []
    assert not list((tmp_path / "pictures").rglob("*"))
    assert alone.cases.bank_service.version() == version


def test_a_correction_becomes_a_case_with_a_decision_once(alone, clip_bank):
    page = check(alone.client, drawn(size=(200, 150))).text
    fields, other, rows = hidden(page), 1 - verdict(page), Bank.open(clip_bank).ids
    refused = multipart(alone.client, "check/correct", **fields, label=str(other))
    assert (refused.status_code, "Say why" in refused.text, cases(alone)) == (422, True, [])
    sent = [multipart(alone.client, "check/correct", **fields, label=str(other), words=WHY) for _ in range(2)]
    (case,) = cases(alone)
    assert {one.headers["location"] for one in sent} == {f"/console/cases/{case.id}?done=checked"}
    assert (case.state, case.label, case.queue, case.caption) == ("decided", other, "check", "a cake")
    assert set(Bank.open(clip_bank).ids) - set(rows) == {case.id}
    assert "a case now" in alone.client.get(sent[0].headers["location"]).text
    assert alone.client.get(f"/console/cases/{case.id}/picture").status_code == 200
    assert "The bank has this very meme" in check(alone.client, drawn(size=(200, 150))).text
    (opinion,) = history_of(alone.cases.store.database, case.id).opinions
    alone.client.post(f"/console/cases/{case.id}/undo", data={"opinion": opinion.id})
    assert Bank.open(clip_bank).ids == rows


def test_a_meme_that_the_bank_has_is_labelled_anew(alone, clip_bank):
    """The same bytes again are the same meme: the row of the first correction gets the label of the second."""
    page = check(alone.client, drawn(size=(200, 150))).text
    other = 1 - verdict(page)
    multipart(alone.client, "check/correct", **hidden(page), label=str(other), words=WHY)
    again = check(alone.client, drawn(size=(200, 150))).text
    assert verdict(again) == other
    multipart(alone.client, "check/correct", **hidden(again), label=str(1 - other), words="I was wrong")
    rows = [case.id for case in cases(alone) if case.id in Bank.open(clip_bank).ids]
    assert [alone.cases.bank_service.labels(rows)[name] for name in rows] == [1 - other]


def test_hostile_uploads_are_refused_in_words(alone):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    for content in (b"", b"no picture", drawn()[:100], b"%PDF-1.7", svg, b"\xff\xd8" * 1000):
        refused = check(alone.client, content)
        assert refused.status_code == 422, content
        assert "check-" not in re.search(r'role="alert">([^<]*)', refused.text)[1]


def test_hostile_forms_are_refused_in_words(alone):
    other = {"content-type": "multipart/form-data; boundary=x"}
    for answer in (
        alone.client.post("/console/check", content=b"--y\r\nbroken", headers=other),
        alone.client.post("/console/check", data={"caption": "x"}),
        multipart(alone.client, "check", picture="%%%", token="../x"),
        multipart(alone.client, "check/correct", picture=encoded(drawn()), label="9", words="x"),
        multipart(alone.client, "check", picture=encoded(drawn()), caption="x" * 5000),
        multipart(alone.client, "check/rationale", picture=encoded(drawn()), caption="x"),
    ):
        assert answer.status_code in (400, 422), answer.text
    assert cases(alone) == []


def test_readers_check_and_do_not_correct(desk: MakeDesk, tmp_path: Path):
    key = make_key(tmp_path / "keys.json", "eve", "reader")
    with desk(KeyRing.open(tmp_path / "keys.json")) as served, served.logged_in("eve", key) as client:
        page = check(client, drawn()).text
        assert "Most similar" in page
        assert "Correct the verdict" not in page
        fields = {name: value for name, value in hidden(page).items() if name != "label"}
        refused = multipart(client, "check/correct", **fields, label="1", words=WHY)
        assert (refused.status_code, cases(served)) == (409, [])


def test_a_rationale_is_generated_and_says_so(desk: MakeDesk, served_lmm: Path, tmp_path: Path):
    bank = Path(shutil.copytree(served_lmm / "bank", tmp_path / "lmm-bank"))
    with desk(run=served_lmm / "run", bank=bank) as served:
        assert "Ask for a rationale" not in check(served.client, drawn()).text
        detector: Detector = served.cases.service.detector
        served.desk.explain = Explainer.of(
            detector, engine="transformers", question="<image> {text} {verdict}", max_new_tokens=4
        )
        page = check(served.client, drawn()).text
        assert "Ask for a rationale" in page
        said = multipart(served.client, "check/rationale", **hidden(page))
        assert said.status_code == 200
        assert "It is not the cause of the verdict" in said.text
        gauges = r'<rect class="fill" width="([\d.]+)"'
        assert re.findall(gauges, said.text) == re.findall(gauges, page)


def test_a_picture_is_pasted(alone, browser):
    page = browser.new_page()
    page.goto(f"{alone.address}/check")
    page.evaluate(
        """(bytes) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""",
        list(drawn()),
    )
    page.fill("[name=caption]", "a cake")
    page.click("text=Judge it")
    page.wait_for_selector(".checked .verdict")
    page.click("[data-picture=main]")
    assert page.get_attribute("[data-picture=main]", "aria-pressed") == "true"
    assert cases(alone) == []
    page.close()
