"""The three uses as programs, on the public names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def _program(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines" / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_finetune_then_classify_then_draw(cohort: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    """A cohort becomes a bundle, the bundle labels the cohort, a slide's attention becomes a picture."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    done = _program("finetune_cohort.py", cohort, "--out", tmp_path / "model", "--config", tmp_path / "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "test slides" in done.stdout
    slide = sorted((cohort.parent / "slides").glob("*.tif"))[0]
    done = _program("attention_heatmaps.py", slide, "--model", tmp_path / "model", "--out", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "one.csv").write_text(f"slide_path\n{slide}\n")
    config = ROOT / "pipelines" / "configs" / "classify.yaml"
    words = ["--model", tmp_path / "model", "--out", tmp_path / "run", "--config", config]
    done = _program("classify_slides.py", tmp_path / "one.csv", *words)
    assert done.returncode == 0, done.stderr
    assert "1 ok" in done.stdout


def test_wrong_input_is_a_sentence_and_exit_2(tmp_path: Path) -> None:
    """No traceback for a manifest that is not there or a setting that does not exist."""
    (tmp_path / "bad.yaml").write_text("n_reader: 3\n")
    (tmp_path / "m.csv").write_text("slide_path\n")
    for config, said in (
        (tmp_path / "bad.yaml", "did you mean 'n_readers'"),
        (ROOT / "pipelines/configs/classify.yaml", "m.csv"),
    ):
        done = _program(
            "classify_slides.py", tmp_path / "m.csv", "--model", tmp_path, "--out", tmp_path / "r", "--config", config
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
