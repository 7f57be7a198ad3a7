"""Fixtures shared by all rooms' tests: real slides where they are, a small cohort, a tiny untrained bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.synthetic import make_cohort

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no command that a test starts, touches the user's embedding cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSI_IPS_CACHE", str(tmp_path_factory.mktemp("embeddings")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides and labelled data, or a skip."""
    folder = Path(os.environ.get("WSI_IPS_DATA", _ROOT.parent / "shared" / "data"))
    if not (folder / "slides").is_dir():
        pytest.skip("no folder of real slides (set WSI_IPS_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings as a file would hold them: 32-px tiles at 4 µm/px, an encoder of a few thousand weights, M = 6."""
    kwargs = {"channels": [8, 8, 8, 8], "norm_layer": "groupnorm"}
    return {
        "model": {
            "encoder": {"name": "resnet18", "weights": "none", "kwargs": kwargs},
            "attention": {"dim": 16, "n_heads": 2},
            "selection": {"memory_size": 6, "chunk_size": 16},
            "tile": {"size_px": 32, "mpp": 4.0},
        },
        "train": {"epochs": 1, "batch_slides": 2},
    }


@pytest.fixture(scope="session")
def tiny_settings(tiny: dict[str, Any]) -> ModelSettings:
    """The model part of `tiny`."""
    return load_settings(FinetuneSettings, tiny).model


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_settings: ModelSettings) -> Path:
    """Folder of an untrained bundle."""
    import torch  # here: most rooms' tests need none

    from wsi_ips.model.bundle import save_bundle
    from wsi_ips.model.classifier import IPSClassifier
    from wsi_ips.model.encoder import build_encoder

    torch.manual_seed(1)
    encoder = build_encoder(tiny_settings.encoder, tiny_settings.tile.size_px)
    folder = tmp_path_factory.mktemp("bundle") / "model"
    save_bundle(folder, IPSClassifier(encoder, tiny_settings), tiny_settings, card="# tiny")
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of four training, four validation and two test slides."""
    return make_cohort(tmp_path_factory.mktemp("cohort"), n_train=4, n_val=4, n_test=2, seed=5)
