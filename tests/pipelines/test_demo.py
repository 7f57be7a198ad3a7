"""The demo keeps its promise: from slide labels alone it labels slides and finds the lesions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from wsi_ips.errors import ConfigError
from wsi_ips.training.demo import run_demo


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_learns_slides_and_lesions_from_slide_labels(tmp_path: Path) -> None:
    """Slides, lesions by attention and by evidence, deletion; files to open. Figures: docs/demo-learnability.md."""
    geopandas = pytest.importorskip("geopandas")
    text = run_demo(tmp_path / "demo", seed=0)
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["n_test"] == 40
    assert metrics["slide_auroc"] >= 0.95
    assert metrics["slide_auroc_ci"][0] <= metrics["slide_auroc"] <= metrics["slide_auroc_ci"][1]
    assert metrics["tile_auroc"] >= 0.95
    assert metrics["evidence_auroc"] >= 0.90
    assert metrics["deletion_evidence"] >= 3 * metrics["deletion_random"]
    assert metrics["n_deletion"] >= 12
    assert "finetune" in text
    page = (tmp_path / "demo" / "index.html").read_text()
    assert "run/slides/" in page
    assert (tmp_path / "demo" / "model" / "model.safetensors").is_file()
    found = sorted((tmp_path / "demo" / "run" / "slides").glob("*/*.attention.geojson.gz"))
    assert len(found) == 40
    for path in found:
        (tmp_path / "x.geojson").write_bytes(gzip.decompress(path.read_bytes()))
        frame = geopandas.read_file(tmp_path / "x.geojson")
        assert len(frame) > 100
        assert frame.geometry.is_valid.all()


def test_a_folder_that_is_no_demo_is_not_replaced(tmp_path: Path) -> None:
    """Somebody's files stay."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="give another folder"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
