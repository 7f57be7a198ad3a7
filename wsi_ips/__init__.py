"""wsi-ips: whole-slide labels, heatmaps and finetuning by Iterative Patch Selection.

The front door: every public name, each loaded from its room when it is first asked for, so that importing the package
costs nothing and torch is loaded by names of the model alone.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "ClassifyOptions": "engine.classify",
    "DrawOptions": "engine.drawoptions",
    "EvaluateOptions": "training.evaluate",
    "FinetuneOptions": "training.finetune",
    "FinetuneResult": "training.finetune",
    "FinetuneSettings": "recipe",
    "IPSClassifier": "model.classifier",
    "Manifest": "manifest",
    "ModelSettings": "config",
    "PredictJob": "engine.predict",
    "ReadSettings": "config",
    "SlideError": "errors",
    "SlidePrediction": "results",
    "SparseSlide": "slide.sparseslide",
    "TaskSettings": "config",
    "TileSpec": "config",
    "TissueSettings": "config",
    "TrainSettings": "recipe",
    "WsiIpsError": "errors",
    "audit_run": "engine.audit",
    "auroc_interval": "stats.metrics",
    "classify": "engine.classify",
    "exit_status": "errors",
    "evaluate_run": "training.evaluate",
    "find_tissue": "tiles.tissue",
    "finetune_manifest": "training.finetune",
    "load_bundle": "model.bundle",
    "load_manifest": "manifest",
    "load_settings": "config",
    "make_cohort": "synthetic",
    "make_mosaic": "synthetic",
    "open_cache": "engine.embeddings",
    "open_slide": "slide.reader",
    "overlay_png": "report.overlay",
    "paired_bootstrap": "stats.compare",
    "patient_bootstrap": "stats.intervals",
    "plan_tiles": "tiles.grid",
    "predict_slide": "engine.predict",
    "read_ledger": "results",
    "read_predictions": "results",
    "redraw_run": "engine.draw",
    "stream_tiles": "tiles.stream",
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'wsi_ips' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"wsi_ips.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
