"""Screenshots of every page of a running desk, at two widths, light and dark, with the pictures blurred.

They end where the page's content ends, and have 256 colours, which keeps the files small.

ra-hmd console runs/head --bank bank --port 8000          # in another terminal
python scripts/screenshots.py http://127.0.0.1:8000 --output docs/img [--name ana --key FILE] [--themes light]
    [--meme PICTURE --caption "words"]                    # which the page Check then judges
"""

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

PAGES = ("review", "cases", "case", "check", "bank", "team", "settings")
SIZES = {"wide": (1280, 800), "narrow": (390, 844)}
COLOURS = 256
MARGIN = 16
TIMEOUT_MS = 180_000  # the effect of a correction on a large bank takes a while


def log_in(page: Any, address: str, name: str, key: str) -> None:
    """Begin a session in a browser."""
    page.goto(f"{address}/console/login")
    page.fill("[name=name]", name)
    page.fill("[name=key]", key)
    page.press("[name=key]", "Enter")
    page.wait_for_selector("nav")


def open_page(page: Any, address: str, name: str, meme: Path | None, caption: str) -> bool:
    """Open a page of the desk; False where it is missing. `case` is the first case of the list."""
    if name == "case":
        page.goto(f"{address}/console/cases")
        links = page.locator("main a[href*='/console/cases/']")
        if not links.count():
            return False
        answer = page.goto(str(links.first.evaluate("link => link.href")))
    else:
        answer = page.goto(f"{address}/console/{name}")
    if name == "check" and meme is not None:
        page.set_input_files("[name=image]", meme)
        page.fill("[name=caption]", caption)
        page.click("form.drop button.primary")
        page.wait_for_selector(".desk.checked")
    page.wait_for_load_state("networkidle")
    return bool(answer and answer.ok)


def save(page: Any, place: Path) -> None:
    """Write a picture of what is on the screen, without the empty part below the content."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    empty = Image.new("RGB", picture.size, picture.getpixel((0, picture.height - 1)))
    content = ImageChops.difference(picture, empty).getbbox() or (0, 0, *picture.size)
    picture = picture.crop((0, 0, picture.width, min(picture.height, content[3] + MARGIN)))
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(place, optimize=True)


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--name", help="name to log in with, where keys are needed")
    parser.add_argument("--key", type=Path, help="file with that person's key")
    parser.add_argument("--pages", nargs="+", default=PAGES, choices=PAGES)
    parser.add_argument("--sizes", nargs="+", default=tuple(SIZES), choices=tuple(SIZES))
    parser.add_argument("--themes", nargs="+", default=("light", "dark"), choices=("light", "dark"))
    parser.add_argument("--language", default="en")
    parser.add_argument("--meme", type=Path, help="picture that Check judges")
    parser.add_argument("--caption", default="", help="its caption")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="program of Chromium")
    return parser.parse_args()


def main() -> None:
    """Take the screenshots."""
    from playwright.sync_api import sync_playwright

    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        for size in options.sizes:
            for theme in options.themes:
                width, height = SIZES[size]
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme,
                                        locale=options.language)  # fmt: skip
                page.set_default_timeout(TIMEOUT_MS)
                if options.name:
                    log_in(page, options.address, options.name, options.key.read_text().strip())
                for name in options.pages:
                    if open_page(page, options.address, name, options.meme, options.caption):
                        save(page, options.output / f"desk-{name}-{size}-{theme}.png")
                    else:
                        print(f"{name}: no such page")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
