"""What is known about a slide after the pass, and the ledger file it lives in: the letter between the wings.

Shapes: N tiles, T tasks, H heads, m = min(M, N) selected, D embedding, P outputs of all tasks together. An instance's
number is its row in the slide's grid. The ledger is built in memory and handed over as bytes: HDF5 writing straight to
a full disk kills the process.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import h5py
import numpy as np

import wsi_ips
from wsi_ips.config import TileSpec
from wsi_ips.errors import ConfigError, Note
from wsi_ips.files import is_regular
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.hdf5 import refuse_foreign
from wsi_ips.tables import plain_text
from wsi_ips.tasks import TaskSettings

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LEDGER_VERSION",
    "MOST_BYTES",
    "SCHEMA_VERSION",
    "Faithfulness",
    "Pooled",
    "SlidePrediction",
    "SlideResult",
    "Status",
    "TissueOutline",
    "ledger_bytes",
    "read_ledger",
    "read_predictions",
    "sha256_file",
]

SCHEMA_VERSION = 1
LEDGER_VERSION = 2  # of a ledger with a context, whose label an older reader would make again without it; others say 1
MOST_BYTES = 8 << 30  # of a ledger's arrays: a million tiles with 16 queries of 32 heads take 2 GB
Status = Literal["ok", "ok_with_warnings", "no_tissue", "failed", "not_run"]


@dataclass(frozen=True)
class TissueOutline:
    """The tissue mask, small enough to travel with the result."""

    mask: np.ndarray  # (h, w) bool, True on tissue
    x0: int  # level-0 px of the mask's top-left corner
    y0: int
    downsample_x: float  # level-0 px per mask px
    downsample_y: float


class Pooled(NamedTuple):
    """Tiles pooled by attention, standing in a softmax for all of them; the label needs its float64 to the last bit."""

    log_norm: np.ndarray  # (T, H) float64, log of the sum of exponentials of their attention logits
    mean: np.ndarray  # (T, H, D / H) float64, their values weighted by their own softmax


class Faithfulness(NamedTuple):
    """What becomes of the call when selected tiles are taken away, or are all there is; see `tasks.call_value`."""

    orders: tuple[str, ...]  # O orders of removal: "attention", "evidence", then "random" several times
    counts: np.ndarray  # (C,) int64, how many tiles are taken away, or kept; rising, the last is m
    whole: np.ndarray  # (T,) float32, value with all selected tiles
    deletion: np.ndarray  # (T, O, C) float32, value without the first so many tiles of the order
    insertion: np.ndarray  # (T, O, C) float32, value of the first so many tiles alone


@dataclass(frozen=True)
class SlidePrediction:
    """Everything one pass found on one slide; enough to draw, to check and to recompute the label."""

    slide_id: str
    tasks: tuple[TaskSettings, ...]
    tile: TileSpec
    coords: np.ndarray  # (N, 2) int64, level-0 px of the tiles' top-left corners
    extent0: tuple[float, float]  # width and height of a tile, level-0 px
    tissue: np.ndarray  # (N,) float32, share of the tile that is tissue
    logits: np.ndarray  # (N, T, H) float32, attention logits
    attention: np.ndarray  # (N, T) float32, softmax over all N, mean over heads; each column sums to 1
    selected: np.ndarray  # (m,) int64 rows, best first
    values: np.ndarray  # (m, D) float32, features of the selected tiles
    evidence: np.ndarray  # (m, P) float32, logit(selection) - logit(selection without the tile)
    outputs: np.ndarray  # (P,) float32, the slide's logits
    mpp: Mpp
    bounds: Box0
    size0: tuple[int, int]  # width and height of level 0
    outline: TissueOutline
    tissue_mm2: float
    reader: str
    model_hash: str
    settings_hash: str
    n_missing: int = 0
    n_failed_reads: int = 0
    n_reencoded: int = 0  # selected tiles whose features had left the buffer
    notes: tuple[Note, ...] = ()
    context: Pooled | None = None  # the unselected tiles, where they enter the label
    bag_evidence: np.ndarray | None = None  # (N, P) float32, the same over the whole bag; only where asked for
    faithfulness: Faithfulness | None = None  # None in ledgers of earlier versions
    file: Mapping[str, Any] | None = None  # the slide's fingerprint: method, size, sha256; no path and no time

    @property
    def n_tiles(self) -> int:
        """N."""
        return len(self.coords)


@dataclass(frozen=True)
class SlideResult:
    """One row of predictions.csv: what became of a slide, whatever that was."""

    slide_id: str
    status: Status
    reason: str = ""  # codes joined by ";"
    message: str = ""  # one sentence for a person
    prediction: SlidePrediction | None = None


def ledger_bytes(p: SlidePrediction) -> bytes:
    """Build the ledger file; the same prediction gives the same bytes."""
    with h5py.File("ledger", "w", driver="core", backing_store=False) as f:
        coords = f.create_dataset("coords", data=p.coords.astype(np.int64))
        coords.attrs.update(_coords_attributes(p))
        for name in ("tissue", "logits", "attention", "values", "evidence", "outputs"):
            f.create_dataset(name, data=getattr(p, name).astype(np.float32))
        f.create_dataset("selected", data=p.selected.astype(np.int64))
        mask = f.create_dataset("tissue_mask", data=p.outline.mask.astype(np.uint8), compression="gzip")
        for key in ("x0", "y0", "downsample_x", "downsample_y"):
            mask.attrs[key] = getattr(p.outline, key)
        if p.context is not None:
            f.create_dataset("context_log_norm", data=p.context.log_norm.astype(np.float64))
            f.create_dataset("context_mean", data=p.context.mean.astype(np.float64))
        if p.bag_evidence is not None:
            f.create_dataset("bag_evidence", data=p.bag_evidence.astype(np.float32))
        if p.faithfulness is not None:
            _write_faithfulness(f, p.faithfulness)
        version = SCHEMA_VERSION if p.context is None else LEDGER_VERSION
        meta = json.dumps(_meta(p), sort_keys=True)
        f.attrs.update({"schema_version": version, "wsi_ips_version": wsi_ips.__version__, "meta": meta})
        f.flush()
        return bytes(f.id.get_file_image())


def read_ledger(source: Path | bytes) -> SlidePrediction:
    """Read a ledger file back.

    Raises:
        ConfigError: not a ledger, or made by a newer version of this package.
    """
    name = str(source) if isinstance(source, Path) else "ledger"
    try:
        if isinstance(source, Path) and source.exists() and not is_regular(source):
            raise ConfigError(f"{name}: a link, or no file at all, is no ledger; run classify again for this slide")
        with h5py.File(source if isinstance(source, Path) else io.BytesIO(source), "r") as f:
            return _read_ledger(f, name)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: there is no ledger; run classify again for this slide") from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{name}: not a complete ledger ({error}); run classify again for this slide") from error


def _read_ledger(f: h5py.File, name: str) -> SlidePrediction:
    version = int(f.attrs["schema_version"])
    if version > LEDGER_VERSION:
        raise ConfigError(f"{name}: schema_version {version} needs a newer wsi-ips (this one reads {LEDGER_VERSION})")
    refuse_foreign(f, MOST_BYTES)
    meta = json.loads(f.attrs["meta"])
    m = f["tissue_mask"]
    outline = TissueOutline(m[()].astype(bool), int(m.attrs["x0"]), int(m.attrs["y0"]),
                            float(m.attrs["downsample_x"]), float(m.attrs["downsample_y"]))  # fmt: skip
    names = ("coords", "tissue", "logits", "attention", "selected", "values", "evidence", "outputs")
    arrays = {key: f[key][()] for key in names}
    if len(arrays["selected"]) and not 0 <= arrays["selected"].min() <= arrays["selected"].max() < len(arrays["coords"]):
        raise ConfigError(f"{name}: selected rows lie outside its {len(arrays['coords'])} tiles; run classify again")
    found = SlidePrediction(
        tasks=tuple(TaskSettings(**t) for t in meta.pop("tasks")), tile=TileSpec(**meta.pop("tile")),
        mpp=Mpp(*meta.pop("mpp")), bounds=Box0(*meta.pop("bounds")), size0=tuple(meta.pop("size0")),
        extent0=tuple(meta.pop("extent0")), notes=tuple(Note(*n) for n in meta.pop("notes")), outline=outline,
        context=Pooled(f["context_log_norm"][()], f["context_mean"][()]) if "context_mean" in f else None,
        bag_evidence=f["bag_evidence"][()] if "bag_evidence" in f else None,
        faithfulness=_read_faithfulness(f) if "deletion" in f else None, **arrays, **meta,
    )  # fmt: skip
    _check_shapes(found)
    return found


def _check_shapes(p: SlidePrediction) -> None:
    """Refuse arrays that do not belong together: what draws them believes their shapes."""
    n, t, m, k = len(p.coords), len(p.tasks), len(p.selected), sum(task.n_outputs for task in p.tasks)
    wanted = {"coords": (n, 2), "tissue": (n,), "attention": (n, t), "selected": (m,), "evidence": (m, k), "outputs": (k,)}
    wrong = [name for name, shape in wanted.items() if getattr(p, name).shape != shape]
    wrong += [name for name, axes, lead in (("logits", 3, (n, t)), ("values", 2, (m,)))
              if getattr(p, name).ndim != axes or getattr(p, name).shape[: len(lead)] != lead]  # fmt: skip
    wrong += ["bag_evidence"] if p.bag_evidence is not None and p.bag_evidence.shape != (n, k) else []
    wrong += [name for name in (*wanted, "logits", "values") if getattr(p, name).dtype.kind not in "fiu"]
    if wrong or p.outline.mask.ndim != 2:
        raise ValueError(f"shape or type of {', '.join(dict.fromkeys(wrong)) or 'tissue_mask'} does not fit the rest")


def read_predictions(run: str | Path) -> pd.DataFrame:
    """Read a run's predictions.csv for analysis: one row a slide, ids and labels as text, numbers as numbers.

    Args:
        run: run folder.

    Returns:
        Columns as in the file; `prob_*`, `threshold`, counts, `mpp` and `tissue_mm2` are float, NaN where empty.

    Raises:
        ConfigError: the folder holds no predictions.csv.
    """
    import pandas as pd  # only here: half a second that nothing else needs

    path = Path(run) / "predictions.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the run folder of classify") from error
    table = table.rename(columns=plain_text).map(plain_text)
    for name in table.columns:
        if "prob_" in name or name.endswith("threshold") or name.startswith("n_") or name in ("mpp", "tissue_mm2"):
            table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def _write_faithfulness(f: h5py.File, found: Faithfulness) -> None:
    for name in ("deletion", "insertion"):
        curves = f.create_dataset(name, data=getattr(found, name).astype(np.float32))
        curves.attrs["orders"] = json.dumps(found.orders)
        curves.attrs["counts"] = found.counts.astype(np.int64)
        curves.attrs["whole"] = found.whole.astype(np.float32)


def _read_faithfulness(f: h5py.File) -> Faithfulness:
    said = f["deletion"].attrs
    return Faithfulness(tuple(json.loads(said["orders"])), np.asarray(said["counts"]), np.asarray(said["whole"]),
                        f["deletion"][()], f["insertion"][()])  # fmt: skip


def sha256_file(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _meta(p: SlidePrediction) -> dict[str, Any]:
    return {
        "slide_id": p.slide_id, "tasks": [t.model_dump(mode="json") for t in p.tasks], "tile": p.tile.model_dump(mode="json"),
        "extent0": list(p.extent0), "mpp": list(p.mpp), "bounds": list(p.bounds), "size0": list(p.size0),
        "tissue_mm2": p.tissue_mm2, "reader": p.reader, "model_hash": p.model_hash, "settings_hash": p.settings_hash,
        "n_missing": p.n_missing, "n_failed_reads": p.n_failed_reads, "n_reencoded": p.n_reencoded,
        "notes": [list(n) for n in p.notes], **({"file": dict(p.file)} if p.file else {}),
    }  # fmt: skip


def _coords_attributes(p: SlidePrediction) -> dict[str, Any]:
    """Attributes that CLAM (`patch_*`) and TRIDENT (`*_level0`, `*magnification`) look for, and our exact ones."""
    side0 = round(p.extent0[0])
    power = 10.0 / p.mpp.x if math.isfinite(p.mpp.x) else 0.0  # a file of features does not say
    return {
        "patch_size": p.tile.size_px, "patch_level": 0, "patch_size_level0": side0, "overlap": p.tile.overlap_px,
        "level0_magnification": round(power), "target_magnification": round(10.0 / p.tile.mpp), "name": p.slide_id,
        "level0_width": p.size0[0], "level0_height": p.size0[1], "downsample": np.array([1.0, 1.0]),
        "level_dim": np.array(p.size0), "downsampled_level_dim": np.array(p.size0), "savetodir": "None", "save_path": "None",
        "level0_mpp_x": p.mpp.x, "level0_mpp_y": p.mpp.y, "target_mpp": p.tile.mpp, "reader": p.reader,
        "schema_version": SCHEMA_VERSION,
    }  # fmt: skip
