"""Megapixel MNIST made on the fly: five digits and noise strokes on a large black canvas, and four questions about them.

A canvas follows from the seed, its part and its number alone: a larger set begins with the canvases of a smaller one, and
nothing is stored but digits. Only the pieces that lie on a canvas are kept, never its px.

Rules of the data set: three digits of one class (`majority`, drawn evenly) and two of others; the `top` one is the one whose
upper edge is highest; `max` is the largest number; `multi` are all numbers there. Digits do not overlap each other and cover
the strokes below them.

Source: Bergner et al., ICLR 2023; the majority task, Katharopoulos and Fleuret, ICML 2019.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from wsi_ips import SparseSlide, WsiIpsError

__all__ = ["Canvas", "Canvases", "Digits", "Rules", "read_digits", "read_idx"]

N_DIGITS, N_MAJORITY, N_CLASSES = 5, 3, 10
_STEM_PX = 28  # of an MNIST digit
_PARTS = {"train": 0, "val": 1, "test": 2}


class Digits(NamedTuple):
    """Images and their numbers."""

    images: np.ndarray  # (n, 28, 28) uint8
    labels: np.ndarray  # (n,) uint8


@dataclass(frozen=True)
class Rules:
    """What a canvas looks like."""

    canvas_px: int = 1500
    digit_px: int = 28
    n_noise: int = 50  # strokes a canvas, and different patterns of a part
    seed: int = 0

    def __post_init__(self) -> None:
        if self.canvas_px < 8 * self.digit_px:
            raise WsiIpsError(f"canvas of {self.canvas_px} px: five digits of {self.digit_px} px need 8 times their side")
        if not 0 <= self.n_noise <= 100_000 or self.digit_px < 8:
            raise WsiIpsError(f"digits of {self.digit_px} px, {self.n_noise} strokes: at least 8 px, at most 100000 strokes")


class Canvas(NamedTuple):
    """What lies on a canvas, and the answers."""

    pieces: list[tuple[int, int, np.ndarray]]  # x0, y0, (s, s, 1) uint8; strokes first, then the five digits
    numbers: np.ndarray  # (5,) of the digits, in that order
    majority: int
    max: int
    top: int
    multi: tuple[int, ...]  # rising


class Canvases:
    """Makes the canvases of one part.

    Args:
        digits: images that canvases of this part are made of.
        rules: size, noise, seed.
        part: train, val or test; draws differ between parts.
    """

    def __init__(self, digits: Digits, rules: Rules, part: str) -> None:
        self.rules, self._part = rules, _PARTS[part]
        self._images = np.stack([_sized(image, rules.digit_px) for image in digits.images])[..., None]
        self._of_class = [np.flatnonzero(digits.labels == k) for k in range(N_CLASSES)]
        self._not_of_class = [np.flatnonzero(digits.labels != k) for k in range(N_CLASSES)]
        self._labels = digits.labels
        absent = [k for k, rows in enumerate(self._of_class) if not len(rows)]
        if absent:
            raise WsiIpsError(f"{part}: no image of digit {', '.join(map(str, absent))} among {len(digits.labels)}; give more images")
        self._strokes = strokes(rules.n_noise, rules.digit_px, np.random.default_rng([rules.seed, self._part, 1]))
        self._made: dict[int, Canvas] = {}  # some pointers each: the images are here already
        self.hash = zlib.crc32(self._images.tobytes())  # of what is laid on canvases

    def __getitem__(self, index: int) -> Canvas:
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def _make(self, index: int) -> Canvas:
        rules, rng = self.rules, np.random.default_rng([self.rules.seed, self._part, 0, index])
        majority = int(rng.integers(N_CLASSES))
        chosen = np.concatenate([rng.choice(self._of_class[majority], N_MAJORITY),
                                 rng.choice(self._not_of_class[majority], N_DIGITS - N_MAJORITY)])  # fmt: skip
        corners = _apart(rng, rules.canvas_px, rules.digit_px)
        numbers = self._labels[chosen].astype(np.int64)
        pieces = [(int(x), int(y), self._strokes[i]) for (x, y), i in _noise(rng, rules)]
        pieces += [(int(x), int(y), self._images[i]) for (x, y), i in zip(corners, chosen, strict=True)]
        top = int(numbers[np.argmin(corners[:, 1])])
        return Canvas(pieces, numbers, majority, int(numbers.max()), top, tuple(sorted(set(numbers.tolist()))))

    def slide(self, index: int) -> SparseSlide:
        """A canvas as a slide of one channel at 1 µm/px."""
        side = self.rules.canvas_px
        return SparseSlide((side, side), self[index].pieces, mpp=1.0, name=f"canvas {index}")

    def address(self, index: int) -> str:
        """All that decides a canvas, as the path of a slide that is no file."""
        r = self.rules
        return f"canvas://{self._part}/{index}?px={r.canvas_px}&digit={r.digit_px}&noise={r.n_noise}&seed={r.seed}&images={self.hash:08x}"


def strokes(n: int, side_px: int, rng: np.random.Generator) -> np.ndarray:
    """Draw noise patterns (n, s, s, 1) uint8: two straight lines across a square, of uneven brightness."""
    out = np.zeros((n, side_px, side_px, 1), np.uint8)
    for pattern in out:
        line = np.zeros((side_px, side_px), bool)
        for _ in range(2):
            slope = np.tan(rng.uniform(0.0, np.pi / 2.5))
            x = np.linspace(0.0, min(side_px - 1.0, (side_px - 1.0) / max(slope, 1e-9)), 4 * side_px)
            one = np.zeros_like(line)
            one[np.rint(slope * x).astype(int), np.rint(x).astype(int)] = True
            line |= one[:: 1 if rng.random() < 0.67 else -1, :: 1 if rng.random() < 0.67 else -1]
        pattern[..., 0] = np.where(line, rng.uniform(204.0, 255.0, line.shape), 0.0).astype(np.uint8)
    return out


def _noise(rng: np.random.Generator, rules: Rules) -> list[tuple[np.ndarray, int]]:
    """Corners and patterns of the strokes; they keep a digit's width from the edge and may lie over each other."""
    s = rules.digit_px
    corners = rng.integers(s, rules.canvas_px - 2 * s + 1, (rules.n_noise, 2))
    return list(zip(corners, rng.integers(0, max(1, rules.n_noise), rules.n_noise).tolist(), strict=True))


def _apart(rng: np.random.Generator, canvas_px: int, side_px: int) -> np.ndarray:
    """Corners (5, 2) of squares that do not overlap, each drawn evenly from where it may lie."""
    corners = np.empty((0, 2), np.int64)
    while len(corners) < N_DIGITS:
        new = rng.integers(0, canvas_px - side_px + 1, 2)
        if not (np.abs(corners - new) < side_px).all(axis=1).any():
            corners = np.vstack([corners, new])
    return corners


def _sized(image: np.ndarray, side_px: int) -> np.ndarray:
    if side_px == image.shape[0]:
        return image
    way = cv2.INTER_AREA if side_px < image.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(image, (side_px, side_px), interpolation=way)


def read_digits(folder: Path, part: str) -> Digits:
    """Read the images and labels of a folder of IDX files, as they are or gzipped.

    Args:
        folder: holds for instance train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz.
        part: `train`; or `test`, files named t10k or test, and where there are none those named train.

    Raises:
        WsiIpsError: no such files, or files that are not of this format or do not belong together.
    """
    beginnings = ("train",) if part == "train" else ("t10k", "test", "train")
    for beginning in beginnings:
        found = [sorted(folder.glob(f"{beginning}-{kind}[-.]idx?-ubyte*")) for kind in ("images", "labels")]
        if all(found):
            images, labels = (read_idx(files[0]) for files in found)
            if images.shape[1:] != (_STEM_PX, _STEM_PX) or labels.shape != (len(images),) or labels.max() >= N_CLASSES:
                raise WsiIpsError(f"{folder}: images {images.shape} and labels {labels.shape} are not MNIST's")
            return Digits(images, labels)
    raise WsiIpsError(f"{folder}: holds no IDX files of MNIST ({beginnings[0]}-images-idx3-ubyte, {beginnings[0]}-labels-idx1-ubyte, "
                      "or both with .gz); give their folder by --data")  # fmt: skip


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Raises:
        WsiIpsError: it cannot be read, is of another kind, or of another length than it says.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise WsiIpsError(f"{path}: cannot be read ({error}); copy it again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or not 1 <= raw[3] <= 4 or len(raw) < 4 + 4 * raw[3]:
        raise WsiIpsError(f"{path}: is no IDX file of unsigned bytes; copy it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    if len(raw) - 4 - 4 * raw[3] != int(np.prod(shape)):
        raise WsiIpsError(f"{path}: says {' x '.join(map(str, shape))} values and holds {len(raw) - 4 - 4 * raw[3]}; copy it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
