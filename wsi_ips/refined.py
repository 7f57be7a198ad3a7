"""What is found about a slide on demand, after its run: finer maps, and how much its label hangs on chance.

Shapes: F fine tiles, k tiles looked into, T tasks, H heads, S tile side. Coordinates are level-0 px. Like the ledger,
the file is built in memory and handed over as bytes.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from wsi_ips.errors import ConfigError, Note
from wsi_ips.hdf5 import refuse_foreign
from wsi_ips.results import MOST_BYTES, SCHEMA_VERSION

__all__ = ["Change", "Refined", "Stability", "TaskChange", "TileCams", "fine_bytes", "read_fine", "read_stability",
           "stability_bytes"]  # fmt: skip


class TileCams(NamedTuple):
    """Where inside a tile the call's evidence comes from, first order."""

    rows: np.ndarray  # (k,) int64, rows of the run's grid, best first
    maps: np.ndarray  # (k, T, S, S) float32, signed; the mean over its cells is gradient times features, in units of the logit
    cells: tuple[int, int]  # height and width of the feature map they were interpolated from
    towards: tuple[str, ...]  # T, what positive speaks for


class Refined(NamedTuple):
    """Finer maps of one slide."""

    slide_id: str
    model_hash: str
    stride: float  # from tile to tile, in tile widths
    extent0: tuple[float, float]  # width and height of a tile, level-0 px
    n_tiles: int  # N of the run: attention x N is on the scale of the run's own map
    coords: np.ndarray  # (F, 2) int64, top-left corners
    run_row: np.ndarray  # (F,) int64, the row in the run's grid of a tile of the run, else -1
    logits: np.ndarray  # (F, T, H) float32
    attention: np.ndarray  # (F, T) float32, mean over heads of exp(logit - log normaliser of the run's whole bag)
    largest_error: float  # by which logits of the run's tiles, encoded again, missed the ledger's at most
    n_encoded: int  # tiles through the encoder
    cams: TileCams | None = None
    notes: tuple[Note, ...] = ()


class TaskChange(NamedTuple):
    """One task, before and after."""

    task: str
    said: str  # what the values are: "probability of tumor"
    before: float  # `call_value` of the run's outputs
    after: float
    called_before: str
    called_after: str
    rank_correlation: float | None  # Spearman's, of the attention maps; None where one map alone is constant


class Change(NamedTuple):
    """What one change of the input did."""

    kind: str  # "shift" (the grid, half a tile right and down) or "stain"
    strength: float  # shift: in tile widths; stain: largest relative change of a stain's density
    tasks: tuple[TaskChange, ...]
    selected_overlap: float  # intersection over union of the areas the label was read from
    n_tiles: int


class Stability(NamedTuple):
    """How much a label and its map hang on what should not matter."""

    slide_id: str
    model_hash: str
    changes: tuple[Change, ...]


def stability_bytes(found: Stability) -> bytes:
    """Lay a stability out as JSON."""
    changes = [c._asdict() | {"tasks": [t._asdict() for t in c.tasks]} for c in found.changes]
    whole = {"schema_version": SCHEMA_VERSION, **found._asdict(), "changes": changes}
    return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False).encode()


def read_stability(data: bytes) -> Stability:
    """Read what `stability_bytes` wrote.

    Raises:
        ConfigError: it is something else.
    """
    try:
        found = json.loads(data)
        changes = [Change(**c | {"tasks": tuple(TaskChange(**t) for t in c["tasks"])}) for c in found["changes"]]
        return Stability(found["slide_id"], found["model_hash"], tuple(changes))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"stability.json: cannot be read ({error}); measure it again") from error


def fine_bytes(r: Refined) -> bytes:
    """Build `<slide_id>.fine.h5`; the same numbers give the same bytes."""
    with h5py.File("fine", "w", driver="core", backing_store=False) as f:
        f.create_dataset("coords", data=r.coords.astype(np.int64))
        f.create_dataset("run_row", data=r.run_row.astype(np.int64))
        f.create_dataset("logits", data=r.logits.astype(np.float32))
        f.create_dataset("attention", data=r.attention.astype(np.float32))
        if r.cams is not None:
            f.create_dataset("cam_rows", data=r.cams.rows.astype(np.int64))
            maps = f.create_dataset("cams", data=r.cams.maps.astype(np.float32), compression="gzip", shuffle=True)
            maps.attrs["meta"] = json.dumps({"cells": r.cams.cells, "towards": r.cams.towards})
        f.attrs.update({"schema_version": SCHEMA_VERSION, "meta": json.dumps(_meta(r), sort_keys=True)})
        f.flush()
        return bytes(f.id.get_file_image())


def read_fine(source: Path | bytes) -> Refined:
    """Read `<slide_id>.fine.h5` back.

    Raises:
        ConfigError: not such a file, or made by a newer version of this package.
    """
    name = str(source) if isinstance(source, Path) else "fine.h5"
    try:
        with h5py.File(source if isinstance(source, Path) else io.BytesIO(source), "r") as f:
            version = int(f.attrs["schema_version"])
            if version > SCHEMA_VERSION:
                raise ConfigError(f"{name}: schema_version {version} needs a newer wsi-ips (this one reads {SCHEMA_VERSION})")
            refuse_foreign(f, MOST_BYTES)
            meta = json.loads(f.attrs["meta"])
            arrays = {key: f[key][()] for key in ("coords", "run_row", "logits", "attention")}
            cams = None
            if "cams" in f:
                said = json.loads(f["cams"].attrs["meta"])
                height, width = said["cells"]
                cams = TileCams(f["cam_rows"][()], f["cams"][()], (height, width), tuple(said["towards"]))
    except (OSError, KeyError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{name}: no finer maps in it ({error}); run heatmap --refine again for this slide") from error
    notes = tuple(Note(*n) for n in meta.pop("notes"))
    return Refined(extent0=tuple(meta.pop("extent0")), cams=cams, notes=notes, **arrays, **meta)


def _meta(r: Refined) -> dict[str, Any]:
    return {
        "slide_id": r.slide_id, "model_hash": r.model_hash, "stride": r.stride, "extent0": list(r.extent0),
        "n_tiles": r.n_tiles, "largest_error": r.largest_error, "n_encoded": r.n_encoded,
        "notes": [list(n) for n in r.notes],
    }  # fmt: skip
