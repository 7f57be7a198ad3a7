"""The viewer's routes. Slides are addressed by the ids of the run, everything else is a name or a small number.

    GET  /                                              the page; /static/NAME what it loads
    GET  /api/run                                       the rows of the run
    GET  /api/slides/ID                                 everything about one slide
    GET  /api/slides/ID/pixels/SHIFT/COLUMN_ROW.jpg     a tile of the slide, see `pyramid`
    GET  /api/slides/ID/map/SHIFT/COLUMN_ROW.png        the same tile of a map; ?map= &scale= &colormap= &threshold= &unused=
    GET  /api/slides/ID/legend                          what such a map shows
    GET  /api/slides/ID/outline                         edge of the tissue
    GET  /api/slides/ID/tiles/RANK.jpg                  one of the best tiles
    GET  /api/slides/ID/thumbnail.jpg                   the run's own small picture
    POST /api/slides/ID/reviews                         leave a mark

Decoding and drawing run in threads, a few at a time. Errors are short JSON: no path, no traceback.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple, TypeVar, cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wsi_ips.errors import ConfigError, TileReadError
from wsi_ips.files import read_regular
from wsi_ips.report.readout import RESEARCH_USE
from wsi_ips.report.thumbnail import read_square
from wsi_ips.report.viewer.answers import (
    HANDLERS,
    Picture,
    jpeg,
    picture_answer,
    place_in,
    small_json,
    unreadable_jpeg,
    version_in,
)
from wsi_ips.report.viewer.cache import ByteCache
from wsi_ips.report.viewer.describe import N_TOP_TILES, describe_slide, list_row, review_json
from wsi_ips.report.viewer.files import Ledgers, OpenSlides
from wsi_ips.report.viewer.index import RunIndex, SlideEntry, calls_in
from wsi_ips.report.viewer.maptiles import coloured, legend, map_query, map_tile_png, outline_rings
from wsi_ips.report.viewer.pyramid import NotingSlide, read_tile, tile_box
from wsi_ips.report.viewer.reviews import MARKS, Review, ReviewBook, one_line
from wsi_ips.slide.reader import Slide

__all__ = ["Viewer", "ViewerOptions"]

T = TypeVar("T")
_KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
          ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8"}  # fmt: skip
_NOTE_CHARACTERS = 2_000
_THUMB_PX = 192
_THUMBNAIL_BYTES = 4 << 20


class ViewerOptions(NamedTuple):
    """How the viewer was started."""

    reviewer: str = ""  # whose marks; "": the page asks
    shows_patients: bool = False
    n_renders: int = 4  # pictures made at the same time
    n_open: int = 4  # slides kept open
    cache_bytes: int = 96 << 20


class Viewer:
    """A run behind routes; `app` is the ASGI application, to be put behind the gate.

    Args:
        index: of the run.
        options: how it was started.
    """

    def __init__(self, index: RunIndex, options: ViewerOptions = ViewerOptions()) -> None:  # noqa: B008
        self._index, self._options = index, options
        self._slides, self._ledgers = OpenSlides(index, options.n_open), Ledgers(index)
        self._reviews = ReviewBook(index.folder.path)
        self._cache = ByteCache(options.cache_bytes)
        self._turn = asyncio.Semaphore(options.n_renders)
        self._opening = asyncio.Semaphore(options.n_open)  # slides and overviews take memory while they are opened
        self._static = {
            item.name: item.read_bytes()
            for item in (resources.files("wsi_ips.report.viewer") / "static").iterdir()
            if item.name[item.name.rfind(".") :] in _KINDS
        }
        slide = "/api/slides/{slide_id}"
        routes = [
            Route("/", self._page),
            Route("/static/{name}", self._file),
            Route("/api/run", self._run),
            Route(slide, self._slide),
            Route(slide + "/pixels/{shift}/{place}.jpg", self._pixels),
            Route(slide + "/map/{shift}/{place}.png", self._map),
            Route(slide + "/legend", self._legend),
            Route(slide + "/outline", self._outline),
            Route(slide + "/tiles/{rank}.jpg", self._top_tile),
            Route(slide + "/thumbnail.jpg", self._thumbnail),
            Route(slide + "/reviews", self._review, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers=dict(HANDLERS))
        self.app.router.redirect_slashes = False

    def close(self) -> None:
        """Close the slides."""
        self._slides.close()

    async def _page(self, request: Request) -> Response:
        return Response(self._static["index.html"], media_type=_KINDS[".html"])

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404, "no such file")
        return Response(self._static[name], media_type=_KINDS[name[name.rfind(".") :]])

    async def _run(self, request: Request) -> Response:
        def rows() -> dict[str, Any]:
            trouble = ""
            try:
                latest = self._reviews.latest()
            except ConfigError as error:
                latest, trouble = {}, str(error)
            entries = self._index.entries().values()
            shows = self._options.shows_patients
            return {
                "slides": [list_row(self._index, entry, latest, shows) for entry in entries], "marks": MARKS,
                "tasks": [{"name": t.name, "kind": t.kind, "classes": t.classes} for t in self._index.tasks],
                "model": self._index.model_hash[:12], "research_use": RESEARCH_USE, "reviews_trouble": trouble,
                "reviewer": self._options.reviewer, "shows_patients": shows,
            }  # fmt: skip

        return JSONResponse(await run_in_threadpool(rows))

    async def _slide(self, request: Request) -> Response:
        entry = self._entry(request)

        def tell() -> dict[str, Any]:
            try:
                reviews = self._reviews.reviews()
            except ConfigError:  # the list says so
                reviews = ()
            return describe_slide(self._index, entry, self._slides, self._ledgers, reviews)

        async with self._opening:
            return JSONResponse(await run_in_threadpool(tell))

    async def _pixels(self, request: Request) -> Response:
        entry, place = self._entry(request), place_in(request)

        def wait_for_overview() -> None:
            with self._slides.lend(entry) as lent:
                lent.overview(place.shift)

        def draw() -> Picture:
            with self._slides.lend(entry) as lent:
                box = tile_box(lent.slide.bounds, place)
                if box is None:
                    raise HTTPException(404, "the slide has no such tile")
                slide, overview = NotingSlide(lent.slide), lent.overview(place.shift)
                pixels = read_tile(cast(Slide, slide), box, place, overview)
            return Picture(jpeg(pixels), not (slide.has_failed or (overview and overview.n_failed)))

        # before its turn: while a slide is read for its overview, other pictures go on
        async with self._opening:
            await run_in_threadpool(wait_for_overview)
        return await self._picture(request, ("pixels", entry.slide_id, version_in(request), *place), draw, "image/jpeg")

    async def _map(self, request: Request) -> Response:
        entry, place, query = self._entry(request), place_in(request), map_query(request.query_params)

        def draw() -> Picture:
            prediction, tiles = self._ledgers.map(entry, query.name, query.scale)
            box = tile_box(prediction.bounds, place)
            if box is None:
                raise HTTPException(404, "the slide has no such tile")
            return Picture(map_tile_png(prediction, coloured(tiles, query), query, box, float(1 << place.shift)))

        return await self._picture(request, ("map", entry.slide_id, version_in(request), *query, *place), draw, "image/png")

    async def _legend(self, request: Request) -> Response:
        entry, query = self._entry(request), map_query(request.query_params)

        def tell() -> dict[str, Any]:
            return legend(coloured(self._ledgers.map(entry, query.name, query.scale)[1], query))

        return JSONResponse(await run_in_threadpool(tell))

    async def _outline(self, request: Request) -> Response:
        entry = self._entry(request)

        def trace() -> dict[str, Any]:
            return {"rings": outline_rings(self._ledgers.prediction(entry).outline)}

        return JSONResponse(await self._in_turn(request, trace))

    async def _top_tile(self, request: Request) -> Response:
        entry, rank = self._entry(request), request.path_params["rank"]
        if not re.fullmatch(r"[1-9]\d{0,3}", rank, re.ASCII) or int(rank) > N_TOP_TILES:
            raise HTTPException(404, "the slide has no such tile")

        def draw() -> Picture:
            p = self._ledgers.prediction(entry)
            if int(rank) > len(p.selected):
                raise HTTPException(404, "the slide has no such tile")
            x0, y0 = (int(v) for v in p.coords[p.selected[int(rank) - 1]])
            with self._slides.lend(entry) as lent:
                try:
                    return Picture(jpeg(read_square(lent.slide, x0, y0, p.extent0, _THUMB_PX)))
                except TileReadError:
                    return Picture(unreadable_jpeg(_THUMB_PX), is_whole=False)

        return await self._picture(request, ("tile", entry.slide_id, version_in(request), rank), draw, "image/jpeg")

    async def _thumbnail(self, request: Request) -> Response:
        entry = self._entry(request)

        def read() -> bytes:
            path = self._index.folder.slide_file(entry.slide_id, f"{entry.slide_id}.thumbnail.jpg")
            return read_regular(path, _THUMBNAIL_BYTES)

        try:
            data = await run_in_threadpool(read)
        except OSError:
            raise HTTPException(404, "the run holds no small picture of this slide") from None
        return Response(data, media_type="image/jpeg")

    async def _review(self, request: Request) -> Response:
        entry = self._entry(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "a mark is sent as application/json")
        given = await small_json(request)
        if given.get("mark") not in MARKS:
            raise HTTPException(400, f"mark: expected {', '.join(MARKS)}")
        calls = calls_in(entry.cells, self._index.tasks)
        shown = ["" if c["value"] is None else f"{c['value']:.6g}" for c in calls]
        review = Review("", entry.slide_id, self._options.reviewer or one_line(str(given.get("reviewer") or ""), 80),
                        given["mark"], one_line(str(given.get("note") or ""), _NOTE_CHARACTERS),
                        "; ".join(c["call"] if len(calls) == 1 else f"{c['task']}: {c['call']}" for c in calls),
                        "; ".join(shown), entry.cells.get("model_hash", "") or self._index.model_hash)  # fmt: skip
        try:
            stored = await run_in_threadpool(self._reviews.add, review)
        except ConfigError as error:
            raise HTTPException(409, str(error)) from error
        except OSError as error:
            raise HTTPException(500, f"the mark could not be stored: {error.strerror or 'the disk refused it'}") from error
        return JSONResponse(review_json(stored), status_code=201)

    def _entry(self, request: Request) -> SlideEntry:
        entry = self._index.entries().get(request.path_params["slide_id"])
        if entry is None:
            raise HTTPException(404, "this run has no slide of that id")
        return entry

    async def _picture(self, request: Request, key: tuple[object, ...], draw: Callable[[], Picture], kind: str) -> Response:
        if (data := self._cache.get(key)) is not None:
            return picture_answer(Picture(data), kind)
        picture = await self._in_turn(request, draw)
        if picture.is_whole:
            self._cache.put(key, picture.data)
        return picture_answer(picture, kind)

    async def _in_turn(self, request: Request, work: Callable[[], T]) -> T:
        async with self._turn:
            if await request.is_disconnected():  # scrolled past while it waited
                raise HTTPException(499, "nobody waits for this any more")
            return await run_in_threadpool(work)
