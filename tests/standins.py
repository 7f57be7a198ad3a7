"""What stands in for parts that a test does without."""

from __future__ import annotations

from typing import Any

from wsi_ips.config import TaskSettings

__all__ = ["worker_info"]


def worker_info() -> dict[str, Any]:
    """What a worker of `classify` says of a model of two classes and of itself, without there being either."""
    task = TaskSettings(classes=("normal", "tumor")).model_dump(mode="json")
    settings = {"tasks": [task], "tile": {"size_px": 32, "mpp": 4.0}, "encoder": {"name": "resnet18"}}
    return {"model_hash": "m" * 64, "settings_hash": "s" * 64, "model_settings": settings, "tasks": [task], "learned_from": [],
            "engine": "torch", "engine_note": "", "device": "cpu", "batch": 16, "takes_tiles": True}  # fmt: skip
