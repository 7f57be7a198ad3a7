"""A model whose answers are known: a tiny convolutional network that sees darkness and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wsi_ips.config import ModelSettings, SelectionSettings, TaskSettings, TileSpec, TissueSettings
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import Architecture, Encoder
from wsi_ips.slide.arrayslide import ArraySlide

SIDE = 64
TISSUE = (205, 120, 180)
DARK = (40, 20, 70)


class DarkNet(nn.Module):
    """Darkness of each px above that of tissue, averaged by strided convolutions that pad on both sides."""

    num_features = 4

    def __init__(self, n_strides: int = 3) -> None:
        super().__init__()
        self.n_strides = n_strides

    def forward_features(self, x: Tensor) -> Tensor:
        dark = torch.relu(0.4 - x.mean(1, keepdim=True)).expand(-1, 4, -1, -1)  # tissue is 0.66
        dark = dark * torch.tensor([1.0, 0.0, 0.0, 0.5]).view(1, 4, 1, 1)
        kernel = torch.full((4, 1, 3, 3), 1.0 / 9.0)
        for _ in range(self.n_strides):
            dark = torch.nn.functional.conv2d(dark, kernel, stride=2, padding=1, groups=4)
        return dark

    def forward_head(self, x: Tensor) -> Tensor:
        return 40.0 * x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def dark_classifier(n_strides: int = 3, tasks: tuple[TaskSettings, ...] = (TaskSettings(classes=("no", "yes")),)) -> IPSClassifier:
    """A classifier of one head that attends to darkness: 2 nats for a unit of it."""
    torch.manual_seed(0)
    settings = ModelSettings(
        selection=SelectionSettings(memory_size=8, chunk_size=16), tile=TileSpec(size_px=SIDE, mpp=1.0), tasks=tasks,
        tissue=TissueSettings(method="whole"),
    ).replace(attention={"dim": 4, "n_heads": 1})  # fmt: skip
    architecture = Architecture("dark", {}, 3, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    classifier = IPSClassifier(Encoder(DarkNet(n_strides), architecture), settings).eval()
    with torch.no_grad():
        for query in classifier.attention.query:
            query.copy_(torch.randn(4))
        unit = classifier.head_logits(torch.tensor([[1.0, 0.0, 0.0, 0.5]]))[0, :, 0]  # (T,)
        classifier.attention.query *= (2.0 / unit)[:, None]
        classifier.attention.to_out.weight *= 10.0
    return classifier


def dark_bundle(digest: str = "d" * 64) -> Bundle:
    """The classifier as an opened bundle."""
    classifier = dark_classifier()
    return Bundle(classifier.settings, classifier, digest, {})


def tissue_slide(*squares: tuple[int, int, int], width: int = 12 * SIDE, height: int = 8 * SIDE) -> ArraySlide:
    """Plain tissue with dark squares (x0, y0, side), level-0 px; 1 µm a px."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = TISSUE
    for x0, y0, side in squares:
        pixels[y0 : y0 + side, x0 : x0 + side] = DARK
    return ArraySlide(pixels, mpp=1.0, name="planted")
