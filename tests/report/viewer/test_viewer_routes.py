"""What the viewer answers: slides by id only, the slide's own pixels, maps where they belong, nothing that is secret."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wsi_ips.errors import ConfigError
from wsi_ips.report import maps
from wsi_ips.report.viewer.start import StartOptions, serve_run, take_port

WIDTH, HEIGHT, TILE = 1537, 1011, 61  # as the fixture draws them
PAGES = ("/", "/static/main.js", "/api/run", "/api/slides/good", "/api/slides/gone", "/api/slides/other", "/api/slides/empty",
         "/api/slides/broken", "/api/slides/none", "/api/slides/good/outline", "/api/slides/good/legend?map=evidence",
         "/api/slides/good/legend?map=nothing", "/api/slides/gone/pixels/0/0_0.jpg", "/nowhere", "/api/slides/good/pixels/99/0_0.jpg",
         "/api/slides/good/thumbnail.jpg", "/api/slides/good/tiles/1.jpg", "/api/slides/good/map/0/0_0.png?map=selected")  # fmt: skip


def _decoded(answer: Any) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def test_every_slide_of_the_run_is_listed_with_its_reason(client: Any) -> None:
    """Failed slides and slides without tissue are rows, too; a call comes with its probability."""
    rows = {row["slide_id"]: row for row in client.get("/api/run").json()["slides"]}
    assert list(rows) == ["good", "other", "gone", "empty", "broken"]
    assert rows["good"]["calls"][0]["value"] == 0.875
    assert rows["empty"]["status"] == "no_tissue"
    assert "holds" in rows["broken"]["message"]


def test_slide_tiles_are_the_slides_own_pixels(client: Any, made_run: Any) -> None:
    """At the finest level a tile is a cut-out of level 0, at the far corner of an odd size, too; coarser ones average it."""
    for column, row in ((0, 0), (2, 1), (6, 3)):
        pixels = _decoded(client.get(f"/api/slides/good/pixels/0/{column}_{row}.jpg"))
        wanted = made_run.pixels[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256]
        assert pixels.shape == wanted.shape
        assert np.abs(pixels.astype(int) - wanted).mean() < 4  # JPEG of noise; a px beside it, 8
    whole = _decoded(client.get("/api/slides/good/pixels/3/0_0.jpg"))
    assert whole.shape == (-(-HEIGHT // 8), -(-WIDTH // 8), 3)
    averaged = made_run.pixels[:1008, :1536].reshape(126, 8, 192, 8, 3).mean(axis=(1, 3))
    assert np.abs(whole[:126, :192] - averaged).mean() < 4
    assert client.get("/api/slides/good/pixels/0/7_0.jpg").status_code == 404


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_the_hot_tile_lies_in_the_map_where_it_lies_on_the_slide(client: Any, made_run: Any, shift: int) -> None:
    """Put together, the map's tiles are yellow over the planted tile's level-0 px and nowhere else."""
    side = 256 << shift
    sheet = np.zeros((-(-HEIGHT // (1 << shift)), -(-WIDTH // (1 << shift)), 4), np.uint8)
    for row in range(-(-HEIGHT // side)):
        for column in range(-(-WIDTH // side)):
            tile = _decoded(client.get(f"/api/slides/good/map/{shift}/{column}_{row}.png?map=attention&threshold=0.8"))
            sheet[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256] = tile
    ys, xs = np.nonzero(sheet[..., 3])
    x0, y0 = made_run.prediction.coords[137]
    scale = 1 << shift
    found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * scale
    assert np.abs(found - [x0, y0, x0 + TILE, y0 + TILE]).max() <= (0 if shift == 0 else scale)


def test_a_map_tile_is_the_map_of_its_box(client: Any, made_run: Any) -> None:
    """Colours are those of the pictures, grey tiles not used included; the grey can be left out."""
    p = made_run.prediction
    tiles = maps.tile_map(p, maps.find_map(p, "evidence"))
    wanted = np.rint(maps.map_rgba(p, tiles, p.bounds._replace(width0=256, height0=256), 1.0) * 255)
    found = _decoded(client.get("/api/slides/good/map/0/0_0.png?map=evidence&colormap=PuOr"))
    assert np.array_equal(found[found[..., 3] > 0], wanted[wanted[..., 3] > 0].astype(np.uint8))
    bare = _decoded(client.get("/api/slides/good/map/0/0_0.png?map=evidence&unused=0"))
    assert (bare[..., 3] > 0).sum() < (found[..., 3] > 0).sum()


@pytest.mark.parametrize("query", ["scale=linear", "colormap=jet", "threshold=nan", "threshold=2", "map=../../etc", "map=evidence&colormap=viridis"])
def test_unknown_settings_are_refused(client: Any, query: str) -> None:
    """Only listed scales, colour maps and maps are drawn."""
    assert client.get(f"/api/slides/good/map/0/0_0.png?{query}").status_code == 400


def test_a_map_is_never_laid_over_another_slide(client: Any) -> None:
    """A replaced and a missing file are not shown and say so; their maps and calls still are."""
    for slide_id, word in (("other", "not the one"), ("gone", "--slide-root")):
        told = client.get(f"/api/slides/{slide_id}").json()
        assert not told["has_slide"]
        assert word in told["slide_trouble"]
        assert told["frame"]["width0"] == WIDTH
        assert client.get(f"/api/slides/{slide_id}/pixels/0/0_0.jpg").status_code == 409
        assert client.get(f"/api/slides/{slide_id}/map/0/0_0.png").status_code == 200


def test_slides_that_have_moved_are_found_again(made_run: Any, tmp_path: Path, open_client: Any) -> None:
    """--slide-root names the folder they lie in now."""
    moved = tmp_path / "moved"
    shutil.move(made_run.slides, moved)
    client = open_client(made_run.path, StartOptions(slide_root=moved))
    assert client.get("/api/slides/good").json()["has_slide"]


def test_top_tiles_are_told_in_order_and_read_from_the_slide(client: Any, made_run: Any) -> None:
    """The first tile is the planted one, 50 times as hot as the others, and its picture is that place."""
    first = client.get("/api/slides/good").json()["tiles"][0]
    x0, y0 = (int(v) for v in made_run.prediction.coords[137])
    assert (first["x0"], first["y0"], first["row"]) == (x0, y0, 137)
    assert first["attention"][0] == pytest.approx(50 / (1 + 49 / made_run.prediction.n_tiles), rel=1e-4)
    picture = _decoded(client.get("/api/slides/good/tiles/1.jpg"))
    assert np.abs(picture.mean(axis=(0, 1)) - made_run.pixels[y0 : y0 + TILE, x0 : x0 + TILE].mean(axis=(0, 1))).max() < 3
    assert client.get("/api/slides/good/tiles/99.jpg").status_code == 404


def test_the_outline_runs_around_the_tissue(client: Any, made_run: Any) -> None:
    """Its rings span the mask's tissue, in level-0 px."""
    rings = client.get("/api/slides/good/outline").json()["rings"]
    points = np.concatenate([np.array(ring) for ring in rings])
    ys, xs = np.nonzero(made_run.prediction.outline.mask)
    wanted = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * 8
    assert np.abs(np.concatenate([points.min(axis=0), points.max(axis=0)]) - wanted).max() <= 8


def test_fault_127_no_path_and_no_patient_leaves_the_viewer(client: Any) -> None:
    """No answer holds a slide's folder, its file name or a patient; every answer carries the policy."""
    for page in PAGES:
        answer = client.get(page)
        assert answer.status_code < 500
        for secret in (b"secret_folder", b"patient_doe", b"John", b"Traceback"):
            assert secret not in answer.content, page
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"].startswith("private")


def test_patients_are_shown_on_request_only(made_run: Any, open_client: Any) -> None:
    """--show-patients puts them into the list."""
    rows = open_client(made_run.path, StartOptions(shows_patients=True)).get("/api/run").json()["slides"]
    assert rows[0]["patient_id"] == "Doe, John"


def test_fault_124_evil_text_stays_text(client: Any, made_run: Any) -> None:
    """Names from a manifest travel as JSON, and no script of the page parses HTML."""
    answer = client.get("/api/slides/good")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["tasks"][0]["towards"] == made_run.positive
    assert made_run.evil in client.get("/api/slides/broken").json()["message"]
    folder = Path(sys.modules["wsi_ips.report.viewer.start"].__file__ or "").parent / "static"
    for script in folder.glob("*.js"):
        if script.name != "openseadragon.min.js":
            text = script.read_text(encoding="utf-8")
            assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("))
    assert "<script>" not in (folder / "index.html").read_text(encoding="utf-8")


def test_a_run_that_names_places_outside_itself_is_not_followed(made_run: Any, open_client: Any) -> None:
    """A row whose id is a path is left out."""
    table = made_run.path / "predictions.csv"
    table.write_text(table.read_text().replace("\ngone,", "\n../run,"))
    assert [r["slide_id"] for r in open_client(made_run.path).get("/api/run").json()["slides"]] == ["good", "other", "empty", "broken"]


def test_the_viewer_needs_no_torch(made_run: Any) -> None:
    """It shows slide and map where torch is not installed."""
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'timm'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from starlette.testclient import TestClient\n"
        "from wsi_ips.report.viewer.start import StartOptions, make_app\n"
        "served = make_app(sys.argv[1], StartOptions(), 80)\n"
        "client = TestClient(served.app, base_url='http://localhost')\n"
        "client.get(served.address.replace(':80/', '/').replace('127.0.0.1', 'localhost'))\n"
        "assert client.get('/api/slides/good/pixels/0/0_0.jpg').status_code == 200\n"
        "assert client.get('/api/slides/good/map/0/0_0.png').status_code == 200\n"
    )
    subprocess.run([sys.executable, "-c", code, str(made_run.path)], check=True)


def test_what_is_missing_is_named_with_its_cure(made_run: Any, monkeypatch: pytest.MonkeyPatch, make_client: Any) -> None:
    """Without starlette one learns what to install; a taken port and a folder that is no run are said plainly."""
    with take_port("127.0.0.1", 0) as taken:
        with pytest.raises(ConfigError, match="--port 0"):
            take_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="not a run folder"):
        make_client(made_run.path.parent)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ConfigError, match=r'pip install "wsi-ips\[viewer\]"'):
        serve_run(made_run.path, StartOptions(port=0))


def test_fault_128_a_run_that_is_going_on_shows_finished_records_only(made_run: Any, open_client: Any) -> None:
    """Without predictions.csv the finished slides are known by their records."""
    (made_run.path / "predictions.csv").unlink()
    (made_run.path / "slides" / "other" / "state.json").unlink()  # its ledger is there, its record is not yet
    client = open_client(made_run.path)
    rows = client.get("/api/run").json()["slides"]
    statuses = {row["slide_id"]: row["status"] for row in rows}
    assert (statuses["good"], statuses["other"]) == ("ok", "not_run")
    assert json.dumps(rows).count("0.875") >= 1
    assert client.get("/api/slides/other").json()["maps"] == []
    assert client.get("/api/slides/other/map/0/0_0.png").status_code == 409


def test_fault_128_a_map_of_another_model_than_the_tables_is_not_shown(made_run: Any, open_client: Any) -> None:
    """While a run is done again with another model, the old call is not shown with the new map."""
    table = made_run.path / "predictions.csv"
    table.write_text(table.read_text().replace(made_run.prediction.model_hash, "e" * 64))
    client = open_client(made_run.path)
    told = client.get("/api/slides/good").json()
    assert "classified anew" in told["map_trouble"]
    assert told["maps"] == []
    assert client.get("/api/slides/good/map/0/0_0.png").status_code == 409
