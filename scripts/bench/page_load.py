"""How long the review page of `ra-hmd console` takes to load in a browser, and how much is sent for it.

The page is loaded again and again with an empty cache, from a console that runs already and has something to review:

    ra-hmd console RUN --bank BANK --queue memes.jsonl &
    python scripts/bench/page_load.py http://127.0.0.1:8000/console [--selector "#decide"] [--times 10]
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


def load(browser: Browser, address: str, selector: str) -> dict[str, float]:
    """Load the page once, with an empty cache: seconds, and what was sent."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    sent = {"bytes": 0, "requests": 0}

    def count(event: dict[str, Any]) -> None:
        sent["bytes"] += int(event["encodedDataLength"])
        sent["requests"] += 1

    network = context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.loadingFinished", count)
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(selector, timeout=60_000)
    usable = time.perf_counter() - began
    page.wait_for_timeout(500)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    context.close()
    return {"first paint": paint / 1000, "usable": usable, **sent}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, or that of Playwright."""
    import shutil

    with sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="address of the page")
    parser.add_argument("--selector", default="#decide", help="what must be there for a person to decide")
    parser.add_argument("--times", type=int, default=10)
    arguments = parser.parse_args()
    with chromium() as browser:
        load(browser, arguments.address, arguments.selector)  # the first one also fills caches of the server
        runs = [load(browser, arguments.address, arguments.selector) for _ in range(arguments.times)]
    print(json.dumps({name: statistics.median(run[name] for run in runs) for name in runs[0]}, indent=2))


if __name__ == "__main__":
    main()
