"""The viewer under attack: a real server on a free port, raw bytes into its socket, and a run folder full of traps."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from wsi_ips.errors import TileReadError
from wsi_ips.report.viewer import files, patience
from wsi_ips.report.viewer.cache import ByteCache
from wsi_ips.report.viewer.start import StartOptions, make_app, make_server, take_port

pytest.importorskip("uvicorn")

SECRETS = (b"secret_folder", b"patient_doe", b"John", b"root:", b"Traceback", b"wsi_ips/")


class Live(NamedTuple):
    """A running viewer."""

    port: int
    token: str
    server: Any

    def ask(self, data: bytes, seconds: float = 5.0) -> bytes:
        """Send raw bytes; everything that comes back until the other end closes, or nothing comes for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as s:
            found = b""
            try:
                s.sendall(data)
                while part := s.recv(65_536):
                    found += part
            except (ConnectionError, TimeoutError):
                pass
            return found

    def get(self, target: str, *headers: str, method: str = "GET") -> bytes:
        """Ask as our own page would, for a target as it is."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", f"Cookie: wsi_ips_view_{self.port}={self.token}", *headers]
        return self.ask(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1"))

    def is_well(self) -> bool:
        """Tell whether the list of slides still comes."""
        return self.get("/api/run").startswith(b"HTTP/1.1 200")


@pytest.fixture
def live(made_run: Any, capfd: Any) -> Iterator[Live]:
    """Serve the run; at the end no line of the server may name what was asked for, or the token."""
    taken = take_port("127.0.0.1", 0)
    port = taken.getsockname()[1]
    served = make_app(made_run.path, StartOptions(port=0), port)
    server = make_server(served.app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    token = served.address.partition("token=")[2]
    yield Live(port, token, server)
    server.should_exit = True
    thread.join(10)
    served.viewer.close()
    taken.close()
    said = "".join(capfd.readouterr())
    assert token not in said
    assert "/api/" not in said


TRAVERSALS = [
    "/api/slides/..%2f..%2frun", "/api/slides/%2e%2e/%2e%2e/run.json", "/api/slides/%252e%252e%252fgood", "/api/slides/..%5c..%5crun",
    "/static/..%2findex.py", "/static/../index.py", "/static/%2e%2e/server.py", "/static/%252e%252e%252fserver.py", "/static/..\\server.py",
    "/static/....//server.py", "/static//etc/passwd", "/static/%2fetc%2fpasswd", "//etc/passwd", "/../../../../etc/passwd", "/static/",
    "/static/server.py", "/static/index.html%00.js", "/api/slides/..", "/api/slides/good%00", "/api/slides/good%00.jpg/thumbnail.jpg",
    "/api/slides/good/tiles/..%2f1.jpg", "/api/slides/good/tiles/1.jpg%00", "/api/slides/good/pixels/0/..%2f0_0.jpg",
    "/api/slides/good/pixels/-1/0_0.jpg", "/api/slides/good/pixels/0/0_0.jpg/..", "/api/slides/good/", "/api/slides/GOOD", "/api/slides/good%20",
    "/api/slides/good%2fthumbnail.jpg", "/api/slides/%ef%bc%8e%ef%bc%8e", "/api/slides/%c0%ae%c0%ae%c0%af", "/api/slides/good;/thumbnail.jpg",
    "/api/slides/good/pixels/99999/0_0.jpg", "/api/slides/good/tiles/0.jpg", "/api/slides/good/tiles/%d9%a1.jpg", "/RUN/run.json", "/run.json",
    "/api/run/..%2f..%2frun.json", "/api/slides/good%0d%0aset-cookie:x=1", "/%2e%2e%2f%2e%2e%2fetc/passwd", "file:///etc/passwd",
    "http://evil.example/api/run", "/static/main.js/../../index.py", "/.git/config", "/api/slides/good/state.json", "/api/slides/good.ledger.h5",
]  # fmt: skip


def test_fault_120_no_form_of_traversal_leads_anywhere(live: Live) -> None:
    """Plain, encoded, doubly encoded, with NUL, backslash, overlong UTF-8, line ends: 404 or 400, nothing told, never 500."""
    for target in TRAVERSALS:
        answer = live.get(target)
        assert answer[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 400"), (target, answer[:80])
        assert not any(secret in answer for secret in SECRETS), target
        assert b"set-cookie" not in answer.lower(), target
        assert b"content-security-policy" in answer.lower() or b"Invalid HTTP" in answer, target
    assert live.is_well()


def test_fault_120_links_in_the_run_folder_are_not_followed(made_run: Any, open_client: Callable[..., Any], tmp_path: Path) -> None:
    """A thumbnail, a ledger, a record, a table of marks and a slide's folder that are links, or pipes, show nothing."""
    secret = tmp_path / "secret_folder.txt"
    secret.write_bytes(b"root:x:0:0")
    good, other = made_run.path / "slides" / "good", made_run.path / "slides" / "other"
    (good / "good.thumbnail.jpg").symlink_to(secret)
    (good / "good.ledger.h5").rename(tmp_path / "l.h5")
    (good / "good.ledger.h5").symlink_to(tmp_path / "l.h5")
    other.rename(tmp_path / "elsewhere")
    other.symlink_to(tmp_path / "elsewhere")
    gone = made_run.path / "slides" / "gone"
    for name in ("state.json", "gone.ledger.h5"):
        (gone / name).unlink()
        os.mkfifo(gone / name)
    os.mkfifo(gone / "gone.thumbnail.jpg")
    (made_run.path / "reviews.csv").symlink_to(secret)
    client = open_client(made_run.path)
    rows = client.get("/api/run").json()
    assert "reviews.csv" in rows["reviews_trouble"]
    assert not any(row["has_thumbnail"] for row in rows["slides"])
    for slide_id in ("good", "other", "gone"):
        assert client.get(f"/api/slides/{slide_id}/thumbnail.jpg").status_code == 404
        assert client.get(f"/api/slides/{slide_id}/map/0/0_0.png").status_code == 409
        assert client.get(f"/api/slides/{slide_id}").status_code == 200
    marked = client.post("/api/slides/good/reviews", json={"mark": "agree"}, headers={"origin": "http://127.0.0.1:8123"})
    assert marked.status_code >= 400
    assert secret.read_bytes() == b"root:x:0:0"


def test_fault_120_a_run_that_names_any_file_of_the_disk_shows_none(made_run: Any, open_client: Callable[..., Any]) -> None:
    """run.json says where slides lie; a file is shown only when its content is that of the record."""
    facts = json.loads((made_run.path / "run.json").read_text())
    for slide_id, path in (("good", "/etc/passwd"), ("other", "/dev/zero"), ("gone", 5), ("empty", ["x"])):
        facts["slides"][slide_id]["path"] = path
    facts["slides"]["broken"] = "x"
    (made_run.path / "run.json").write_text(json.dumps(facts))
    client = open_client(made_run.path)
    for slide_id in ("good", "other", "gone", "empty", "broken"):
        answer = client.get(f"/api/slides/{slide_id}")
        assert answer.status_code == 200, slide_id
        assert not answer.json()["has_slide"]
        assert client.get(f"/api/slides/{slide_id}/pixels/0/0_0.jpg").status_code == 409
        assert b"root:" not in answer.content


@pytest.mark.parametrize("facts", [[], {"schema_version": "9"}, {"schema_version": 99}, {"model": 5}, {"model": {"model_settings": {"tasks": [{"kind": "?"}]}}}])
def test_a_run_json_of_any_form_is_one_sentence(made_run: Any, make_client: Callable[..., Any], facts: object) -> None:
    """What is no run is refused at the start."""
    from wsi_ips.errors import ConfigError

    (made_run.path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError):
        make_client(made_run.path)


def test_fault_125_twenty_thousand_headers_and_endless_heads_are_refused(live: Live) -> None:
    """Many headers, one huge header, a huge target, a body without an end: an error and a closed connection, no memory kept."""
    start = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n".encode()
    for data in (start + b"a: b\r\n" * 20_000 + b"Connection: close\r\n\r\n", start + b"a: " + b"x" * 300_000, b"GET /" + b"a" * 300_000, b"\x16\x03\x01" + b"\0" * 200):
        answer = live.ask(data, 2.0)
        assert answer[9:12] in (b"400", b"431") or answer == b"", answer[:40]
    many = b"".join(b"x%d: y\r\n" % i for i in range(150))
    assert b" 431 " in live.ask(start + many + b"Connection: close\r\n\r\n")[:20]
    post = f"POST /api/slides/good/reviews HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nOrigin: http://127.0.0.1:{live.port}\r\n"
    post += f"Cookie: wsi_ips_view_{live.port}={live.token}\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n"
    assert b" 413 " in live.ask(post.encode() + b"x" * 100_000)[:20]
    assert live.is_well()


def test_fault_125_slow_clients_are_let_go(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that send nothing, half a head or half a body, or do not take their answer, are closed; meanwhile others are served."""
    monkeypatch.setattr(patience, "_REQUEST_SECONDS", 0.6)
    head = f"GET /api/run HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n"
    body = f"POST /api/slides/good/reviews HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nOrigin: http://127.0.0.1:{live.port}\r\n"
    body += f"Cookie: wsi_ips_view_{live.port}={live.token}\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{{"
    slow = []
    for said in (b"", head.encode(), body.encode()):
        for _ in range(10):
            s = socket.create_connection(("127.0.0.1", live.port), timeout=10)
            s.sendall(said)
            slow.append(s)
    assert live.is_well()
    for _ in range(4):  # a byte now and then does not help
        time.sleep(0.2)
        for s in slow:
            try:
                s.send(b"a")
            except OSError:
                break
    for s in slow:
        with contextlib.suppress(ConnectionError):
            assert s.recv(10_000)[:15] in (b"", b"HTTP/1.1 401 Un"), "still open"
        s.close()
    assert live.is_well()
    deadline = time.monotonic() + 5
    while live.server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not live.server.server_state.connections


def test_fault_125_a_flood_is_answered_503_and_leaves_a_working_viewer(live: Live) -> None:
    """Above the limit of connections a word is said; far above it nothing; when they go, all is as before."""
    idle = [socket.create_connection(("127.0.0.1", live.port), timeout=10) for _ in range(patience.MOST_CONNECTIONS)]
    time.sleep(0.3)
    assert b" 503 " in live.get("/api/run")[:20]
    idle += [socket.create_connection(("127.0.0.1", live.port), timeout=10) for _ in range(2 * patience.MOST_CONNECTIONS)]
    time.sleep(0.3)
    assert len(live.server.server_state.connections) <= 2 * patience.MOST_CONNECTIONS + 1
    for s in idle:
        s.close()
    time.sleep(0.3)
    assert live.is_well()


def test_fault_125_what_is_kept_is_bounded_whatever_is_asked(client: Any) -> None:
    """Long and ever new addresses do not grow the cache of pictures: its keys are short, its bytes limited."""
    cache = ByteCache(1000)
    for i in range(500):
        cache.put(("x", i), bytes(100))
    assert cache._held <= 1000
    first = client.get("/api/slides/good/pixels/0/0_0.jpg?v=" + "a" * 64)
    assert first.status_code == 200
    started = time.monotonic()
    for i in range(20):  # answered from the cache: what is behind 64 characters, or of other parameters, makes no new picture
        assert client.get("/api/slides/good/pixels/0/0_0.jpg?v=" + "a" * 64 + f"{i}&x={'y' * 5000}").content == first.content
    assert time.monotonic() - started < 5


def test_fault_126_a_tile_that_failed_once_is_read_again(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grey tile is kept neither here nor by the browser; when the file can be read again it is shown."""
    url = "/api/slides/good/pixels/0/1_1.jpg"
    assert client.get("/api/slides/good").json()["has_slide"]
    real, broken = files.open_slide, [True]

    class Flaky:
        def __init__(self, slide: Any) -> None:
            self._slide = slide

        def read_region(self, *place: Any) -> Any:
            if broken[0]:
                raise TileReadError("E_TILE", "the network is away")
            return self._slide.read_region(*place)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._slide, name)

    monkeypatch.setattr(files, "open_slide", lambda *a, **k: Flaky(real(*a, **k)))
    client.app._app.router.routes[3].endpoint.__self__._slides.close()  # so that it is opened again
    grey = client.get(url)
    assert grey.status_code == 200
    assert grey.headers["cache-control"] == "private, no-store"
    broken[0] = False
    again = client.get(url)
    assert again.content != grey.content
    assert "max-age" in again.headers["cache-control"]


def test_requests_that_are_no_http_are_refused(live: Live) -> None:
    """Two hosts, smuggled lengths, odd methods, other protocols."""
    host = f"Host: 127.0.0.1:{live.port}\r\n"
    cookie = f"Cookie: wsi_ips_view_{live.port}={live.token}\r\nConnection: close\r\n"
    for text in (
        f"GET /api/run HTTP/1.1\r\n{host}Host: evil.example\r\n{cookie}\r\n",
        f"POST /api/run HTTP/1.1\r\n{host}{cookie}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"POST /api/run HTTP/1.1\r\n{host}{cookie}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        f"TRACE /api/run HTTP/1.1\r\n{host}{cookie}\r\n", f"CONNECT evil.example:80 HTTP/1.1\r\n{host}{cookie}\r\n",
        f"DELETE /api/slides/good HTTP/1.1\r\n{host}{cookie}\r\n", f"GET /api/run HTTP/1.1\r\n{cookie}\r\n",
        f"GET /api/run HTTP/1.1\r\n{host}{cookie}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    ):  # fmt: skip
        answer = live.ask(text.encode())
        is_upgrade = "websocket" in text
        assert answer[9:12] in ((b"200",) if is_upgrade else (b"400", b"403", b"404", b"405")), (text, answer[:60])
    assert live.is_well()
