"""Small parts of the viewer's routes: what a request may say, and how an answer looks, errors too."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wsi_ips.errors import ConfigError
from wsi_ips.report.thumbnail import UNREADABLE_RGB
from wsi_ips.report.viewer.files import NotShownError
from wsi_ips.report.viewer.pyramid import TilePlace

__all__ = ["HANDLERS", "Picture", "jpeg", "picture_answer", "place_in", "small_json", "unreadable_jpeg", "version_in"]

_PLACE = re.compile(r"(\d{1,6})_(\d{1,6})", re.ASCII)
_BODY_BYTES = 16_384
_VERSION_CHARACTERS = 64
_KEPT = {"cache-control": "private, max-age=86400"}  # of pictures; their address changes with what they show


class Picture(NamedTuple):
    """An encoded picture."""

    data: bytes
    is_whole: bool = True  # False: a part could not be read just now and is grey; next time it may be


def picture_answer(picture: Picture, kind: str) -> Response:
    """Answer with a picture, to be kept by the browser if it is whole."""
    return Response(picture.data, media_type=kind, headers=_KEPT if picture.is_whole else None)


def version_in(request: Request) -> str:
    """Read what an address says of the version of what it shows; a key of the cache, so it is short."""
    return request.query_params.get("v", "")[:_VERSION_CHARACTERS]


def place_in(request: Request) -> TilePlace:
    """Read a tile's place out of an address; 404 for anything else."""
    place, shift = _PLACE.fullmatch(request.path_params["place"]), request.path_params["shift"]
    if place is None or not re.fullmatch(r"\d{1,2}", shift, re.ASCII):
        raise HTTPException(404, "no such tile")
    return TilePlace(int(shift), int(place[1]), int(place[2]))


async def small_json(request: Request) -> dict[str, Any]:
    """Read a body of at most 16 kB that is a JSON object; 413 or 400 for anything else."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY_BYTES:
            raise HTTPException(413, f"a mark is at most {_BODY_BYTES} bytes")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise HTTPException(400, "a mark is a JSON object")
    return given


def jpeg(pixels: np.ndarray) -> bytes:
    """Encode (h, w, 3) uint8 RGB with full colour resolution."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90, colorsubsampling="444")


def unreadable_jpeg(side_px: int) -> bytes:
    """Draw a tile that the file does not give: grey, crossed out."""
    grey = np.empty((side_px, side_px, 3), np.uint8)
    grey[:] = UNREADABLE_RGB
    cv2.line(grey, (0, 0), (side_px, side_px), (96, 96, 104), 2, cv2.LINE_AA)
    return jpeg(grey)


async def _told(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


async def _not_shown(request: Request, error: NotShownError) -> Response:
    return JSONResponse({"error": str(error), "code": error.code}, status_code=409)


async def _refused(request: Request, error: ConfigError) -> Response:
    return JSONResponse({"error": "this request cannot be meant"}, status_code=400)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the viewer failed here; its terminal says more"}, status_code=500)


HANDLERS: dict[Any, Any] = {HTTPException: _told, NotShownError: _not_shown, ConfigError: _refused, Exception: _broken}
