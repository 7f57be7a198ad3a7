"""One pass over a slide: every tile embedded once, every attention logit kept, the features of the best kept.

Prediction and training score tiles by this very pass, so what a heatmap shows is what the label was read from.
Shapes: N tiles, T tasks, H heads, m = min(M, N), D embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from wsi_ips.config import ReadSettings
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.engine.encoding import (
    FileSource,
    SlideEmbeddings,
    Source,
    over_embeddings,
    read_tiles,
    readable_grid,
    refuse_failed,
    slide_embeddings,
)
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.slideplan import SlidePlan, plan_slide
from wsi_ips.engine.sources import EmbeddedChunk
from wsi_ips.engine.spool import FeatureSpool
from wsi_ips.errors import ModelError
from wsi_ips.model.bag_evidence import bag_evidence
from wsi_ips.model.classifier import Scan as ModelScan
from wsi_ips.model.context import ContextPool
from wsi_ips.model.ensemble import Classifier
from wsi_ips.model.selector import StreamingSelector
from wsi_ips.results import Pooled
from wsi_ips.slide.reader import Slide
from wsi_ips.stages import StageClock
from wsi_ips.tiles.grid import TileGrid

__all__ = ["Progress", "Scan", "SlideEmbeddings", "SlidePlan", "plan_slide", "read_tiles", "scan_embeddings", "scan_slide",
           "scan_source", "slide_embeddings", "slide_logits"]  # fmt: skip

Progress = Callable[[str, int, int], None]  # stage, done, total
_READ_AT_ONCE, _CHUNK_BYTES = 512, 8 << 20  # tiles of a chunk for learning, and how large it may be
_SCORED_AT_ONCE = 4096  # tiles; of 2,048 numbers each they are 32 MiB


@dataclass(frozen=True)
class Scan:
    """What the pass found; rows are rows of `grid`."""

    grid: TileGrid  # the tiles that could be read
    logits: np.ndarray  # (N, T, H) float32
    selected: np.ndarray  # (m,) int64, best first
    features: np.ndarray  # (m, D) float32
    n_missing: int  # tiles with px that the file does not hold
    n_failed: int  # tiles that could not be decoded
    n_reencoded: int  # selected tiles whose features had left the buffer; the same, cached or not
    colour: dict[str, float] | None  # see colour.py
    context: Pooled | None  # the unselected tiles, for a model whose label uses them
    n_encoded: int  # tiles through the encoder in this pass; 0 when the cache had them
    is_cached: bool  # whether the cache had them
    bag_evidence: np.ndarray | None = None  # (N, P) float32, where asked for


def scan_slide(
    slide: Slide, grid: TileGrid, classifier: Classifier, read: ReadSettings, progress: Progress | None = None,
    cache: EmbeddingCache | None = None, *, with_bag: bool = False, tools: PassTools | None = None,
) -> Scan:  # fmt: skip
    """Embed every tile once without gradient and select.

    Args:
        slide: open.
        grid: its tiles.
        classifier: on any device, in any mode; scanning always computes the inference function.
        read: readers, and how many tiles may fail.
        progress: called with ("tiles", done, N).
        cache: has the embeddings of an earlier pass, or takes them; what is found changes no number. None does without.
        with_bag: compute the evidence of every tile in the whole bag, too; features then pass through a temporary file.
        tools: what was made ready for this pass.

    Raises:
        TileReadError: more tiles failed than `read.max_bad_tiles` allows (`E_TILE`).
        ModelError: a score that is not finite (`E_NOT_FINITE`), with the tile's place.
    """

    def work(source: Source) -> Scan:
        return scan_source(source, classifier, read, slide.name, progress, with_bag=with_bag, clock=tools.clock if tools else None)

    return over_embeddings(slide, grid, classifier, read, cache, work, tools)


class SlideLogits(NamedTuple):
    """All of a slide's tiles that could be read."""

    logits: np.ndarray  # (N, T, H) float32
    n_encoded: int
    colour: dict[str, float] | None


def slide_logits(slide: Slide, grid: TileGrid, classifier: Classifier, read: ReadSettings) -> SlideLogits:
    """Score every tile once without gradient and keep nothing else, for learning; see `scan_slide`.

    Tiles are read and scored many at a time: with a small encoder a head that is called once a chunk of the model costs a
    tenth of a step. The last bits of logits are those of that batch, not those of a label.
    """
    n_bytes = grid.size_px**2 * classifier.settings.encoder.in_channels
    n_read = min(_READ_AT_ONCE, _CHUNK_BYTES // n_bytes, len(grid.coords) // 4)  # a quarter, so that reading goes beside encoding
    tools = PassTools(chunk=max(classifier.settings.selection.chunk_size, n_read))

    def gather(source: Source) -> SlideLogits:
        size = min(_SCORED_AT_ONCE, len(grid.coords))
        parts = [_score(classifier, c.embeddings, grid, c.rows, size).logits[c.is_good] for c in _joined(source.chunks(), size)]
        refuse_failed(source, read, slide.name)
        return SlideLogits(np.concatenate(parts), source.n_encoded, source.colour)

    return over_embeddings(slide, grid, classifier, read, None, gather, tools)


def scan_source(
    source: Source, classifier: Classifier, read: ReadSettings, name: str, progress: Progress | None = None,
    *, with_bag: bool = False, clock: StageClock | None = None,
) -> Scan:  # fmt: skip
    """Score every embedding and select; see `scan_slide`.

    Args:
        source: of embeddings.
        classifier: its head is used.
        read: how many tiles may fail.
        name: of the slide, for messages.
        progress: called with ("tiles", done, N).
        with_bag: see `scan_slide`.
        clock: takes the seconds of scoring and selecting (`select`).
    """
    clock = clock or StageClock()
    with FeatureSpool() if with_bag else contextlib.nullcontext() as spool:
        found = _scan_source(source, classifier, read, name, progress, spool, clock)
        if spool is None:
            return found
        n_tiles = len(found.grid.coords)

        def blocks() -> Iterator[np.ndarray]:
            for block in spool.blocks():
                yield block
                if progress is not None:
                    progress("evidence", n_tiles, n_tiles)  # a sign of life: large bags take minutes

        with clock.time("select"):
            return replace(found, bag_evidence=bag_evidence(classifier, blocks, n_tiles))


def _scan_source(
    source: Source, classifier: Classifier, read: ReadSettings, name: str, progress: Progress | None,
    spool: FeatureSpool | None, clock: StageClock,
) -> Scan:  # fmt: skip
    chosen, n_tiles, done = classifier.settings.selection, len(source.grid.coords), 0
    order = np.random.default_rng(n_tiles).permutation(n_tiles) if chosen.order == "shuffled" else None
    selector = StreamingSelector(n_tiles, chosen.memory_size, mode=chosen.mode, chunk_size=chosen.chunk_size, order=order)
    pool = ContextPool() if chosen.context else None
    for chunk in source.chunks():
        with clock.time("select"):
            found, good = _score(classifier, chunk.embeddings, source.grid, chunk.rows), chunk.is_good
            selector.add(chunk.rows[good], found.features[good], found.logits[good])
            if spool is not None:
                spool.add(found.features[good])
            if pool is not None and good.any():
                pool.add(classifier.values(found.features[good]), found.logits[good])
        done += len(chunk.rows)
        if progress is not None:
            progress("tiles", done, n_tiles)
    refuse_failed(source, read, name)
    with clock.time("select"):
        selection = selector.finish()
    features = selection.features
    if len(selection.missing):
        rows = selection.rows[selection.missing]
        features[selection.missing] = _score(classifier, source.take(rows), source.grid, rows).features
    context = pool.rest(classifier.values(features), selection.logits[selection.rows]) if pool is not None else None
    readable = ~source.failed
    logits = selection.logits if readable.all() else selection.logits[readable]
    return Scan(readable_grid(source), logits, (np.cumsum(readable) - 1)[selection.rows], features, source.n_missing,
                int(source.failed.sum()), len(selection.missing), source.colour, context, source.n_encoded,
                source.is_stored)  # fmt: skip


def scan_embeddings(
    embeddings: np.ndarray, classifier: Classifier, grid: TileGrid | None = None, progress: Progress | None = None,
    *, with_bag: bool = False,
) -> Scan:  # fmt: skip
    """Score embeddings that are at hand and select; see `scan_slide`.

    Args:
        embeddings: (N, W), of any float type.
        classifier: its head is used.
        grid: their places; None numbers them (i, 0).
        progress: called with ("tiles", done, N).
        with_bag: see `scan_slide`.

    Raises:
        ModelError: a score that is not finite (`E_NOT_FINITE`), embeddings of another width.
    """
    if grid is None:
        n = len(embeddings)
        coords = np.column_stack([np.arange(n), np.zeros(n, np.int64)])
        grid = TileGrid(coords, np.full(n, np.nan, np.float32), (1.0, 1.0), 0, (1, 1), classifier.settings.tile.size_px)
    source = FileSource(embeddings, grid, classifier.settings.selection.chunk_size)
    return scan_source(source, classifier, ReadSettings(), "embeddings", progress, with_bag=with_bag)


def _joined(chunks: Iterable[EmbeddedChunk], size: int) -> Iterator[EmbeddedChunk]:
    """Put chunks together, up to `size` tiles; larger ones stay as they are."""
    held: list[EmbeddedChunk] = []
    for chunk in chunks:
        if held and sum(len(c.rows) for c in held) + len(chunk.rows) > size:
            yield _as_one(held)
            held = []
        held.append(chunk)
    if held:
        yield _as_one(held)


def _as_one(chunks: list[EmbeddedChunk]) -> EmbeddedChunk:
    return EmbeddedChunk(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def _score(
    classifier: Classifier, embeddings: np.ndarray, grid: TileGrid, rows: np.ndarray, size: int | None = None
) -> ModelScan:
    try:
        found = classifier.scan(embeddings, size or classifier.settings.selection.chunk_size, rows)
    except ModelError as error:
        if error.code != "E_NOT_FINITE":
            raise
        where = _place_of(grid, rows[_first_bad(classifier, embeddings, rows)])
        raise ModelError(f"the attention logits of the tile at {where} are not finite", error.code) from error
    bad = np.flatnonzero(~np.isfinite(found.features).all(axis=1))
    if len(bad):
        raise ModelError(f"the features of the tile at {_place_of(grid, rows[bad[0]])} are not finite", "E_NOT_FINITE")
    return found


def _first_bad(classifier: Classifier, embeddings: np.ndarray, rows: np.ndarray) -> int:
    """Find the tile whose numbers are not finite, one by one: this pass is over."""
    for i in range(len(embeddings)):
        try:
            classifier.scan(embeddings[i : i + 1], classifier.settings.selection.chunk_size, rows[i : i + 1])
        except ModelError:
            return i
    return 0


def _place_of(grid: TileGrid, row: np.int64) -> str:
    x0, y0 = grid.coords[row]
    return f"level-0 px ({x0}, {y0})"
