"""Which engine encodes: asked for or chosen, recorded with the run, and kept to when the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsi_ips.engine import environment
from wsi_ips.engine.classify import ClassifyOptions, classify
from wsi_ips.engine.environment import choose_engine
from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.errors import ConfigError
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import load_bundle
from wsi_ips.model.engines import use_engine
from wsi_ips.slide.reader import open_slide


def _machine(monkeypatch: pytest.MonkeyPatch, flags: list[str], *, has_openvino: bool) -> None:
    monkeypatch.setattr(environment, "cpu_flags", lambda: flags)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object() if has_openvino else None)


def test_auto_takes_what_is_fastest_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO where it is installed and the CPU has bfloat16; what an unfinished run began with comes first."""
    _machine(monkeypatch, ["avx2", "avx512_bf16"], has_openvino=True)
    assert choose_engine("auto", "cpu") == "openvino"
    assert choose_engine("auto", "cpu", "torch") == "torch"
    assert choose_engine("auto", "cuda:1", "openvino") == "cuda"
    assert choose_engine("torch", "cpu", "openvino") == "torch"
    _machine(monkeypatch, ["avx2"], has_openvino=True)
    assert choose_engine("auto", "cpu") == "torch"
    assert choose_engine("openvino", "cpu") == "openvino"
    assert choose_engine("auto", "mps") == "torch"


def test_an_engine_that_is_not_there_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a run that began with it is started again elsewhere."""
    _machine(monkeypatch, ["amx_bf16"], has_openvino=False)
    assert choose_engine("auto", "cpu") == "torch"
    for asked, before in (("openvino", ""), ("auto", "openvino")):
        with pytest.raises(ConfigError, match=r'not installed; pip install "wsi-ips\[fast\]", or --engine torch'):
            choose_engine(asked, "cpu", before)
    with pytest.raises(ConfigError, match="computes on the CPU"):
        choose_engine("openvino", "cuda:0")
    with pytest.raises(ConfigError, match="expected auto, torch, openvino, module"):
        choose_engine("fast", "cpu")


@pytest.mark.slow
def test_a_run_names_its_engine_and_keeps_to_it(cohort: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """run.json and each slide's record say which; a second start with auto goes on with the same."""
    slides = load_manifest(cohort)
    for engine in ("torch", "auto"):
        classify(slides, str(tiny_bundle), tmp_path / "run", ClassifyOptions(engine=engine, cache="off", limit=1, quiet=True))
        facts = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (facts["engine"], facts["options"]["engine"]) == ("torch", engine)
    state = next((tmp_path / "run" / "slides").glob("*/state.json"))
    assert json.loads(state.read_text())["engine"] == "torch"


def test_openvino_and_torch_select_and_label_alike(cohort: Path, tiny_bundle: Path) -> None:
    """A whole slide: the same top M, probabilities within 0.005."""
    pytest.importorskip("openvino")
    bundle, found = load_bundle(tiny_bundle), []
    path = str(next((cohort.parent / "slides").glob("*.tif")))
    for engine in ("torch", "openvino"):
        use_engine(bundle.classifier, engine)
        with open_slide(path) as slide:
            found.append(predict_slide(slide, bundle, PredictJob("s")))
    torchs, openvinos = found
    assert abs(float(torchs.outputs[0]) - float(openvinos.outputs[0])) < 0.02  # a logit: a probability within 0.005
    assert len(set(torchs.selected) & set(openvinos.selected)) >= 0.99 * len(torchs.selected)
