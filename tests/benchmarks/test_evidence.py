"""Time of evidence and faithfulness against m: a read-out with leave-one-out of every tile, and all 22 x C x 2 subsets."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from wsi_ips.config import AttentionSettings, EncoderSettings, ModelSettings, TaskSettings
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.faithful import measure_faithfulness
from wsi_ips.model.features import FeatureInput


@pytest.mark.benchmark
@pytest.mark.parametrize("m", [64, 512, 5000])
def test_seconds_of_evidence(m: int) -> None:
    """Print a row of the table: label alone, label with evidence, faithfulness; median and range of 5, in turn."""
    torch.manual_seed(0)
    settings = ModelSettings(encoder=EncoderSettings(name="features", width=512),
                             attention=AttentionSettings(dim=512, n_heads=8),
                             tasks=(TaskSettings(classes=("no", "yes")),))  # fmt: skip
    classifier = IPSClassifier(FeatureInput(512), settings).eval()
    bag = torch.randn(m, 512)
    attention = classifier.head_logits(bag).softmax(0).mean(2).detach().numpy()
    label, evidence, faithful = [], [], []
    head = classifier.double_head()
    for _ in range(5):
        start = time.perf_counter()
        head.label(bag)
        label.append(time.perf_counter() - start)
        start = time.perf_counter()
        found = classifier.read_out(bag)
        evidence.append(time.perf_counter() - start)
        start = time.perf_counter()
        measure_faithfulness(classifier, bag.numpy(), None, attention, found.evidence, found.outputs)
        faithful.append(time.perf_counter() - start)
    cells = " | ".join(f"{statistics.median(s):.3f} ({min(s):.3f}-{max(s):.3f})" for s in (label, evidence, faithful))
    print(f"\n| m = {m}, D = 512, H = 8, one task | label {cells} s (label, with evidence, faithfulness) |")
