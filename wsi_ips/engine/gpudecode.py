"""JPEG tiles decoded where the encoder is: for machines whose CPU cores are the bottleneck. Off unless asked for.

Reader threads only fetch the streams (`StoredTiles`); a chunk of them is decoded in one call of torchvision, by nvJPEG on a
GPU and by libjpeg-turbo on a CPU, where this very code is tested. Pixels stay on the device for the encoder. That serves
slides whose grid is the file's own: every tile one whole file tile, in its size. All others, and those whose tiles come out
otherwise than the slide's own reader gives them (nvJPEG may take RGB for YCbCr), are decoded by that reader, and it is said.

Decoders round and blow up chroma in ways of their own, so pixels may differ by a few grey values: who decoded is part of the
recorded reader, and with it of an embedding's name in the cache. Damage inside a stream that leaves its frame and end whole is
found by the slide's reader; nvJPEG may not say.

Known gap (2026-11): torchvision 0.29 announces that its decoders will go, in favour of TorchCodec.

Shapes: n tiles of a chunk, S tile side.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import ConfigError
from wsi_ips.slide.fileslide import FileSlide
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.stream import TileChunk, stream_tiles
from wsi_ips.tiles.tilegrid import TileGrid

__all__ = ["DecodedChunk", "Decoding", "TileDecoder", "choose_decoding"]

_LENGTH = 8  # bytes, before a stream
_ALLOWED = 3.0  # mean difference in grey values: roundings and chroma are below; a wrong colour space is 49
_WHITE = 255


class DecodedChunk(NamedTuple):
    """A `TileChunk` whose pixels are on the encoder's device."""

    rows: np.ndarray  # (n,) int64
    pixels: Tensor  # (n, S, S, 3) uint8
    n_missing: np.ndarray  # (n,) int64
    failed: np.ndarray  # (n,) bool


@dataclass(frozen=True)
class Decoding:
    """Who decodes the tiles of a pass: the slide's reader, unless there is a decoder."""

    reader: str  # for the record
    decoder: TileDecoder | None = None
    note: str = ""  # what became of the wish, if there was one

    def source(self, slide: Slide) -> Slide:
        """Give what a `TileStream` is to read."""
        # a stream of tiles asks no more of a slide than to fill places
        return cast(Slide, _StoredTiles(slide)) if self.decoder and isinstance(slide, FileSlide) else slide

    def finish(self, chunk: TileChunk) -> TileChunk | DecodedChunk:
        """Turn what was read from `source` into pixels."""
        return self.decoder.decode(chunk) if self.decoder else chunk


class _StoredTiles:
    """Reads tiles without decoding them: a tile's place in the batch holds the length of its JPEG stream, and the stream."""

    def __init__(self, slide: FileSlide) -> None:
        self._slide = slide

    def read_into(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """See `TileSlide.read_into`; a tile that the file does not hold has length 0."""
        stream, place = self._slide.tile_stream(x0, y0, level), out.reshape(-1)
        place[:_LENGTH].view(np.int64)[0] = len(stream)
        place[_LENGTH : _LENGTH + len(stream)] = np.frombuffer(stream, np.uint8)
        return 0 if stream else out.shape[0] * out.shape[1]


class TileDecoder:
    """Decodes chunks of stored tiles on a device; safe for several threads.

    Args:
        device: of the encoder, "cuda:0" for instance.

    Raises:
        ConfigError: torchvision decodes no JPEG any more.
    """

    def __init__(self, device: str) -> None:
        try:
            from torchvision.io import ImageReadMode, decode_jpeg  # here: slow to load, and few runs need it
        except ImportError as error:
            raise ConfigError(f"--decode gpu: this torchvision decodes no JPEG ({error}); leave --decode out") from error
        self._device, self._decode_jpeg, self._rgb = torch.device(device), decode_jpeg, ImageReadMode.RGB
        self.name = f"{'nvjpeg' if self._device.type == 'cuda' else 'libjpeg'} through torchvision {version('torchvision')}"

    @torch.inference_mode()
    def decode(self, chunk: TileChunk) -> DecodedChunk:
        """Decode the tiles of a chunk that was read from `Decoding.source`.

        Returns:
            A tile that cannot be decoded, or not to its size, has failed and is zeros; one that the file does not hold is white.
        """
        n, side = chunk.pixels.shape[:2]
        places = chunk.pixels.reshape(n, -1)
        lengths = places[:, :_LENGTH].copy().view(np.int64)[:, 0]
        held = np.flatnonzero(lengths).tolist()  # a tile that could not be read is zeros
        streams = [torch.from_numpy(places[i, _LENGTH : _LENGTH + lengths[i]]) for i in held]
        found = {i: one for i, one in zip(held, self._decoded(streams), strict=True) if one is not None and one.shape == (3, side, side)}
        failed = chunk.failed.copy()
        failed[[i for i in held if i not in found]] = True
        pixels = torch.zeros((n, side, side, 3), dtype=torch.uint8, device=self._device)
        if found:
            pixels[self._index(list(found))] = torch.stack(list(found.values())).permute(0, 2, 3, 1)
        pixels[self._index(np.flatnonzero(~failed & (lengths == 0)))] = _WHITE
        return DecodedChunk(chunk.rows, pixels, chunk.n_missing, failed)

    def why_not(self, slide: Slide, grid: TileGrid) -> str:
        """Compare some tiles with the slide's own reader, which is right; say why a slide is left to it, "" if it is not."""
        side, room = grid.size_px, grid.size_px**2 * 3 - _LENGTH
        is_native = grid.shrink == 1 and grid.read_px == (side, side)
        if not (is_native and isinstance(slide, FileSlide) and slide.has_streams(grid.coords, grid.level, side, room)):
            return "its tiles are not whole JPEG tiles of the file"
        rows = _probes(grid)
        [mine] = stream_tiles(Decoding("", self).source(slide), grid, rows=rows, chunk_size=len(rows), n_readers=1)
        [its] = stream_tiles(slide, grid, rows=rows, chunk_size=len(rows), n_readers=1)
        found = self.decode(mine)
        if (found.failed != its.failed).any():
            return f"{self.name} and the slide's reader do not agree on which tiles are sound"
        good = ~its.failed & (its.n_missing == 0)
        apart = np.abs(found.pixels.cpu().numpy().astype(np.int16) - its.pixels).mean(axis=(1, 2, 3))[good]
        if not len(apart):
            return "none of the tiles looked at is sound"
        return f"{self.name} gives other pixels, {apart.max():.1f} grey values apart in the mean" if apart.max() > _ALLOWED else ""

    def _decoded(self, streams: list[Tensor]) -> list[Tensor | None]:
        """Decode streams in one call, or one by one where one of them is in the way; (3, h, w) uint8 or None each."""
        try:
            return list(self._decode_jpeg(streams, mode=self._rgb, device=self._device)) if streams else []
        except torch.OutOfMemoryError:
            raise  # no fault of the tile's
        except RuntimeError:  # all that torch says of a stream; a stream on its own is its own fault
            return [None] if len(streams) == 1 else [self._decoded([one])[0] for one in streams]

    def _index(self, places: np.ndarray | list[int]) -> Tensor:
        return torch.as_tensor(np.asarray(places, np.int64)).to(self._device)


def choose_decoding(decoder: TileDecoder | None, slide: Slide, grid: TileGrid) -> Decoding:
    """Decide who decodes a slide's tiles, before the first of them.

    Args:
        decoder: that was asked for, if any.
        slide: open.
        grid: its tiles.
    """
    if decoder is None:
        return Decoding(slide.reader)
    why = decoder.why_not(slide, grid)
    if why:
        return Decoding(slide.reader, None, f"tiles are decoded by the slide's reader: {why}")
    return Decoding(f"{slide.reader}, tiles decoded by {decoder.name}", decoder, f"tiles are decoded by {decoder.name}")


def _probes(grid: TileGrid) -> np.ndarray:
    """Rows of a few tiles: spread over the slide, and those with most tissue, whose colours tell more than glass."""
    spread = np.linspace(0, len(grid.coords) - 1, 4).astype(np.int64)
    return np.unique([*spread, *np.argsort(-grid.tissue, kind="stable")[:3]])
