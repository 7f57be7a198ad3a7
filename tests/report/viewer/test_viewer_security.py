"""Who may ask the viewer, and who may leave a mark."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from wsi_ips.report.viewer.start import StartOptions

OURS = {"origin": "http://127.0.0.1:8123"}


@pytest.mark.parametrize("host", [
    "evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8123", "[::2]:8123", "127.0.0.1", "127.0.0.1:8124",
    "127.0.0.1:8123:8123", "127.0.0.1.:8123", "127.1:8123", "2130706433:8123", "0x7f.1:8123", "[::1]evil.example:8123", "[::1:8123",
    "evil@127.0.0.1:8123", "127.0.0.1:8123@evil.example", "127.0.0.1:8123/evil", "127.0.0.1:8123, evil.example", "127.0.0.1:+8123",
    "127.0.0.1: 8123", "127.0.0.1:08123x", "localhost\xa0:8123", "[::ffff:127.0.0.1]:8123",
])  # fmt: skip
def test_fault_121_other_host_names_are_refused(client: Any, host: str) -> None:
    """A page that points its own name at this machine gets nothing, on loopback too, whatever it knows."""
    answer = client.get("/api/run", headers={"host": host.encode("latin-1")})
    assert answer.status_code == 400
    assert "slides" not in answer.text
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("host", ["localhost:8123", "127.0.0.1:8123", "[::1]:8123", "LOCALHOST:8123"])
def test_fault_121_loopback_names_are_served_with_the_token(made_run: Any, make_client: Any, host: str) -> None:
    """On loopback, too, the printed address is needed, once: others may be logged in on this machine."""
    client = make_client(made_run.path)
    assert client.get("/api/run", headers={"host": host}).status_code == 401
    token = client.printed.partition("token=")[2]
    answer = client.get("/api/run", headers={"host": host, "cookie": f"wsi_ips_view_8123={token}"})
    assert answer.status_code == 200


def test_fault_123_beyond_loopback_a_flag_and_a_token_are_needed(made_run: Any, make_client: Any) -> None:
    """Without it, or with a wrong one, nothing is told; with it a cookie is set and the token leaves the address."""
    assert StartOptions().host == "127.0.0.1"
    client = make_client(made_run.path, StartOptions(host="0.0.0.0"), "http://10.1.2.3:8123")
    token = parse_qs(urlsplit(client.printed).query)["token"][0]
    assert len(token) >= 30
    for path in ("/api/run", "/", "/static/main.js", "/api/run?token=", f"/api/run?token={token[:-1]}", "/api/run?token=%C3%A9"):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert "slide_id" not in answer.text
    assert client.get("/api/run", headers={"cookie": "wsi_ips_view_8123=wrong"}).status_code == 401
    first = client.get(f"/?token={token}&a=1", follow_redirects=False)
    assert first.status_code == 303
    assert first.headers["location"] == "/?a=1"
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert client.get("/api/run").status_code == 200
    assert client.get("/api/run", headers={"host": "evil.example"}).status_code == 400
    assert client.get(f"http://10.1.2.3:8123//evil.example/?token={token}", follow_redirects=False).headers["location"].startswith("/evil")
    assert make_client(made_run.path).printed.partition("token=")[2] != token  # new at every start


@pytest.mark.parametrize("headers", [
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "http://evil.example"}, {"origin": "null"},
    {"origin": "http://127.0.0.1:9999"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
])  # fmt: skip
def test_fault_122_what_pages_of_other_sites_ask_for_is_refused(client: Any, headers: dict[str, str]) -> None:
    """Pictures, scripts and data are for our own page alone, cookie or not; no answer lets another page read it."""
    for path in ("/api/run", "/api/slides/good/tiles/1.jpg", "/static/main.js", "/"):
        for method in ("GET", "HEAD"):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 403, (method, path)
            assert "access-control-allow-origin" not in answer.headers
    assert client.options("/api/run", headers={**headers, "access-control-request-method": "POST"}).status_code == 403


def test_fault_122_our_own_page_and_a_link_to_it_are_served(client: Any) -> None:
    """Requests of our page, of a typed address and of a followed link; answers name no other site."""
    for headers in (OURS, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        answer = client.get("/api/run", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/api/run", headers=link).status_code == 403


def _mark(client: Any, headers: dict[str, str] | None = None, **fields: str) -> Any:
    return client.post("/api/slides/good/reviews", json={"mark": "agree", **fields}, headers=OURS if headers is None else headers)


def test_a_mark_is_stored_and_read_back(client: Any, made_run: Any) -> None:
    """It is in the CSV with call, probability and model, in the slide's view and in the list; the latest one counts."""
    assert _mark(client, note=f"{made_run.evil}\nsecond line", reviewer="=Dr. Who").status_code == 201
    assert _mark(client, mark="unsure").status_code == 201
    lines = (made_run.path / "reviews.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "time,slide_id,reviewer,mark,note,call,probability,model_hash"
    assert len(lines) == 3
    assert ",'=Dr. Who,agree,\"'=cmd" in lines[1]
    assert lines[1].endswith(f",0.875,{made_run.prediction.model_hash}")
    told = client.get("/api/slides/good").json()["reviews"]
    assert [r["mark"] for r in told] == ["agree", "unsure"]
    assert told[0]["note"] == f"{made_run.evil} second line"
    rows = {row["slide_id"]: row for row in client.get("/api/run").json()["slides"]}
    assert rows["good"]["review"]["mark"] == "unsure"
    assert rows["gone"]["review"] is None


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1:8123.evil.example", None])
def test_fault_122_marks_from_elsewhere_are_refused(client: Any, made_run: Any, origin: str | None) -> None:
    """Only the viewer's own page may leave one."""
    assert _mark(client, headers={"origin": origin} if origin else {}).status_code == 403
    assert not (made_run.path / "reviews.csv").exists()


def test_malformed_marks_are_refused(client: Any, made_run: Any) -> None:
    """Wrong kind, wrong form, too long, unknown slide, other methods."""
    url = "/api/slides/good/reviews"
    assert client.post(url, content="mark=agree", headers={**OURS, "content-type": "application/x-www-form-urlencoded"}).status_code == 415
    assert client.post(url, content="[" * 9000, headers={**OURS, "content-type": "application/json"}).status_code == 400
    assert _mark(client, mark="delete").status_code == 400
    assert _mark(client, note="x" * 20_000).status_code == 413
    assert client.post("/api/slides/none/reviews", json={"mark": "agree"}, headers=OURS).status_code == 404
    for method in ("PUT", "DELETE", "PATCH"):
        assert client.request(method, url, headers=OURS).status_code == 405
    assert client.post("/api/run", json={}, headers=OURS).status_code == 405
    assert not (made_run.path / "reviews.csv").exists()


def test_a_foreign_table_is_left_alone(client: Any, made_run: Any) -> None:
    """A reviews.csv with other columns is not written to, and the page says so."""
    table = made_run.path / "reviews.csv"
    table.write_text("slide;opinion\n1;mine\n")
    assert _mark(client).status_code == 409
    assert table.read_text() == "slide;opinion\n1;mine\n"
    assert "renamed" in client.get("/api/run").json()["reviews_trouble"]


def test_the_reviewer_of_the_command_line_wins(made_run: Any, open_client: Any) -> None:
    """--reviewer names whose marks these are."""
    client = open_client(made_run.path, StartOptions(reviewer="Dr. A"))
    assert _mark(client, reviewer="someone else").json()["reviewer"] == "Dr. A"


def test_another_servers_odd_cookie_does_not_shut_the_viewer(made_run: Any, make_client: Any) -> None:
    """Cookies know no ports: what some other program of this host has set stands beside the viewer's own."""
    client = make_client(made_run.path, StartOptions(host="0.0.0.0"))
    token = client.printed.partition("token=")[2]
    for odd in ("foo bar", "a[b]=2", 'x="1'):
        given = {"cookie": f"{odd}; wsi_ips_view_8123={token}"}
        assert client.get("/api/run", headers=given).status_code == 200
    assert client.get("/api/run", headers={"cookie": "foo bar; wsi_ips_view_8123="}).status_code == 401


def test_marks_that_cannot_be_read_do_not_hide_the_run(client: Any, made_run: Any) -> None:
    """The list and the slides are shown, and the list says what is wrong."""
    (made_run.path / "reviews.csv").mkdir()
    assert "reviews.csv" in client.get("/api/run").json()["reviews_trouble"]
    assert client.get("/api/slides/good").status_code == 200
