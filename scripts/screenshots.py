"""Screenshots of every page of a running desk, at two widths, light and dark, with the pictures blurred.

ra-hmd console runs/head --bank bank --port 8000          # in another terminal
python scripts/screenshots.py http://127.0.0.1:8000 --output docs/img [--name ana --key FILE] [--themes light]
"""

import argparse
from pathlib import Path
from typing import Any

PAGES = ("review", "cases", "case", "check", "bank", "team", "settings")
SIZES = {"wide": (1280, 800), "narrow": (390, 844)}


def log_in(page: Any, address: str, name: str, key: str) -> None:
    """Begin a session in a browser."""
    page.goto(f"{address}/console/login")
    page.fill("[name=name]", name)
    page.fill("[name=key]", key)
    page.press("[name=key]", "Enter")
    page.wait_for_selector("nav")


def open_page(page: Any, address: str, name: str) -> bool:
    """Open a page of the desk; False where it is missing. `case` is the first case of the list."""
    if name == "case":
        page.goto(f"{address}/console/cases")
        links = page.locator("main a[href*='/console/cases/']")
        if not links.count():
            return False
        answer = page.goto(str(links.first.evaluate("link => link.href")))
    else:
        answer = page.goto(f"{address}/console/{name}")
    page.wait_for_load_state("networkidle")
    return bool(answer and answer.ok)


def main() -> None:
    """Take the screenshots."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--name", help="name to log in with, where keys are needed")
    parser.add_argument("--key", type=Path, help="file with that person's key")
    parser.add_argument("--pages", nargs="+", default=PAGES, choices=PAGES)
    parser.add_argument("--sizes", nargs="+", default=tuple(SIZES), choices=tuple(SIZES))
    parser.add_argument("--themes", nargs="+", default=("light", "dark"), choices=("light", "dark"))
    parser.add_argument("--language", default="en")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="program of Chromium")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        for size in options.sizes:
            for theme in options.themes:
                width, height = SIZES[size]
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme,
                                        locale=options.language)  # fmt: skip
                if options.name:
                    log_in(page, options.address, options.name, options.key.read_text().strip())
                for name in options.pages:
                    if open_page(page, options.address, name):
                        page.screenshot(path=options.output / f"desk-{name}-{size}-{theme}.png")
                    else:
                        print(f"{name}: no such page")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
