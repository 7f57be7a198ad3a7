"""Draws the pictures of the documents from a finished run: docs/demo.png, an overlay, and docs/viewer.png, the viewer.

    make pictures          which is: make demo, then python docs/pictures.py demo/run docs

The viewer's needs Playwright and a Chromium (env CHROMIUM, `chromium`, or Playwright's own); without them it says so and
leaves that picture as it is.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from wsi_ips import read_predictions
from wsi_ips.report.viewer.start import StartOptions, make_app, make_server, take_port

_WIDTH, _HEIGHT = 1440, 860
_MOST_BYTES = 800_000


def _launch(playwright: Any) -> Any | None:
    """Start a browser; None where there is none."""
    from playwright.sync_api import Error

    for path in (os.environ.get("CHROMIUM"), shutil.which("chromium"), shutil.which("chromium-headless-shell"), None):
        try:
            return playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        except Error:
            continue
    return None


def _photograph(page: Any, address: str, slide_id: str) -> bytes:
    """Open a slide (the most probable positive one unless named) and look at it."""
    page.goto(address)
    page.wait_for_selector("#slides tbody tr")
    if slide_id:
        page.fill("#search", slide_id)
    else:
        page.click(".col-value button")
    page.click("#slides tbody a >> nth=0")
    page.wait_for_selector(".legend-ticks span")
    page.select_option("#map-kind", "evidence")
    for _ in range(2):
        page.keyboard.press("]")
    page.keyboard.press("o")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2000)
    return bytes(page.screenshot())


def _small(png: bytes) -> bytes:
    """Bring a PNG below the limit by fewer px; colours stay true."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for shrink in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        size = (round(picture.width * shrink), round(picture.height * shrink))
        out = io.BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).save(out, "PNG", optimize=True)
        if out.tell() <= _MOST_BYTES:
            break
    return out.getvalue()


def _overlay(run: Path, slide_id: str) -> bytes:
    """The overlay of a slide: the most probable positive one of a binary task unless named."""
    table = read_predictions(run)
    last = [name for name in table.columns if "prob_" in name][-1]
    chosen = slide_id or str(table.sort_values([last, "slide_id"], ascending=[False, True])["slide_id"].iloc[0])
    return (run / "slides" / chosen / f"{chosen}.overlay.png").read_bytes()


def _viewer(run: Path, slide_id: str) -> bytes | None:
    """Serve the run on a free port and photograph it; None, with a word, where there is no browser."""
    try:
        import uvicorn  # noqa: F401
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        print(f'no picture of the viewer: {error.name} is not installed; pip install "wsi-ips[dev]"')
        return None
    taken = take_port("127.0.0.1", 0)
    served = make_app(run, StartOptions(port=0), taken.getsockname()[1])
    server = make_server(served.app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = _launch(playwright)
            if browser is None:
                print("no picture of the viewer: no Chromium; set CHROMIUM, or run `playwright install chromium`")
                return None
            page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
            png = _photograph(page, served.address, slide_id)
            browser.close()
            return png
    finally:
        server.should_exit = True
        thread.join(10)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description="draws the pictures of the documents")
    parser.add_argument("run", type=Path, help="finished run folder")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--slide", default="", help="slide id; else the most probable one")
    given = parser.parse_args()
    pictures = {"demo.png": _overlay(given.run, given.slide), "viewer.png": _viewer(given.run, given.slide)}
    for name, png in pictures.items():
        if png is not None:
            (given.out / name).write_bytes(_small(png))
            print(f"{given.out / name}: {(given.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
