"""The pages in a real browser: what a pathologist sees and does, with the keyboard and with the mouse."""

from __future__ import annotations

import csv
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import cv2
import numpy as np
import pytest

from wsi_ips.report.viewer.start import StartOptions, make_app, make_server, take_port

pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")


class Open(NamedTuple):
    """A page of a running viewer, and what went wrong on it."""

    page: Any
    address: str
    troubles: list[str]  # errors of the console, requests that left this machine


def _launch(p: Any) -> Any:
    """Start the browser: env CHROMIUM, Debian's, Playwright's own; else skip."""
    found = [os.environ.get("CHROMIUM"), shutil.which("chromium"), shutil.which("chromium-headless-shell"), None]
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    for path in (f for i, f in enumerate(found) if f or i == len(found) - 1):
        try:
            return p.chromium.launch(executable_path=path, args=arguments)
        except playwright.Error:
            continue
    pytest.skip("no chromium: set CHROMIUM, or run `playwright install chromium`")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start one browser for all tests."""
    with playwright.sync_playwright() as p:
        started = _launch(p)
        yield started
        started.close()


@pytest.fixture
def opened(made_run: Any, browser: Any) -> Iterator[Open]:
    """Serve the run on a free port and open an empty page that watches itself."""
    taken = take_port("127.0.0.1", 0)
    served = make_app(made_run.path, StartOptions(port=0, reviewer="Dr. A"), taken.getsockname()[1])
    server = make_server(served.app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    troubles: list[str] = []
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: troubles.append(str(e)))
    ours = served.address.partition("?")[0]
    page.on("request", lambda r: None if r.url.startswith((ours, "data:", "blob:")) else troubles.append(r.url))
    yield Open(page, served.address, troubles)
    page.close()
    server.should_exit = True
    thread.join(10)
    served.viewer.close()
    taken.close()


def _stage(page: Any) -> np.ndarray:
    """Look at the slide, without what floats above it: (h, w, 3) uint8."""
    data = page.screenshot(clip={"x": 60, "y": 170, "width": 680, "height": 330})
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _until(truth: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.05)


def _settled(page: Any) -> np.ndarray:
    """Wait until two looks are alike."""
    seen = [_stage(page)]

    def is_still() -> bool:
        page.wait_for_timeout(250)
        seen.append(_stage(page))
        return bool(np.array_equal(seen[-1], seen[-2])) and len(seen) > 3

    _until(is_still)
    return seen[-1]


def _place(page: Any) -> dict[str, float]:
    """Read x, y and zoom from the link once the view has come to rest."""
    page.wait_for_timeout(900)
    query = parse_qs(page.url.partition("#")[2])
    return {name: float(query[name][0]) for name in ("x", "y", "zoom")}


def _open(opened: Open, link: str) -> Any:
    opened.page.goto(f"{opened.address}{link}")
    opened.page.wait_for_selector("#slide-view .legend-ticks span" if "slide=good" in link else "#slides tbody tr", state="attached")
    return opened.page


def test_the_list_leads_to_a_slide_and_the_map_answers(opened: Open) -> None:
    """From the list into a slide; opacity, map and threshold change what is seen; nothing is loaded from elsewhere."""
    page = _open(opened, "")
    assert page.locator("#slides tbody tr").count() == 5
    page.fill("#search", "no tissue")
    assert page.locator("#slides tbody tr").count() == 1
    page.fill("#search", "good")
    page.click("#slides tbody a")
    page.wait_for_selector(".legend-ticks span")
    attention = _settled(page)
    assert "attention × N (1 = uniform, logarithmic)" in page.inner_text("#legend-label")
    page.keyboard.press("h")
    bare = _settled(page)
    assert np.abs(bare.astype(int) - attention).mean() > 0.5
    page.keyboard.press("h")
    for _ in range(7):
        page.keyboard.press("[")
    assert page.inner_text("#opacity-value") == "0 %"
    assert np.abs(_settled(page).astype(int) - bare).mean() < 0.1
    for _ in range(10):
        page.keyboard.press("]")
    strong = _settled(page)
    assert np.abs(strong.astype(int) - attention).mean() > 0.2
    page.select_option("#map-kind", "evidence")
    page.wait_for_selector("#legend-label:has-text('evidence towards')")
    assert np.abs(_settled(page).astype(int) - strong).mean() > 0.5
    assert "grey = not used" in page.inner_text(".legend")
    assert opened.troubles == []


def test_a_top_tile_leads_to_its_place(opened: Open, made_run: Any) -> None:
    """Clicking the first tile, or `.`, centres the view on it, within 2 level-0 px; the link says so."""
    page = _open(opened, "#slide=good")
    _settled(page)
    for act, rank in ((lambda: page.click("#tiles li:nth-child(1) button"), 0), (lambda: page.keyboard.press("."), 1)):
        act()
        _settled(page)
        place = _place(page)
        x0, y0 = made_run.prediction.coords[made_run.prediction.selected[rank]]
        assert abs(place["x"] - (x0 + 30.5)) <= 2
        assert abs(place["y"] - (y0 + 30.5)) <= 2
    assert place["zoom"] > 1
    assert opened.troubles == []


def test_a_link_opens_its_very_view(opened: Open) -> None:
    """Slide, centre, zoom, map and opacity of a link are honoured, and a changed address moves the view."""
    page = _open(opened, "#slide=good&x=700&y=500&zoom=2&map=selected&opacity=0.35")
    place = _place(page)
    assert (place["x"], place["y"], place["zoom"]) == (pytest.approx(700, abs=0.6), pytest.approx(500, abs=0.6), pytest.approx(2, rel=1e-3))
    assert page.inner_text("#opacity-value") == "35 %"
    assert page.input_value("#map-kind") == "selected"
    page.evaluate("location.hash = 'slide=good&x=900&y=400&zoom=1'")
    assert _place(page)["x"] == pytest.approx(900, abs=0.6)
    assert opened.troubles == []


def test_marks_are_stored_by_key_and_button(opened: Open, made_run: Any) -> None:
    """`1` stores agree, the button disagree with its note; file, slide and list show them; keys in a field stay text."""
    page = _open(opened, "#slide=good")
    page.keyboard.press("1")
    page.wait_for_selector("#review-latest .mark.agree")
    page.fill("#review-note", "1 <b>odd</b> nucleus")
    page.click(".mark-button.disagree")
    page.wait_for_selector("#review-latest .mark.disagree")
    with (made_run.path / "reviews.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [(r["mark"], r["note"], r["reviewer"]) for r in rows] == [("agree", "", "Dr. A"), ("disagree", "1 <b>odd</b> nucleus", "Dr. A")]
    page.keyboard.press("l")
    page.wait_for_selector("#slides .mark.disagree")
    assert opened.troubles == []


def test_strange_slides_leave_the_viewer_usable(opened: Open) -> None:
    """An unknown id, a replaced file, a failed slide and evil text each get a sentence; the next slide opens."""
    page = _open(opened, "#slide=%3Cimg%20src%3Dx%3E")
    assert "This run has no slide" in page.inner_text("#banner")
    page.evaluate("location.hash = 'slide=other'")
    page.wait_for_selector("#stage-note:not([hidden])")
    assert "not the one that was classified" in page.inner_text("#stage-note")
    page.keyboard.press("n")
    page.wait_for_selector("#stage-note:has-text('--slide-root')")
    page.evaluate("location.hash = 'slide=broken'")
    page.wait_for_selector("#stage-message:not([hidden])")
    assert "onerror=alert(1)" in page.inner_text("#stage-message")
    page.evaluate("location.hash = 'slide=good'")
    page.wait_for_selector(".legend-ticks span", state="visible")
    assert page.locator("img[src='x'], #call script, #slides script").count() == 0
    assert re.search(r"<script>alert\(1\)</script>", page.inner_text("#call"))
    assert opened.troubles == []


def test_a_view_that_still_moves_does_not_hold_back_who_leaves_it(opened: Open) -> None:
    """The link follows the view a moment later; by then it may name another slide, which the browser has yet to tell of."""
    page = _open(opened, "#slide=good")
    _place(page)  # at rest
    page.keyboard.press("+")
    page.evaluate("history.replaceState(null, '', '#slide=other')")  # as long as no event has told of it
    page.wait_for_timeout(900)
    assert page.evaluate("location.hash") == "#slide=other"


def test_it_works_without_a_mouse(opened: Open) -> None:
    """Tab and Enter open a slide, `?` lists the keys, every control has a name."""
    page = _open(opened, "")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#slide-view:not([hidden])")
    page.keyboard.press("?")
    assert "next, previous top tile" in page.inner_text("#help[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.wait_for_selector("#slide-position:has-text('3 / 5')")
    page.keyboard.press("l")
    assert page.evaluate("document.activeElement.textContent") == "gone"
    page.keyboard.press("Enter")
    page.wait_for_selector("#slide-view:not([hidden])")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, a[href]')].filter((n) => n.checkVisibility() && "
        "!(n.textContent.trim() || n.ariaLabel || n.labels?.length)).map((n) => n.outerHTML)"
    )
    assert nameless == []
    assert opened.troubles == []
