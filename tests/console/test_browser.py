"""A moderator's work in a browser, by mouse and by keyboard alone, on a desk and on a telephone."""

import re
from pathlib import Path
from typing import Any

import pytest
from gradio_calls import ConsoleServer

from ra_hmd.bank.bank import Bank
from ra_hmd.data.meme_files import read_memes

pytest.importorskip("playwright", reason="playwright is not installed")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow

WIDTHS = {"desk": (1280, 900), "telephone": (390, 844)}
TABS = ("Check", "Review", "History", "Figures")


class Watched:
    """A page that is watched: what it asks for, and what goes wrong in it."""

    def __init__(self, browser: Any, address: str, width: str, screenshots: Path, name: str, **how: Any) -> None:
        size = WIDTHS[width]
        self.page: Page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **how)
        self.page.set_default_timeout(20_000)
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.failed.append(str(error)))
        self.address, self.pictures, self.name = address, screenshots, f"{name}-{width}"
        self.page.goto(f"{address}/console")
        expect(self.page.get_by_role("tab", name="Check")).to_be_visible()
        expect(self.page.locator("#ra-top")).to_contain_text("(")

    def look(self, what: str) -> None:
        """A screenshot; no serious violation of accessibility, nothing to scroll sideways."""
        # What is fading in has another contrast for a moment, longer on a busy machine.
        self.page.wait_for_function(
            "document.getAnimations().every(one =>"
            " one.playState !== 'running' || one.effect.getComputedTiming().iterations === Infinity)"
        )
        self.page.screenshot(path=self.pictures / f"{self.name}-{what}.png", full_page=True)
        found = Axe().run(self.page).response["violations"]
        serious = {
            one["id"]: [node["html"][:200] for node in one["nodes"][:3]]
            for one in found
            if one["impact"] in ("serious", "critical")
        }
        assert not serious, f"{what}: {serious}"
        wide, room = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= room, f"{what} is {wide} wide"

    def blur(self, which: str = "#check-picture img") -> str:
        """The filter that a picture is shown through."""
        return self.page.locator(which).first.evaluate("image => getComputedStyle(image).filter")

    def focused(self) -> str:
        """The id of the element, or of the one around it, that has the keyboard."""
        return self.page.evaluate("document.activeElement.closest('[id]')?.id ?? ''")

    def tab_to(self, name: str, tag: str = "*", most: int = 60) -> None:
        """Press Tab until the element `name`, or a `tag` in it, has the keyboard; it must show that it has."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.page.evaluate(f"document.activeElement.matches('#{name}, #{name} {tag}')"):
                assert self.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", name
                return
        raise AssertionError(f"the keyboard does not reach {name}; it is at {self.focused()}")

    def open_tab(self, name: str) -> None:
        """Go to a tab by the keyboard."""
        for _ in range(60):
            self.page.keyboard.press("Shift+Tab")
            at = self.page.evaluate("[document.activeElement.getAttribute('role'), document.activeElement.innerText]")
            if at[0] == "tab" and at[1].strip() == name:
                self.page.keyboard.press("Enter")
                return
        raise AssertionError(f"the keyboard does not reach the tab {name}")

    def nothing_from_elsewhere(self) -> None:
        """The page asked only its own address, and nothing in it broke."""
        own = (self.address, "data:", "blob:")
        assert [url for url in self.asked if not url.startswith(own)] == []
        assert self.failed == []


def score(page: Page, part: str, head: str = "rkc") -> float:
    return float(page.locator(f"#{part}-card [data-head={head}]").first.get_attribute("data-score") or "nan")


@pytest.mark.parametrize("width", WIDTHS)
def test_by_mouse(
    browser: Any, console: ConsoleServer, clip_bank: Path, memes: Path, screenshots: Path, width: str
) -> None:
    meme = read_memes(memes / "a" / "test.jsonl")[0]
    with console(queue=None) as client:
        watched = Watched(browser, str(client.base_url), width, screenshots, "mouse")
        page = watched.page
        watched.look("start")
        with page.expect_file_chooser() as chooser:
            page.locator("#check-upload button").first.click()
        chooser.value.set_files(meme.image)
        expect(page.locator("#check-picture img")).to_be_visible()
        assert "blur" in watched.blur()
        page.locator("#check-caption textarea").fill(meme.text)
        page.get_by_role("button", name="Judge it").click()
        verdict = page.locator("#check-card h2")
        expect(verdict).to_have_text(re.compile("Verdict: (not )?hateful"))
        expect(page.locator("#check-said").get_by_role("status")).to_contain_text("Verdict")
        first, before = verdict.inner_text(), score(page, "check")
        assert "blur" in watched.blur(), "a new answer, blurred anew"
        assert "blur" in watched.blur("#check-card img")
        watched.look("verdict")
        button = page.get_by_role("button", name="Show the picture")
        assert button.inner_text() == "Show the picture (U)"
        button.click()
        assert watched.blur() == "none"
        assert page.locator("#check-picture button").inner_text() == "Blur the picture (U)"
        page.get_by_role("button", name="Show their pictures").click()
        assert watched.blur("#check-card img") == "none"

        page.get_by_role("button", name="Correct it").click()
        expect(page.locator("#check-effect h3")).to_have_text("What would change")
        expect(page.locator("#check-effect")).to_contain_text("Of 16 memes whose label is known")
        page.get_by_role("button", name="Write to the bank").click()
        expect(page.get_by_role("alert").first).to_contain_text("Say why")
        assert Bank.open(clip_bank).version == 1, "nothing is written without a reason"
        page.get_by_label("The verdict is wrong").check()
        page.get_by_label("Note").fill("a drawn animal")
        watched.look("effect")
        page.get_by_role("button", name="Write to the bank").click()
        expect(page.locator("#check-said")).to_contain_text("from version 2 on")
        page.get_by_role("button", name="Judge it").click()
        expect(page.locator("#check-card")).to_contain_text("This very meme is in the bank")
        after = score(page, "check")
        assert (after - before) * (1 if "not hateful" in first else -1) > 0, "the row votes on its own meme"

        page.get_by_role("tab", name="History").click()
        expect(page.locator("#history-table tbody tr").first).to_contain_text("The verdict is wrong")
        page.get_by_role("button", name="Show the effect").click()
        expect(page.locator("#history-effect")).to_contain_text("Go back to version 1")
        watched.look("rollback")
        page.locator("#history-reason textarea").fill("only tried")
        page.get_by_role("button", name="Go back (Y)").click()
        expect(page.locator("#history-said")).to_contain_text("version 3 of the bank")
        page.get_by_role("tab", name="Figures").click()
        expect(page.locator("#figures-page")).to_contain_text("rollback by ana")
        watched.look("figures")
        watched.nothing_from_elsewhere()
        page.close()
    log = Bank.open(clip_bank).log
    assert [(one.action, one.author) for one in log] == [("create", "tests"), ("add", "ana"), ("rollback", "ana")]


@pytest.mark.parametrize("width", WIDTHS)
def test_by_keyboard_alone(
    browser: Any, console: ConsoleServer, clip_bank: Path, memes: Path, tmp_path: Path, screenshots: Path, width: str
) -> None:
    meme = read_memes(memes / "a" / "test.jsonl")[1]
    with console() as client:
        watched = Watched(browser, str(client.base_url), width, screenshots, "keyboard")
        page, keys = watched.page, watched.page.keyboard
        page.mouse.move(0, 0)
        with page.expect_file_chooser() as chooser:
            watched.tab_to("check-upload")
            keys.press("Enter")
        chooser.value.set_files(meme.image)
        expect(page.locator("#check-picture img")).to_be_visible()
        watched.tab_to("check-caption")
        keys.type("just a cat")  # with letters that are keys elsewhere
        assert page.locator("#check-caption textarea").input_value() == "just a cat"
        keys.press("Enter")
        expect(page.locator("#check-card h2")).to_be_focused()
        keys.press("u")
        assert watched.blur() == "none"
        keys.press("u")
        assert "blur" in watched.blur()

        watched.open_tab("Review")
        keys.press("g")
        expect(page.locator("#review-card h2")).to_be_focused()
        first = page.locator("#review-picture figcaption").inner_text()
        watched.look("review")
        keys.press("n")
        assert watched.blur("#review-card img") == "none"
        keys.press("a")
        expect(page.locator("#review-said")).to_contain_text("Agreed")
        expect(page.locator("#review-picture figcaption")).not_to_have_text(first)
        assert "blur" in watched.blur("#review-picture img")
        expect(page.locator("#review-card h2")).to_be_focused()
        keys.press("s")
        expect(page.locator("#review-said")).to_contain_text("Skipped")
        expect(page.locator("#review-card h2")).to_be_focused()
        keys.press("c")
        expect(page.locator("#review-effect h3")).to_be_visible()
        expect(page.locator("#review-label input:checked")).to_be_focused()
        keys.press("x")
        expect(page.locator("#review-panel")).to_be_hidden()
        keys.press("c")
        expect(page.locator("#review-effect h3")).to_be_visible()
        expect(page.locator("#review-label input:checked")).to_be_focused()
        keys.press("y")
        expect(page.get_by_role("alert").first).to_contain_text("Say why")
        watched.tab_to("review-reason", "input")
        keys.press("Space")
        expect(page.locator("#review-reason input").first).to_be_checked()
        watched.look("review-effect")
        keys.press("y")
        expect(page.locator("#review-said")).to_contain_text("from version 2 on")
        watched.open_tab("History")
        expect(page.locator("#history-table tbody tr").first).to_contain_text("1 added")
        watched.look("history")
        watched.tab_to("history-version")
        watched.tab_to("history-reason")
        keys.type("by keyboard")
        watched.tab_to("history-look")
        keys.press("Enter")
        expect(page.locator("#history-effect h3")).to_be_focused()
        keys.press("y")
        expect(page.locator("#history-said")).to_contain_text("version 3 of the bank")
        watched.nothing_from_elsewhere()
        page.close()
    assert [one.action for one in Bank.open(clip_bank).log] == ["create", "add", "rollback"]
    lines = (tmp_path / "reviews.jsonl").read_text().splitlines()
    assert [line.split('"decision": "')[1].split('"')[0] for line in lines] == ["agree", "skip", "begun", "correct"]


@pytest.mark.parametrize("root_path", ["", "/memes"])
def test_a_pasted_picture_and_keys_that_are_off(
    browser: Any, console: ConsoleServer, screenshots: Path, root_path: str
) -> None:
    with console(queue=None, root_path=root_path) as client:
        address = f"{client.base_url}".rstrip("/") + root_path
        watched = Watched(browser, address, "desk", screenshots, "paste", color_scheme="dark")
        page = watched.page
        page.evaluate(
            """async () => {
                const canvas = new OffscreenCanvas(64, 64);
                canvas.getContext("2d").fillRect(8, 8, 40, 40);
                const list = new DataTransfer();
                list.items.add(new File([await canvas.convertToBlob()], "cake.png", { type: "image/png" }));
                document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: list, bubbles: true }));
            }"""
        )
        expect(page.locator("#check-picture img")).to_be_visible()
        page.get_by_label("Keys (the letters on the buttons)").uncheck()
        page.keyboard.press("u")
        assert "blur" in watched.blur()
        page.get_by_label("Keys (the letters on the buttons)").check()
        page.keyboard.press("u")
        assert watched.blur() == "none"
        page.locator("#check-caption textarea").fill("a square cake")
        page.get_by_role("button", name="Judge it").click()
        expect(page.locator("#check-card h2")).to_be_visible()
        watched.look("dark")
        watched.nothing_from_elsewhere()
        page.close()
