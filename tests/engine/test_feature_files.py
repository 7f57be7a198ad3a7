"""Slides given as embeddings that another tool has made: what is taken, what is refused, and what comes out."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine import worker as worker_module
from wsi_ips.engine.featurefiles import FeatureFile, read_feature_file
from wsi_ips.engine.predict import PredictJob, label_features, predict_slide
from wsi_ips.engine.worker import SlideWorker
from wsi_ips.errors import ManifestError, ModelError, UnreadableSlideError
from wsi_ips.manifest import load_manifest, manifest_of_slide
from wsi_ips.model.bundle import Bundle, load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.features import FeatureInput
from wsi_ips.results import ledger_bytes, read_ledger
from wsi_ips.slide.arrayslide import ArraySlide

N, W = 45, 12


def _features(seed: int = 0, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, W)).astype(np.float32)


def _write(path: Path, features: Any, coords: Any = None, **attributes: Any) -> Path:
    with h5py.File(path, "w") as f:
        f.create_dataset("features", data=features)
        if coords is not None:
            f.create_dataset("coords", data=coords).attrs.update(attributes)
    return path


@pytest.fixture(scope="module")
def model(tiny_settings: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained bundle that takes features of width 12."""
    settings = tiny_settings.replace(encoder={"name": "features", "width": W})
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("features") / "model"
    save_bundle(folder, IPSClassifier(FeatureInput(W), settings), settings, card="# features")
    return folder


@pytest.fixture(scope="module")
def bundle(model: Path) -> Bundle:
    return load_bundle(model)


def test_features_too_have_evidence_in_the_whole_bag(bundle: Bundle) -> None:
    """Asked for, every vector has one; of the selected alone, nothing else changes."""
    given = FeatureFile("a.h5", _features(), None, None)
    plain, found = (label_features(given, bundle, PredictJob("s", with_bag=w)).prediction for w in (False, True))
    assert plain.bag_evidence is None
    assert found.bag_evidence is not None
    assert found.bag_evidence.shape == (N, 1)
    assert np.array_equal(plain.outputs, found.outputs)


@pytest.mark.parametrize("shape", [(N, W), (1, N, W)])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_hdf5_of_either_rank_and_any_float_is_read(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    """Rows are tiles, whatever the tool put around them."""
    wanted = _features().astype(kind)
    found = read_feature_file(_write(tmp_path / "a.h5", wanted.reshape(shape)))
    assert found.embeddings.dtype == np.float32
    assert np.array_equal(found.embeddings, wanted.astype(np.float32))
    assert (found.coords, found.extent0) == (None, None)


@pytest.mark.parametrize(
    ("attributes", "extent0"),
    [
        ({"patch_size_level0": 512, "patch_size": 256}, (512.0, 512.0)),  # TRIDENT
        ({"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)}, (1024.0, 1024.0)),  # CLAM
        ({"patch_size": 256}, None),
        ({"patch_size_level0": float("nan")}, None),
    ],
)
def test_places_and_extent_are_those_of_the_file(tmp_path: Path, attributes: dict[str, Any], extent0: Any) -> None:
    """Coordinates are level-0 px; how wide a tile is stands in the attributes of either tool, or is not known."""
    coords = np.arange(2 * N).reshape(1, N, 2)
    found = read_feature_file(_write(tmp_path / "a.hdf5", _features()[None], coords, **attributes))
    assert found.coords is not None
    assert np.array_equal(found.coords, coords[0])
    assert found.coords.dtype == np.int64
    assert found.extent0 == extent0


def test_a_tensor_is_read(tmp_path: Path) -> None:
    """One tensor, bfloat16 too."""
    torch.save(torch.from_numpy(_features()).bfloat16(), tmp_path / "a.pt")
    found = read_feature_file(tmp_path / "a.pt")
    assert np.allclose(found.embeddings, _features(), rtol=1e-2)


class _Harmful:
    """A pickle that would write a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _with_hole() -> np.ndarray:
    features = _features()
    features[7, 3] = np.nan
    return features


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.h5", np.zeros(W, np.float32), r"features of shape \(12,\); expected 'features' of shape \(n, width\)"),
        ("a.h5", np.zeros((2, N, W), np.float32), r"shape \(2, 45, 12\)"),
        ("a.h5", np.zeros((0, W), np.float32), "the file is empty"),
        ("a.h5", np.zeros((N, W), np.int64), "features of type int64"),
        ("a.h5", _with_hole(), "row 7 of features holds numbers that are not finite"),
        ("a.h5", np.full((3, W), 1e300), "row 0 of features holds numbers that are not finite"),
        ("a.pt", {"features": torch.zeros(2, 2)}, "holds a dict, not one tensor; save one tensor"),
        ("a.pt", torch.zeros(2, 2, dtype=torch.int64), "torch.int64"),
        ("a.pt", torch.zeros(5), r"shape \(5,\)"),
        ("a.npz", torch.zeros(2, 2), r"a file ending in .npz; give .h5, .hdf5 or .pt"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_was_found(tmp_path: Path, name: str, content: Any, said: str) -> None:
    """The sentence names the file, what it holds and the cure."""
    path = tmp_path / name
    if path.suffix == ".h5":
        _write(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(UnreadableSlideError, match=rf"E_FEATURES: {name}: .*{said}"):
        read_feature_file(path)


def test_other_faults_of_a_file_are_refused(tmp_path: Path) -> None:
    """No such file, no such dataset, torn, coordinates that do not fit, more tiles than allowed."""
    with pytest.raises(UnreadableSlideError, match=r"E_NO_FEATURES: x.h5: no such file of features"):
        read_feature_file(tmp_path / "x.h5")
    with h5py.File(tmp_path / "feats.h5", "w") as f:
        f.create_dataset("feats", data=_features())
    with pytest.raises(UnreadableSlideError, match=r"no dataset 'features' \(found: feats\)"):
        read_feature_file(tmp_path / "feats.h5")
    whole = _write(tmp_path / "whole.h5", _features()).read_bytes()
    for name in ("torn.h5", "torn.pt"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UnreadableSlideError, match=f"E_FEATURES: {name}"):
            read_feature_file(tmp_path / name)
    with pytest.raises(UnreadableSlideError, match=r"coords of shape \(3, 2\) for 45 features"):
        read_feature_file(_write(tmp_path / "c.h5", _features(), np.zeros((3, 2))))
    for wrong in (0.5, np.nan):
        with pytest.raises(UnreadableSlideError, match="coords that are no whole numbers"):
            read_feature_file(_write(tmp_path / "c.h5", _features(), np.full((N, 2), wrong)))
    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD: whole\.h5: features of 45 tiles; more than 44"):
        read_feature_file(tmp_path / "whole.h5", max_tiles=44)


def test_no_file_of_features_runs_code(tmp_path: Path) -> None:
    """A pickle that would act is refused before it does."""
    torch.save(_Harmful(tmp_path / "harm"), tmp_path / "a.pt")
    with pytest.raises(UnreadableSlideError, match="is not one plain tensor"):
        read_feature_file(tmp_path / "a.pt")
    assert not (tmp_path / "harm").exists()


def test_the_label_is_that_of_the_features_and_nothing_is_rounded(bundle: Bundle) -> None:
    """Logits are the head's own on the float32 numbers; tiles are numbered where the file gives no places."""
    features = FeatureFile("a.h5", _features(), None, None)
    p = read_ledger(ledger_bytes(label_features(features, bundle, PredictJob("s")).prediction))
    direct = bundle.classifier.scan(features.embeddings, 16)
    assert np.array_equal(p.logits, direct.logits)
    assert np.array_equal(p.values, direct.features[p.selected])
    assert np.array_equal(p.coords, np.column_stack([np.arange(N), np.zeros(N)]))
    assert np.array_equal(bundle.classifier.read_out(p.values).outputs, p.outputs)
    assert np.isnan(p.mpp.x)
    assert np.isnan(p.tissue_mm2)


def test_tiles_on_a_slide_have_the_width_of_the_file(bundle: Bundle) -> None:
    """64 level-0 px at 2 µm/px are 128 µm, whatever tiles the settings name."""
    coords = np.column_stack([np.arange(N) * 64, np.zeros(N, np.int64)])
    features = FeatureFile("a.h5", _features(), coords, (64.0, 64.0))
    slide = ArraySlide(np.full((70, 64 * N, 3), 243, np.uint8), mpp=2.0)
    p = label_features(features, bundle, PredictJob("s"), slide).prediction
    assert p.tile.size_px * p.tile.mpp == pytest.approx(128.0)
    assert np.array_equal(p.coords, coords)
    assert (p.extent0, p.size0, p.mpp.x) == ((64.0, 64.0), (64 * N, 70), 2.0)


def test_a_model_of_features_and_a_slide_refuse_each_other(bundle: Bundle, tiny_bundle: Path) -> None:
    """Another width, pixels for a model of features, features for a model of pixels."""
    other = FeatureFile("b.h5", np.zeros((4, W + 1), np.float32), None, None)
    with pytest.raises(UnreadableSlideError, match=r"E_FEATURES: b.h5: features of width 13, the model takes 12"):
        label_features(other, bundle, PredictJob("s"))
    with pytest.raises(ModelError, match="column features_path"):
        predict_slide(ArraySlide(np.zeros((9, 8, 3), np.uint8)), bundle, PredictJob("s"))
    with pytest.raises(ModelError, match="takes slides"):
        label_features(other, load_bundle(tiny_bundle), PredictJob("s"))


def test_a_manifest_of_features_needs_no_slides(tmp_path: Path) -> None:
    """An id and features_path are a row; a slide that is gone is no problem, a file of features that is gone is one."""
    h5 = str(_write(tmp_path / "a.h5", _features()))
    path = tmp_path / "m.csv"
    path.write_text("slide_id,slide_path,features_path\n,,a.h5\nb,gone.svs,a.h5\nc,,a.h5\nd,,\n")
    records = load_manifest(path, features=True).records
    assert [(r.slide_id, r.slide_path, r.features_path) for r in records] == [
        ("a", "", h5), ("b", str(tmp_path / "gone.svs"), h5), ("c", "", h5), ("d", "", None)]  # fmt: skip
    with pytest.raises(ManifestError, match=r"line 3, column 'slide_path': no such file"):
        load_manifest(path)
    path.write_text("slide_id,features_path,label\na,gone.h5,x\n,,x\n")
    with pytest.raises(ManifestError, match=r"line 2, column 'features_path': no such file(.|\n)*line 3, .*is empty"):
        load_manifest(path, features=True)
    single = manifest_of_slide(h5, features=True).records[0]
    assert (single.slide_id, single.slide_path, single.features_path) == ("a", "", h5)


def _cli(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsi_ips.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def run(model: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Features with places on a slide, a tensor without, none, and some of another width."""
    folder = tmp_path_factory.mktemp("run")
    slide = sorted((cohort.parent / "slides").glob("*.tif"))[0]
    coords = np.stack(np.meshgrid(np.arange(9) * 256, np.arange(5) * 256), -1).reshape(-1, 2)
    _write(folder / "a.h5", _features(1), coords, patch_size_level0=256)
    torch.save(torch.from_numpy(_features(2)), folder / "b.pt")
    _write(folder / "d.h5", np.zeros((4, W + 1), np.float32))
    (folder / "m.csv").write_text(
        f"slide_id,slide_path,features_path,label\na,{slide},a.h5,x\nb,,b.pt,y\nc,{slide},,x\nd,,d.h5,y\n"
    )
    return folder / "run", _cli("classify", folder / "m.csv", "--model", model, "--out", folder / "run")


def test_a_batch_of_features_is_labelled_drawn_and_explained(run: tuple[Path, Any], bundle: Bundle) -> None:
    """One row a slide; the slide that can be opened has its map, the other a page that says why there is none."""
    out, done = run
    assert done.returncode == 1, done.stderr
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as f:
        rows = {row["slide_id"]: row for row in csv.DictReader(f)}
    assert {k: (r["status"], r["reason"], r["n_tiles"]) for k, r in rows.items()} == {
        "a": ("ok", "", "45"), "b": ("ok", "", "45"), "c": ("failed", "E_NO_FEATURES", ""), "d": ("failed", "E_FEATURES", ""),
    }  # fmt: skip
    assert "fill the manifest's column features_path" in rows["c"]["message"]
    assert (rows["b"]["mpp"], rows["b"]["tissue_mm2"], rows["b"]["reader"]) == ("", "", "features file")
    for name, seed in (("a", 1), ("b", 2)):
        p = read_ledger(out / "slides" / name / f"{name}.ledger.h5")
        wanted = label_features(FeatureFile("x", _features(seed), None, None), bundle, PredictJob("s")).prediction
        assert np.array_equal(p.outputs, wanted.outputs)
    assert {"a.overlay.png", "a.report.html", "a.top_tiles.png"} <= {f.name for f in (out / "slides" / "a").iterdir()}
    assert {f.name for f in (out / "slides" / "b").iterdir()} == {"b.ledger.h5", "b.report.html", "state.json"}
    page = (out / "slides" / "b" / "b.report.html").read_text()
    assert "labelled from" in page
    assert "b.pt does not say where its tiles lie" in page


@pytest.mark.slow
def test_a_run_from_features_is_kept_and_drawn_again(run: tuple[Path, Any], model: Path) -> None:
    """The same command keeps what is done; `heatmap` draws what has a slide and says what has none."""
    out, _ = run
    before = (out / "slides" / "a" / "state.json").read_bytes()
    again = _cli("classify", out.parent / "m.csv", "--model", model, "--out", out)
    assert "a: ok (kept)" in again.stderr
    assert (out / "slides" / "a" / "state.json").read_bytes() == before
    drawn = _cli("heatmap", out, "--scale", "percentile")
    assert "1 slides drawn, 1 could not be" in drawn.stdout
    assert "b was labelled from features, without places on a slide" in drawn.stderr


def test_another_file_of_features_is_another_slide(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One changed byte anywhere in the file makes a finished slide stale; squares cannot be asked for."""
    path = _write(tmp_path / "a.h5", _features())
    with h5py.File(path, "r+") as f:
        f.create_dataset("other", data=np.zeros(2_000_000, np.uint8))  # more than the samples of a fingerprint cover
    monkeypatch.setattr(worker_module, "make_deterministic", lambda threads: None)  # which would last
    cache = {"place": "off", "strict": False}
    setup: dict[str, Any] = {
        "model": str(model), "out": str(tmp_path / "o"), "read": ReadSettings().model_dump(), "allow_mismatch": True,
        "engine": {"name": "torch", "or_torch": False}, "machine": {"threads": 1, "device": "cpu"}, "cache": cache,
    }  # fmt: skip
    worker = SlideWorker(tile=None, **setup)
    payload = {"slide_id": "a", "patient_id": "a", "slide_path": "", "features_path": str(path), "mpp": None,
               "mask_path": None, "identity": {}, "retry_failed": False}  # fmt: skip
    first = worker.work(payload, lambda *_: None)
    assert worker.work(payload, lambda *_: None).get("kept")
    with h5py.File(path, "r+") as f:
        f["other"][100_000] += 1
    second = worker.work(payload, lambda *_: None)
    assert (first["status"], second["status"], second.get("kept")) == ("ok", "ok", None)
    assert first["identity"]["file"] != second["identity"]["file"]
    assert json.loads((tmp_path / "o" / "slides" / "a" / "state.json").read_text())["n_encoded"] == 0
    with pytest.raises(ValueError, match="this model takes features, so there are no tiles to cut"):
        SlideWorker(tile={"size_px": 32, "mpp": 2.0, "overlap_px": 0}, **setup)
