"""The next slide made ready: it saves an opening and changes nothing else, whatever becomes of it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.engine import prefetch, worker
from wsi_ips.engine.prefetch import LookAhead, Prepared
from wsi_ips.engine.worker import SlideWorker
from wsi_ips.errors import UnreadableSlideError
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.reader import Slide
from wsi_ips.slide.reader import open_slide as real_open_slide

Make = Callable[..., SlideWorker]


@pytest.fixture
def slides(cohort: Path, tmp_path: Path) -> dict[str, Path]:
    """Two slides of our own."""
    sound = sorted((cohort.parent / "slides").glob("*.tif"))
    return {name: Path(shutil.copy(source, tmp_path / f"{name}.tif")) for name, source in zip("ab", sound, strict=False)}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Who opened which slide."""
    found: list[tuple[str, str]] = []

    def watch(path: str, *rest: object, **more: Any) -> Slide:
        found.append((threading.current_thread().name, Path(path).stem))
        return real_open_slide(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(prefetch, "open_slide", watch)
    monkeypatch.setattr(worker, "open_slide", watch)
    return found


@pytest.fixture
def make(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(worker, "make_deterministic", lambda threads: None)  # which would last

    def made(out: str = "run", *, look_ahead: bool = True, place: str = "off", strict: bool = False) -> SlideWorker:
        RunFolder(tmp_path / out).slide_folder("a").parent.mkdir(parents=True, exist_ok=True)
        machine = {"threads": 1, "device": "cpu", "look_ahead": look_ahead}
        cache = {"place": place, "strict": strict}
        return SlideWorker(str(tiny_bundle), str(tmp_path / out), {}, None, False, {"name": "torch", "or_torch": False}, machine, cache)

    return made


def _payload(path: Path, **more: object) -> dict[str, Any]:
    base = {"slide_id": path.stem, "patient_id": "p", "slide_path": str(path), "features_path": None, "mpp": None, "mask_path": None,
            "identity": {"row": path.stem}, "retry_failed": False, "formats": []}  # fmt: skip
    return base | more


def _both(w: SlideWorker, slides: Mapping[str, Path], between: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Do slide a with b announced, wait for the preparation, then b."""
    a, b = _payload(slides["a"]), _payload(slides["b"])
    w.expect(b, lambda: None)
    first = w.work(a, lambda stage, done, total: None)
    for thread in threading.enumerate():
        if thread.name == "next-slide":
            thread.join(60)
    between()
    w.expect(None, lambda: None)
    return [first, w.work(b, lambda stage, done, total: None)]


def _no_threads() -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not [t for t in threading.enumerate() if t.name.startswith(("tile-reader", "next-slide"))]:
            return True
        time.sleep(0.01)
    return False


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "state.json"}


def test_the_next_slide_is_opened_once_and_beside(
    make: Make, slides: dict[str, Path], opened: list[tuple[str, str]]
) -> None:
    """While a is encoded b is opened, in a thread; its own turn opens nothing, and no thread stays."""
    first, second = _both(make(), slides)
    assert opened == [("MainThread", "a"), ("next-slide", "b")]
    assert (first["was_ahead"], second["was_ahead"]) == (False, True)
    assert (first["status"], second["status"]) == ("ok", "ok")
    assert second["n_encoded"] > 0
    assert _no_threads()


@pytest.mark.parametrize(("place", "strict"), [("off", False), ("cache", False), ("cache", True)])
def test_it_changes_no_byte(make: Make, slides: dict[str, Path], tmp_path: Path, place: str, strict: bool) -> None:
    """With and without a look ahead, into the cache and out of it, every file of both slides is the same."""
    found = []
    for out, look_ahead in (("with", True), ("without", False), ("again", True)):
        where = "off" if place == "off" else str(tmp_path / place / ("one" if look_ahead else "other"))
        records = _both(make(out, look_ahead=look_ahead, place=where, strict=strict), slides)
        assert [r["was_ahead"] for r in records] == [False, look_ahead]
        assert records[1]["is_cached"] == (out == "again" and place == "cache")
        found.append(_files(tmp_path / out))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2


def test_nothing_is_read_of_a_slide_that_the_cache_has(
    make: Make, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan is made, no stream is started."""
    _both(make("first", place=str(tmp_path / "cache")), slides)
    monkeypatch.setattr(prefetch, "start_stream", lambda *_: pytest.fail("tiles were read"))
    _, second = _both(make("second", place=str(tmp_path / "cache")), slides)
    assert (second["was_ahead"], second["is_cached"], second["n_encoded"]) == (True, True, 0)


def test_a_slide_that_changed_in_between_is_opened_again(
    make: Make, slides: dict[str, Path], opened: list[tuple[str, str]], tmp_path: Path
) -> None:
    """What was prepared of the old file is thrown away, and the result is that of the new one."""
    _, second = _both(make("changed"), slides, lambda: shutil.copy(slides["a"], slides["b"]) and None)
    assert not second["was_ahead"]
    assert opened == [("MainThread", "a"), ("next-slide", "b"), ("MainThread", "b")]
    ledgers = [(tmp_path / "changed" / "slides" / name / f"{name}.ledger.h5").stat().st_size for name in "ab"]
    assert ledgers[0] == ledgers[1]
    assert _no_threads()


def test_another_slide_than_expected_is_not_held_up(
    make: Make, slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preparation that hangs is left behind by the slide that comes instead, and closed when it ends after all."""
    hangs, closed = threading.Event(), []

    def hang(*_: object, **__: object) -> Slide:
        hangs.wait(60)
        slide = real_open_slide(slides["b"])
        monkeypatch.setattr(slide, "close", lambda: closed.append(slide))
        return slide

    w = make()
    monkeypatch.setattr(prefetch, "open_slide", hang)
    w.expect(_payload(slides["b"]), lambda: None)
    w.work(_payload(slides["a"]), lambda *_: None)
    other = _payload(slides["a"], slide_id="c")
    w.expect(None, lambda: None)
    assert w.work(other, lambda *_: None)["status"] == "ok"
    hangs.set()
    assert _no_threads()
    assert closed


def test_an_error_of_the_preparation_is_met_again_and_told(
    make: Make, slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut file fails with its own reason in its own turn; one that failed in the preparation alone is labelled."""
    slides["b"].write_bytes(slides["b"].read_bytes()[: slides["b"].stat().st_size // 2])
    first, second = _both(make("cut"), slides)
    assert (first["status"], second["status"], second["reason"]) == ("ok", "failed", "E_TRUNCATED")
    shutil.copy(slides["a"], slides["b"])
    for error in (UnreadableSlideError("E_TILE", "a hiccup"), MemoryError(), ValueError("a defect")):

        def stumble(*_: object, error: Exception = error, **__: object) -> Slide:
            raise error

        monkeypatch.setattr(prefetch, "open_slide", stumble)
        _, second = _both(make(type(error).__name__), slides)
        assert (second["status"], second["was_ahead"]) == ("ok", False)
    assert _no_threads()


def test_a_slide_that_is_done_is_not_prepared(make: Make, slides: dict[str, Path], opened: list[tuple[str, str]]) -> None:
    """A second start opens neither."""
    _both(make(), slides)
    opened.clear()
    again = _both(make(), slides)
    assert [r.get("kept") for r in again] == [True, True]
    assert opened == []


def test_memory_that_gives_out_beside_a_preparation_is_tried_again_without(
    make: Make, slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slide at work is not failed for what its neighbour took."""
    real, calls = worker.label_slide, []

    def short(*arguments: Any) -> Any:
        calls.append(1)
        found = real(*arguments)
        if len(calls) == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return found

    monkeypatch.setattr(worker, "label_slide", short)
    first, second = _both(make(), slides)
    assert (first["status"], second["status"], second["was_ahead"]) == ("ok", "ok", False)


def test_begun_is_said_before_the_first_look(tmp_path: Path) -> None:
    """Who supervises knows of a preparation before it can do harm; without a next slide nothing is said."""
    said: list[str] = []

    def prepare(payload: Mapping[str, Any], is_wanted: Callable[[], bool]) -> Prepared | None:
        said.append("prepared")
        return None

    ahead = LookAhead(prepare)
    ahead.expect(None, lambda: said.append("begun"))
    ahead.begin()
    assert said == []
    payload = _payload(tmp_path / "x")
    ahead.expect(payload, lambda: said.append("begun"))
    ahead.begin()
    ahead.begin()  # every chunk says so
    assert ahead.take(payload) is None
    assert said == ["begun", "prepared"]
