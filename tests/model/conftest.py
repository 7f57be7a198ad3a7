"""Tiny real models: a ResNet of eight channels on tiles of 32 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wsi_ips.config import AttentionSettings, EncoderSettings, ModelSettings, SelectionSettings, TaskSettings, TileSpec
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import build_encoder

TASKS = (
    TaskSettings(name="tumour", classes=("no", "yes")),
    TaskSettings(name="grade", kind="multiclass", classes=("low", "mid", "high")),
)


def tiny_settings(
    dim: int | None = 8, n_heads: int = 2, tasks: tuple[TaskSettings, ...] = TASKS,
    *, dropout: float = 0.0, context: bool = False, **kwargs: Any,
) -> ModelSettings:  # fmt: skip
    """Settings of a model that builds in milliseconds; kwargs go to the timm model."""
    return ModelSettings(
        encoder=EncoderSettings(name="resnet18", weights="none", kwargs={"channels": [8, 8, 8, 8], **kwargs}),
        attention=AttentionSettings(dim=dim, n_heads=n_heads, dropout=dropout),
        selection=SelectionSettings(memory_size=5, chunk_size=3, context=context),
        tile=TileSpec(size_px=32, mpp=1.0),
        tasks=tasks,
    )


@pytest.fixture
def make_classifier() -> Callable[..., IPSClassifier]:
    """Return a maker of seeded tiny classifiers in eval mode."""

    def make(seed: int = 0, **options: Any) -> IPSClassifier:
        torch.manual_seed(seed)
        settings = tiny_settings(**options)
        classifier = IPSClassifier(build_encoder(settings.encoder, 32), settings)
        for name, parameter in classifier.named_parameters():
            # timm starts the last norm of a block at zero, which would switch the block off
            if name.endswith("weight") and parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        return classifier.eval()

    return make


@pytest.fixture
def tiles() -> torch.Tensor:
    """Seven noisy tiles (7, 32, 32, 3) uint8, each with a brightness of its own."""
    generator = torch.Generator().manual_seed(7)
    base = torch.linspace(30, 220, 7).view(7, 1, 1, 1)
    noise = torch.randint(-30, 30, (7, 32, 32, 3), generator=generator)
    return (base + noise).clamp(0, 255).to(torch.uint8)
