"""The pages of the desk are usable with assistive technology, as far as axe-core finds."""

from typing import Any

import pytest
from desks import MakeDesk, ServedDesk

from ra_hmd.cases.store import Decision

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.slow


def pages(served: ServedDesk) -> list[str]:
    """Paths of the pages, on a desk with decided and waiting cases."""
    decided, *_, open_case = served.add(4, source="forum", context="Below a picture of a cake.")
    verdict = served.cases.store.get(decided).verdict["verdict"]
    assert served.client.post(f"/console/cases/{decided}/decide", data={"label": str(verdict)}).status_code == 303
    for people in (("bob", "eve"), ("bob", "ana")):  # one that is next on the review page, one of the person's own
        (disputed,) = served.add(1, opinions_needed=2, priority=9)
        for person, label in zip(people, (0, 1), strict=True):
            opinion = served.cases.store.begin(
                disputed, person, Decision("label", label, "A sign on the picture. " * 20)
            )
            served.cases.store.finish(opinion.id)
    named = ["login", "review", "review?queue=empty", "cases", "cases?words=nowhere", "check", "bank", "bank/versions"]
    named += ["bank/row?id=a00000", "bank/diff?from=1&to=1", "bank/restore?version=1", "team", "settings", "conflicts"]
    return [*named, f"cases/{decided}", f"cases/{open_case}", f"cases/{open_case}/near"]


def grave(page: Any) -> list[str]:
    """Serious and critical violations on a page, each with the first element."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:300]}"
            for one in found if one["impact"] in ("serious", "critical")]  # fmt: skip


@pytest.mark.parametrize(("scheme", "size"), [("light", (1280, 800)), ("dark", (390, 844))])
def test_no_page_has_serious_violations(desk: MakeDesk, browser: Any, scheme: str, size: tuple[int, int]) -> None:
    with desk() as served:
        opened = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page = opened.new_page()
        faults, wide = {}, []
        for path in pages(served):
            answer = page.goto(f"{served.address}/{path}")
            assert answer.ok, f"{path}: {answer.status}"
            page.wait_for_load_state("networkidle")
            if found := grave(page):
                faults[path] = found
            if page.evaluate("document.documentElement.scrollWidth") > size[0]:
                wide.append(path)
        opened.close()
    assert faults == {}
    assert wide == [], "these pages scroll sideways"
