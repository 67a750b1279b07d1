"""Take the pictures of the search page in docs/images from a running server that searches the Python documentation.

inranker serve --port 8080 &
python benchmarks/page_screenshots.py http://127.0.0.1:8080
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
QUERY = "run several coroutines and collect their results"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


def main() -> None:
    """Take three pictures: wide, dark, and on a phone."""
    url = f"{sys.argv[1]}/?{urlencode({'q': QUERY})}"
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name, width, height, scheme in [
            ("search-wide", 1200, 760, "light"),
            ("search-dark", 1200, 760, "dark"),
            ("search-phone", 390, 760, "light"),
        ]:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.goto(url)
            page.locator(".card:visible").first.wait_for(timeout=60_000)
            page.evaluate("document.activeElement.blur()")
            if width > 1000:
                page.locator("#right .card", has=page.locator(".move.up")).first.hover()
            page.wait_for_timeout(300)
            page.screenshot(path=IMAGES / f"{name}.png")
            # A palette makes them a third of the size, which a repository keeps for good.
            Image.open(IMAGES / f"{name}.png").quantize(96).save(IMAGES / f"{name}.png", optimize=True)
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
