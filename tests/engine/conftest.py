"""A small cohort and a tiny untrained bundle, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.synthetic import make_cohort

TINY = {
    "encoder": {"name": "resnet18", "weights": "none", "kwargs": {"channels": [8, 8, 8, 8], "norm_layer": "groupnorm"}},
    "attention": {"dim": 16, "n_heads": 2},
    "selection": {"memory_size": 6, "chunk_size": 16},
    "tile": {"size_px": 32, "mpp": 4.0},
}


@pytest.fixture(scope="session")
def tiny_settings() -> ModelSettings:
    """32-px tiles at 4 µm/px, an encoder of a few thousand weights, M = 6."""
    return load_settings(ModelSettings, TINY)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_settings: ModelSettings) -> Path:
    """Folder of an untrained bundle."""
    from wsi_ips.engine.train import build_classifier

    folder = tmp_path_factory.mktemp("bundle") / "model"
    save_bundle(folder, build_classifier(tiny_settings, seed=1), tiny_settings, card="# tiny")
    load_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of four training, four validation and two test slides."""
    return make_cohort(tmp_path_factory.mktemp("cohort"), n_train=4, n_val=4, n_test=2, seed=5)
