"""The review page in a browser: what is on one screen, and what keys do."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from desks import MakeDesk, ServedDesk

from ra_hmd.cases.store import Decision
from ra_hmd.desk.verdict_view import ICONS

pytestmark = pytest.mark.slow

SIZES = {"desk": (1280, 800), "phone": (390, 844)}
PARTS = [".meme .picture img", ".verdict h1", ".verdict .gauge", "#effect p", ".near li >> nth=0",
         ".near li img >> nth=0", ".near li >> nth=1", ".near li img >> nth=1"]  # fmt: skip
CONTEXT = "Posted in a group on cooking, below a picture of a cake that somebody had dropped on the way. " * 4


@contextmanager
def review_page(browser: Any, served: ServedDesk, size: str = "desk", **context: Any) -> Iterator[Any]:
    """The review page, with the first case settled: keys work from then on."""
    width, height = SIZES[size]
    opened = browser.new_context(viewport={"width": width, "height": height}, **context)
    page = opened.new_page()
    page.goto(f"{served.address}/review")
    settle(page)
    yield page
    opened.close()


def settle(page: Any) -> None:
    """Wait until keys work."""
    page.wait_for_timeout(450)


def case_of(page: Any) -> str:
    return page.get_attribute("#case", "data-case")


def wait_for_another(page: Any, case: str) -> None:
    page.wait_for_selector(f"#case:not([data-case='{case}'])")


def test_a_decision_and_its_reasons_are_on_one_screen(desk: MakeDesk, browser: Any) -> None:
    with desk() as served:
        served.add(2, source="forum", context=CONTEXT)
        for size, language in product(SIZES, ("en", "de")):
            check_one_screen(browser, served, size, language)


def test_a_disputed_case_is_on_one_screen(desk: MakeDesk, browser: Any) -> None:
    with desk() as served:
        (case_id,) = served.add(1, source="forum", context=CONTEXT, opinions_needed=2)
        for person, label in (("ben", 0), ("eve", 1)):
            decision = Decision("label", label, f"Reclaimed, or quoted to criticise: {CONTEXT}")
            served.cases.store.finish(served.cases.store.begin(case_id, person, decision).id)
        served.cases.store.note(case_id, "eve", CONTEXT)
        for size, language in product(SIZES, ("en", "de")):
            check_one_screen(browser, served, size, language, ".others-said")


def check_one_screen(browser: Any, served: ServedDesk, size: str, language: str, *more: str) -> None:
    """All that a decision rests on is above the buttons, and they are on the screen."""
    with review_page(browser, served, size, locale=language) as page:
        page.wait_for_selector("#effect p")
        top_of_buttons = page.locator(".decide").bounding_box()["y"]
        bottoms = {part: bottom(page, part) for part in (*PARTS, *more)}
        assert {part: end for part, end in bottoms.items() if end > top_of_buttons} == {}, (size, language)
        buttons = [bottom(page, name) for name in (".labels button >> nth=1", "[data-action=skip]")]
        assert max(buttons) <= SIZES[size][1]
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def bottom(page: Any, selector: str) -> float:
    box = page.locator(selector).bounding_box()
    assert box is not None, selector
    assert box["width"] > 0, selector
    assert box["height"] > 0, selector
    return box["y"] + box["height"]


def test_each_verdict_has_an_icon_a_word_and_a_colour(desk: MakeDesk, browser: Any) -> None:
    with desk(cases=1) as served:
        for scheme in ("light", "dark"):
            with review_page(browser, served, color_scheme=scheme) as page:
                check_colours(page)


def check_colours(page: Any) -> None:
    """Two verdicts, each with one colour of its own wherever it stands."""
    colours: dict[str, set[str]] = {}
    for place in (".labels button", ".near > ul > li", ".verdict h1"):
        for one in page.locator(place).all():
            icon = one.locator(".icon").first
            assert icon.inner_text() in ICONS
            assert "hateful" in one.inner_text()
            colours.setdefault(icon.inner_text(), set()).add(icon.evaluate("one => getComputedStyle(one).color"))
    assert [len(colour) for colour in colours.values()] == [1, 1]
    assert len(set.union(*colours.values())) == 2


def test_a_double_press_decides_once(desk: MakeDesk, browser: Any) -> None:
    with desk(cases=3) as served, review_page(browser, served) as page:
        first = case_of(page)
        agrees = page.get_attribute("[data-agrees=true]", "data-label-key")
        # The page's clock stands still: all keys come at once, however busy the machine is.
        page.evaluate("() => { const now = performance.now(); performance.now = () => now; }")
        page.keyboard.press(agrees)
        wait_for_another(page, first)
        second = case_of(page)
        for key in ("1", "2", "s"):
            page.keyboard.press(key)
        page.evaluate("() => { delete performance.now; }")
        settle(page)
        assert case_of(page) == second
        assert page.locator(".reasons.asked").count() == 0
        assert len(served.cases.store.opinions_of("ana")) == 1
        page.keyboard.press("s")
        wait_for_another(page, second)


def test_any_decision_takes_two_keys_at_most(desk: MakeDesk, browser: Any) -> None:
    with desk(cases=3) as served, review_page(browser, served) as page:
        first = case_of(page)
        page.keyboard.press(page.get_attribute("[data-agrees=false]", "data-label-key"))
        page.keyboard.press("3")
        wait_for_another(page, first)
        (opinion, case) = served.cases.store.opinions_of("ana")[0]
        assert (case.id, opinion.action) == (first, "label")
        assert opinion.reason == "Reclaimed, or quoted to criticise"
        settle(page)
        page.keyboard.press("u")
        page.wait_for_selector(f"#case[data-case='{first}']")
        assert served.cases.store.opinions_of("ana") == []


def test_enter_in_the_text_field_keeps_a_note_and_decides_nothing(desk: MakeDesk, browser: Any) -> None:
    with desk(cases=2) as served, review_page(browser, served) as page:
        first = case_of(page)
        page.keyboard.press("n")
        page.keyboard.type("ask tomorrow")
        page.keyboard.press("Enter")
        page.wait_for_selector(".said")
        assert case_of(page) == first
        assert served.cases.store.opinions_of("ana") == []
        page.keyboard.press(page.get_attribute("[data-agrees=false]", "data-label-key"))
        page.fill("[name=words]", "a reason of my own")
        page.press("[name=words]", "Enter")
        wait_for_another(page, first)
        assert served.cases.store.opinions_of("ana")[0][0].reason == "a reason of my own"


def test_without_script_enter_in_the_text_field_decides_nothing(desk: MakeDesk, browser: Any) -> None:
    with desk(cases=2) as served, review_page(browser, served, java_script_enabled=False) as page:
        page.fill("[name=words]", "a thought")
        page.press("[name=words]", "Enter")
        settle(page)
        assert served.cases.store.opinions_of("ana") == []
        page.click("[data-agrees=true]")
        assert len(served.cases.store.opinions_of("ana")) == 1
