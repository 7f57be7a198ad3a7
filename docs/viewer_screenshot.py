"""Draws docs/viewer.png: the viewer on a finished run, as a browser shows it.

    python docs/viewer_screenshot.py demo/run docs/viewer.png

Needs Playwright and a Chromium (env CHROMIUM, `chromium`, or Playwright's own); says so and ends well without them.
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

from wsi_ips.report.viewer.start import StartOptions, make_app, take_port

_WIDTH, _HEIGHT = 1440, 860
_MOST_BYTES = 400_000


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
    """Bring a PNG below the limit: fewer colours first, then fewer px."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    dithers = (Image.Dither.FLOYDSTEINBERG, Image.Dither.NONE)  # smooth colour bars, where there is room for them
    for shrink, colours, dither in ((s, c, d) for s, c in ((1.0, 256), (0.9, 256), (0.75, 128)) for d in dithers):
        size = (round(picture.width * shrink), round(picture.height * shrink))
        out = io.BytesIO()
        fewer = picture.resize(size, Image.Resampling.LANCZOS).quantize(colours, dither=dither)
        fewer.save(out, "PNG", optimize=True)
        if out.tell() <= _MOST_BYTES:
            break
    return out.getvalue()


def main() -> None:
    """Serve the run on a free port, photograph it, write the picture."""
    parser = argparse.ArgumentParser(description="draws a picture of the viewer")
    parser.add_argument("run", type=Path, help="finished run folder")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--slide", default="", help="slide id; else the most probable one")
    given = parser.parse_args()
    try:
        import uvicorn
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        print(f'skipped: {error.name} is not installed; pip install "wsi-ips[dev]"')
        return
    taken = take_port("127.0.0.1", 0)
    served = make_app(given.run, StartOptions(port=0), taken.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(served.app, log_level="error", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    with sync_playwright() as playwright:
        browser = _launch(playwright)
        if browser is None:
            print("skipped: no Chromium; set CHROMIUM, or run `playwright install chromium`")
            return
        png = _photograph(browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}), served.address, given.slide)
        browser.close()
    server.should_exit = True
    thread.join(10)
    given.out.write_bytes(_small(png))
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
