"""The settings page: what a person sets stays theirs, and holds on the next page."""

from pathlib import Path
from typing import Any

from desks import MakeDesk

from ra_hmd.desk.preferences import KEYS, Preferences, read_preferences
from ra_hmd.serve.auth import KeyRing, make_key

FORM = {"blur": "10", "size": "large", "pause_minutes": "20", "language": "de", "theme": "dark"}


def keys(**changes: str) -> dict[str, str]:
    return {f"key-{action}": changes.get(action, key) for action, key in KEYS.items()}


def test_settings_hold_on_the_next_page_and_for_this_person_alone(desk: MakeDesk, tmp_path: Path) -> None:
    secrets = {name: make_key(tmp_path / "keys.json", name, "moderator") for name in ("ann", "bob")}
    with desk(KeyRing.open(tmp_path / "keys.json")) as served, served.logged_in("ann", secrets["ann"]) as ann:
        sent = ann.post("/console/settings", data=FORM | keys(skip="x"))
        assert (sent.status_code, sent.headers["location"]) == (303, "/console/settings?saved=yes")
        page = ann.get(sent.headers["location"]).text
        assert "Gespeichert." in page
        for part in ('lang="de"', 'data-theme="dark"', 'data-blur="10"', 'data-grey="false"', 'data-pause="20"'):
            assert part in page
        assert "&#34;skip&#34;: &#34;x&#34;" in page
        with served.logged_in("bob", secrets["bob"]) as bob:
            other = bob.get("/console/settings").text
        assert 'lang="en"' in other
        assert 'data-blur="24"' in other
        ann.post("/console/settings", data={"reset": "yes"})
        assert read_preferences(served.cases.store.database, "ann") == Preferences()


WRONG = [
    (keys(skip="e"), "The key E has two actions: “To a colleague” and “Skip for me”."),
    (keys(skip="7"), "&#39;7&#39; cannot be a key; choose one letter."),
    ({"blur": "99"}, "blur"),
    ({"pause_minutes": "soon"}, "pause_minutes"),
    ({"theme": "<b>"}, "theme"),
]


def test_what_cannot_be_is_said_and_nothing_is_kept(desk: MakeDesk) -> None:
    with desk(bank=None) as served:
        for changes, says in WRONG:
            answer = served.client.post("/console/settings", data=FORM | keys() | changes)
            assert answer.status_code == 422
            assert says in answer.text
            assert "<b>" not in answer.text
            assert 'value="large" selected' in answer.text
        assert read_preferences(served.cases.store.database, "ana") == Preferences()


def test_a_clash_of_keys_is_said_in_the_persons_language(desk: MakeDesk) -> None:
    with desk(bank=None) as served:
        answer = served.client.post("/console/settings", data=FORM | keys(skip="e"), headers={"Accept-Language": "de"})
        assert "Die Taste E hat zwei Aktionen: „An eine andere Person“ und „Für mich überspringen“." in answer.text


def test_a_key_of_ones_own_works_in_the_browser_and_the_old_one_does_nothing(desk: MakeDesk, browser: Any) -> None:
    with desk(bank=None, cases=2) as served:
        served.client.post("/console/settings", data=FORM | {"language": "", "blur": "0"} | keys(skip="x"))
        page = browser.new_page(color_scheme="light")
        page.goto(f"{served.address}/review")
        first = page.locator("#case").get_attribute("data-case")
        assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
        assert page.evaluate("getComputedStyle(document.querySelector('.picture img')).filter") == "blur(0px)"
        page.wait_for_timeout(450)  # keys do nothing for a meme that has just come
        page.keyboard.press("s")
        page.wait_for_timeout(300)
        assert page.locator("#case").get_attribute("data-case") == first
        page.keyboard.press("x")
        page.locator(f"#case:not([data-case='{first}'])").wait_for(timeout=10_000)
        page.close()
