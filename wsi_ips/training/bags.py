"""Where a slide's instances come from while a model learns: its pixels, its cached embeddings, or a feature file.

A bag of pixels gives tiles to an encoder that learns. A bag of embeddings gives (N, W) vectors of an encoder that
stays as it is, made once (through the cache) or read from the file that the manifest names.

Shapes: N tiles, n some of them, S tile side, C channels, W encoder width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine.distinct import DistinctTiles, encode_tiles
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.engine.encoding import read_tiles, slide_embeddings
from wsi_ips.engine.featurefiles import read_feature_file
from wsi_ips.engine.scan import plan_slide, slide_logits
from wsi_ips.errors import Note, NoTissueError, SlideError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.training.cohort import Member
from wsi_ips.training.held import HeldSlides

__all__ = ["Bags", "FileBags", "FrozenBags", "PixelBags", "Planned"]

_READ_TILES = 64  # tiles read at a time
_HELD_BYTES = 2 << 30  # embeddings kept in memory; more are read again


@dataclass(frozen=True)
class Planned:
    """A slide of the cohort with its tiles."""

    member: Member
    n_tiles: int  # N
    grid: TileGrid | None = None  # None: embeddings from a file


@dataclass
class Bags:
    """What all kinds of bags know; mutable in its memory of embeddings and colours."""

    settings: ModelSettings
    read: ReadSettings
    cache: EmbeddingCache | None = None
    slides: HeldSlides = field(default_factory=HeldSlides)
    colours: dict[str, dict[str, float]] = field(default_factory=dict)  # by slide id, see engine/colour.py
    n_encoded: int = 0  # tiles through the encoder so far, without those that learn
    held: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)  # embeddings by slide id, last used last
    of_step: HeldSlides | None = None  # tiles that are kept for this step alone, see `ReadSettings.loading`
    are_tiles = False  # whether instances are tiles (uint8) or embeddings (float32)

    def __post_init__(self) -> None:
        if self.are_tiles and self.read.loading != "lazy":
            self.of_step = HeldSlides(float("inf"), lambda record: self.slides.open(record, self.settings.icc))

    def open(self, planned: Planned) -> Slide:
        """Open a slide to learn from, for use with `with`."""
        return (self.of_step or self.slides).open(planned.member.record, self.settings.icc)

    def has_chosen(self, planned: Planned, rows: np.ndarray) -> None:
        """Take note that no other tiles of a slide are needed in this step."""
        if self.of_step is not None and self.read.loading == "slide":
            self.of_step.keep_only(planned.member.record, _grid(planned).coords[rows])

    def end_step(self) -> None:
        """Let go of the tiles of a step."""
        if self.of_step is not None:
            self.of_step.forget()

    def plan(self, members: Sequence[Member]) -> tuple[list[Planned], list[Note]]:
        """Look at every slide once; one that cannot be used is left out and named."""
        planned, notes = [], []
        for member in members:
            try:
                planned.append(self._plan_one(member))
            except (SlideError, NoTissueError) as error:
                notes.append(Note(error.code, f"{member.record.slide_id} is not used: {error.message}"))
        return planned, notes

    def _plan_one(self, member: Member) -> Planned:
        record = member.record
        with self.slides.open(record, self.settings.icc) as slide:
            grid = plan_slide(slide, self.settings, self.read, record.mask_path).grid
        return Planned(member, len(grid.coords), grid)

    def different_first(self, planned: Planned, rows: np.ndarray, n: int) -> np.ndarray:
        """Take n of rows that were drawn at random, or all there are: see `PixelBags`."""
        return rows[:n]

    def embeddings(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        """All tiles' embeddings with the present weights, (N, W) float16 or float32."""
        raise NotImplementedError

    def logits(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        """All tiles' attention logits with the present weights, (N, T, H) float32."""
        found = self.embeddings(planned, classifier).astype(np.float32)
        return classifier.scan(found, self.settings.selection.chunk_size, np.arange(len(found))).logits

    def embed_rows(self, planned: Planned, rows: np.ndarray, classifier: IPSClassifier) -> np.ndarray:
        """Embed some tiles with the present weights: (n, W) float32, in the order of `rows`."""
        return self.embeddings(planned, classifier)[rows].astype(np.float32)

    def _encoded(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        """Embed a slide with the present weights, by the cache where there is one."""
        with self.open(planned) as slide:
            found = slide_embeddings(slide, _grid(planned), classifier, self.read, self.cache)
        return self._noted(found.embeddings, found.n_encoded, found.colour, planned)

    def _noted(
        self, found: np.ndarray, n_encoded: int, colour: dict[str, float] | None, planned: Planned
    ) -> np.ndarray:
        """Remember what a pass says besides its (N, ...) numbers; a slide that is no longer whole is refused."""
        slide_id = planned.member.record.slide_id
        self.n_encoded += n_encoded
        if colour is not None:
            self.colours[slide_id] = colour
        if len(found) != planned.n_tiles:
            raise SlideError("E_TILE", f"{slide_id}: {planned.n_tiles - len(found)} tiles cannot be read; training needs "
                             "whole slides: copy the file again, or exclude it")  # fmt: skip
        return found


class PixelBags(Bags):
    """Tiles for an encoder that learns; every call reads and encodes with the weights of that moment."""

    are_tiles = True

    def different_first(self, planned: Planned, rows: np.ndarray, n: int) -> np.ndarray:
        """Take the first n that differ; tiles with the bytes of an earlier one, where they count once, only for want of others."""
        if not self.read.same_once:
            return rows[:n]
        seen: set[bytes] = set()
        new: list[int] = []
        for at, tile in enumerate(t for tiles in self.tiles(planned, rows) for t in tiles):
            content = tile.tobytes()
            if content not in seen:
                seen.add(content)
                new.append(at)
            if len(new) >= n:
                break  # the rest need not be read
        return rows[np.concatenate([new, np.setdiff1d(np.arange(len(rows)), new)]).astype(np.int64)[:n]]

    def embeddings(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        """See `Bags`."""
        return self._encoded(planned, classifier)

    def logits(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        """See `Bags`; nothing but the ledger is kept."""
        with self.open(planned) as slide:
            found = slide_logits(slide, _grid(planned), classifier, self.read)
        return self._noted(found.logits, found.n_encoded, found.colour, planned)

    def embed_rows(self, planned: Planned, rows: np.ndarray, classifier: IPSClassifier) -> np.ndarray:
        """See `Bags`; no other tile is read."""
        distinct, size = DistinctTiles() if self.read.same_once else None, self.settings.selection.chunk_size
        parts = [encode_tiles(classifier, tiles, size, distinct) for tiles in self.tiles(planned, rows)]
        self.n_encoded += sum(n for _, n in parts)
        return np.concatenate([np.zeros((0, classifier.encoder.width), np.float32), *(e for e, _ in parts)])

    def tiles(self, planned: Planned, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Read tiles in the order of `rows`, some at a time: (n, S, S, C) uint8."""
        grid = _grid(planned)
        with self.open(planned) as slide:
            for start in range(0, len(rows), _READ_TILES):
                yield read_tiles(slide, grid, rows[start : start + _READ_TILES], self.read)


class FrozenBags(Bags):
    """Embeddings of an encoder that stays as it is: made once, kept in the cache, held in memory while there is room."""

    def embeddings(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        """See `Bags`."""
        key = planned.member.record.slide_id
        if key not in self.held:
            self.held[key] = self._make(planned, classifier)
            while sum(a.nbytes for a in self.held.values()) > _HELD_BYTES and len(self.held) > 1:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        return self.held[key]

    def _make(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        return self._encoded(planned, classifier)


class FileBags(FrozenBags):
    """Embeddings that another tool has made, by the manifest's column features_path."""

    def _plan_one(self, member: Member) -> Planned:
        return Planned(member, len(self._read(member)))

    def _make(self, planned: Planned, classifier: IPSClassifier) -> np.ndarray:
        return self._read(planned.member)

    def _read(self, member: Member) -> np.ndarray:
        record = member.record
        if not record.features_path:
            raise SlideError("E_NO_FEATURES", f"{record.slide_id}: column features_path is empty (line {record.row})")
        found = read_feature_file(record.features_path, self.read.max_tiles)
        if self.settings.encoder.width is not None:
            found.check_width(self.settings.encoder.width)
        return found.embeddings


def _grid(planned: Planned) -> TileGrid:
    if planned.grid is None:
        raise SlideError("E_NO_FEATURES", f"{planned.member.record.slide_id}: has no tiles, only features")
    return planned.grid
