"""Embeddings that another tool has made: HDF5 with `features` and perhaps `coords`, or one tensor in a .pt file.

Taken is what CLAM, TRIDENT and `torch.save` write; anything else is refused with what was found. No file runs code.

Shapes: N tiles, W width.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from wsi_ips.errors import ModelError, SlideError, UnreadableSlideError
from wsi_ips.hdf5 import refuse_foreign
from wsi_ips.model.pickles import check_archive
from wsi_ips.slide.reader import Slide, open_slide

__all__ = ["FeatureFile", "read_feature_file", "slide_behind"]

_MOST_BYTES = 64 << 30  # of a file's arrays; a million tiles of 4,096 float64
_BLOCK = 65_536  # rows looked at at a time
_WANTED = "'features' of shape (n, width) or (1, n, width), one row a tile"


@dataclass(frozen=True)
class FeatureFile:
    """A slide's embeddings as a file holds them."""

    name: str  # of the file, for messages
    embeddings: np.ndarray  # (N, W) float32
    coords: np.ndarray | None  # (N, 2) int64, level-0 px of the tiles' top-left corners; None when not said
    extent0: tuple[float, float] | None  # width and height of a tile, level-0 px; None when not said

    def check_width(self, width: int) -> None:
        """Refuse vectors that are not as long as a model's.

        Raises:
            UnreadableSlideError: `E_FEATURES`.
        """
        found = self.embeddings.shape[1]
        if found != width:
            raise _refused(self.name, f"features of width {found}, the model takes {width}; "
                           "make them with the encoder the model was trained on")  # fmt: skip


def read_feature_file(path: str | Path, max_tiles: int = 1_000_000) -> FeatureFile:
    """Read .h5, .hdf5 or .pt.

    HDF5: dataset `features` (n, W) or (1, n, W); `coords` (n, 2) if there; the tiles' extent from the attributes
    `patch_size_level0`, or `patch_size` and `downsample`, of `coords` or the file. PyTorch: one tensor (n, W).

    Args:
        path: a local file.
        max_tiles: more are refused.

    Raises:
        UnreadableSlideError: `E_NO_FEATURES`, no such file; `E_FEATURES`, what it holds cannot be used; `E_ABSURD`, more
            than `max_tiles`.
    """
    file = Path(path)
    if not file.is_file():
        raise UnreadableSlideError(
            "E_NO_FEATURES", f"{file.name}: no such file of features; correct column features_path"
        )
    kind = file.suffix.lower()
    if kind in (".h5", ".hdf5"):
        return _read_hdf5(file, max_tiles)
    if kind == ".pt":
        return FeatureFile(file.name, _checked(file.name, _read_tensor(file), max_tiles), None, None)
    raise _refused(file.name, f"a file ending in {kind or 'nothing'}; give .h5, .hdf5 or .pt")


def slide_behind(
    features: FeatureFile, slide_path: str | None, mpp: float | None, icc: str
) -> tuple[Slide | None, str]:
    """Open the slide that a file of features was made from, to draw on; None, and why, where nothing can be drawn.

    Args:
        features: the file.
        slide_path: of the slide; None or "" where the manifest names none.
        mpp: µm per level-0 px, where the manifest says it.
        icc: as of `open_slide`.
    """
    if features.coords is None or features.extent0 is None:
        return None, f"{features.name} does not say where its tiles lie, or how wide they are"
    if not slide_path:
        return None, "the manifest names no slide"
    try:
        return open_slide(slide_path, mpp, icc=icc), ""  # type: ignore[arg-type]
    except SlideError as error:
        return None, f"the slide cannot be opened ({error.code})"


def _read_hdf5(file: Path, max_tiles: int) -> FeatureFile:
    try:
        with h5py.File(file, "r") as f:
            found = f.get("features")
            if not isinstance(found, h5py.Dataset):
                names = ", ".join(list(f)[:8]) or "nothing"
                raise _refused(file.name, f"no dataset 'features' (found: {names}); expected {_WANTED}")
            _refuse_shape(file.name, found.shape, max_tiles)
            refuse_foreign(f, _MOST_BYTES)
            embeddings = _checked(file.name, found[()], max_tiles)
            coords = f.get("coords")
            if not isinstance(coords, h5py.Dataset):
                return FeatureFile(file.name, embeddings, None, None)
            if coords.size != 2 * len(embeddings):
                shape = f"coords of shape {coords.shape} for {len(embeddings)} features"
                raise _refused(file.name, f"{shape}; expected ({len(embeddings)}, 2)")
            attributes = {**f.attrs, **coords.attrs}
            return FeatureFile(file.name, embeddings, _places(file.name, coords[()]), _extent0(attributes))
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, UnreadableSlideError):
            raise
        raise _refused(file.name, f"cannot be read as HDF5 ({error}); copy it again") from error


def _read_tensor(file: Path) -> np.ndarray:
    cure = "save one tensor (n, width) by torch.save"
    try:
        check_archive(file)
    except ModelError as error:
        raise _refused(file.name, str(error).removeprefix(f"{file}: ")) from error
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
        why = "it holds objects other than tensors, which could run code" if isinstance(error, pickle.UnpicklingError) else "damaged"
        raise _refused(file.name, f"is not one plain tensor ({why}); {cure}") from error
    if not isinstance(found, torch.Tensor):
        raise _refused(file.name, f"holds a {type(found).__name__}, not one tensor; {cure}")
    if found.layout != torch.strided or not found.is_floating_point():
        raise _refused(
            file.name, f"holds a tensor of {found.dtype} ({found.layout}), not of numbers with a point; {cure}"
        )
    return found.detach().float().numpy()


def _refuse_shape(name: str, shape: tuple[int, ...], max_tiles: int) -> None:
    rows = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(rows) != 2:
        raise _refused(name, f"features of shape {shape}; expected {_WANTED}")
    if 0 in rows:
        raise _refused(name, f"features of shape {shape}: the file is empty; make it again, or exclude the slide")
    if rows[0] > max_tiles:
        raise UnreadableSlideError(
            "E_ABSURD", f"{name}: features of {rows[0]} tiles; more than {max_tiles} are refused"
        )


def _checked(name: str, values: Any, max_tiles: int) -> np.ndarray:
    """Bring features to (N, W) float32."""
    _refuse_shape(name, values.shape, max_tiles)
    if not np.issubdtype(values.dtype, np.floating):
        raise _refused(name, f"features of type {values.dtype}; expected float16, float32 or float64")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values.reshape(values.shape[-2:]), np.float32)
    for start in range(0, len(rows), _BLOCK):
        bad = np.flatnonzero(~np.isfinite(rows[start : start + _BLOCK]).all(axis=1))
        if len(bad):
            raise _refused(
                name, f"row {start + bad[0]} of features holds numbers that are not finite; make the file again"
            )
    return rows


def _places(name: str, values: np.ndarray) -> np.ndarray:
    places = np.asarray(values).reshape(-1, 2)
    text = f"{name}: coords that are no whole numbers; expected level-0 px of the tiles' top-left corners"
    if not np.issubdtype(places.dtype, np.number) or not np.isfinite(places).all():
        raise UnreadableSlideError("E_FEATURES", text)
    whole = np.rint(places).astype(np.int64)
    if not np.array_equal(whole, places):
        raise UnreadableSlideError("E_FEATURES", text)
    return whole


def _extent0(attributes: dict[str, Any]) -> tuple[float, float] | None:
    """Width and height of a tile, level-0 px, by the attributes of TRIDENT (and ours) or CLAM."""
    try:
        if "patch_size_level0" in attributes:
            side0 = np.full(2, float(attributes["patch_size_level0"]))
        elif "patch_size" in attributes and "downsample" in attributes:
            side0 = float(attributes["patch_size"]) * np.broadcast_to(np.asarray(attributes["downsample"], float), 2)
        else:
            return None
    except (TypeError, ValueError):
        return None
    width0, height0 = (float(side) for side in side0)
    return (width0, height0) if np.isfinite(side0).all() and min(width0, height0) >= 1.0 else None


def _refused(name: str, text: str) -> UnreadableSlideError:
    return UnreadableSlideError("E_FEATURES", f"{name}: {text}")
