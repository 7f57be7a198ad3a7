"""The benchmark programs: data laid out as said, folds without leaks, figures that arithmetic agrees with."""

from __future__ import annotations

import csv
import importlib
import io
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_ips import FinetuneSettings, load_manifest, load_settings, open_slide

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("crc_nuclei", "idc_mosaics", "tcga_bags")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a program of the folder by name, as Python does when it is started there."""
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    return importlib.import_module


def _png(tile: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(tile).save(out, "PNG")
    return out.getvalue()


def _scored(program: Any, slide: str, is_positive: bool, output: float, attention: list[float]) -> Any:
    coords = np.stack([np.arange(len(attention)) * 32, np.zeros(len(attention), int)], axis=1)
    best = np.argsort(-np.array(attention), kind="stable")[:3]  # evidence is the other way round
    evidence = -np.array(attention)[best]
    return program("benchmarking").Scored(slide, slide, is_positive, output, coords, np.array(attention), best, evidence)


def _truth(*kinds: bool) -> dict[tuple[int, int], bool]:
    return {(32 * i, 0): kind for i, kind in enumerate(kinds)}


@pytest.fixture
def nuclei(tmp_path: Path) -> Path:
    """A data folder of four images with 9, 4, 1 and 6 crops, each of one colour of its own; images 2 and 7 are positive."""
    bags = {"2": "eeeffiiio", "5": "ffio", "7": "e", "11": "iiiiff"}
    kinds = {"e": "epithelial", "f": "fibroblast", "i": "inflammatory", "o": "others"}
    folder = tmp_path / "data" / "crc_nuclei"
    folder.mkdir(parents=True)
    rows, n = [], 0
    with zipfile.ZipFile(folder / "crc_nuclei.zip", "w") as archive:
        for image, letters in bags.items():
            for letter in letters:
                path, n = f"img{image}/{n}.png", n + 1
                archive.writestr(path, _png(np.full((32, 32, 3), (n, 100, ord(letter)), np.uint8)))
                rows.append({"path": path, "image": image, "class": kinds[letter]})
    with (folder / "crc_nuclei.csv").open("w", newline="") as out:
        table = csv.DictWriter(out, ["path", "image", "class"])
        table.writeheader()
        table.writerows(rows)
    return tmp_path / "data"


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_settings_of_a_program_are_valid(name: str) -> None:
    """Every config loads, learns from whole bags, and its tiles are what the mosaic's plan asks for."""
    settings = load_settings(FinetuneSettings, ROOT / "pipelines" / "configs" / f"{name}.yaml")
    most = settings.model.selection.memory_size * settings.train.elastic
    assert most >= {"crc_nuclei": 796, "idc_mosaics": 120, "tcga_bags": 254}[name]
    if name == "tcga_bags":
        assert (settings.model.encoder.name, settings.model.encoder.width) == ("features", 192)
    else:
        assert settings.model.tissue.method == "whole"
        assert settings.model.encoder.weights == "none"


@pytest.mark.parametrize("name", ["crc_nuclei", "idc_mosaics"])
def test_settings_and_mosaic_agree(program: Any, tmp_path: Path, name: str) -> None:
    """The tile size, resolution and tissue of the config are those that give a mosaic's tiles back."""
    from wsi_ips import make_mosaic

    module = program(name)
    model = load_settings(FinetuneSettings, ROOT / "pipelines" / "configs" / f"{name}.yaml").model
    tile = np.zeros((module.TILE_PX, module.TILE_PX, 3), np.uint8)
    plan = make_mosaic(tmp_path / "m.tif", [tile], tile_px=module.TILE_PX, mpp=module.MPP)
    assert plan.settings == (model.tile, model.tissue)


@pytest.mark.parametrize("name", ["crc_nuclei", "idc_mosaics"])
def test_the_encoder_of_a_config_can_be_built(name: str) -> None:
    """timm knows the name and its arguments, and the tile is not too small for it."""
    from wsi_ips.model.encoder import build_encoder

    model = load_settings(FinetuneSettings, ROOT / "pipelines" / "configs" / f"{name}.yaml").model
    assert build_encoder(model.encoder, model.tile.size_px, offline=True).width == 128


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_missing_data_folder_is_a_sentence_and_exit_2(
    program: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 2, and the cure is named."""
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "work"), "--data", str(tmp_path)])
    assert program(name).main() == 2
    assert "--data" in capsys.readouterr().err


def test_folds_keep_patients_whole_and_kinds_even(program: Any) -> None:
    """Every group has one fold; of each kind no fold has more than one beyond another; the seed decides."""
    groups = {f"p{i}": i % 3 == 0 for i in range(50)}
    fold = program("benchmarking").deal_folds(groups, 5, seed=1)
    assert fold.keys() == groups.keys()
    for kind in (True, False):
        counts = Counter(fold[g] for g, k in groups.items() if k == kind)
        assert len(counts) == 5
        assert max(counts.values()) - min(counts.values()) <= 1
    assert fold != program("benchmarking").deal_folds(groups, 5, seed=2)


def test_a_baseline_never_sees_the_labels_of_its_fold(program: Any) -> None:
    """Turning all labels of one fold round changes the scores of the others and none of its own."""
    rng = np.random.default_rng(0)
    y, folds = np.arange(40) % 2 == 0, np.arange(40) // 8
    features = rng.normal(size=(40, 3)) + 3.0 * y[:, None]
    scores = program("benchmarking").linear_scores(features, y, folds)
    assert program("benchmarking").auroc(y, scores) == 1.0
    turned = program("benchmarking").linear_scores(features, np.where(folds == 2, ~y, y), folds)
    assert np.array_equal(turned[folds == 2], scores[folds == 2])
    assert not np.allclose(turned[folds == 1], scores[folds == 1])


def test_each_slide_is_scored_by_models_that_did_not_learn_from_it(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fit scores its own test slides alone; results come by seed, in the order of the rows."""
    benchmarking = program("benchmarking")
    rows = [{"slide_id": s, "fold": f, "label": "x"} for s, f in zip("abcdef", "102021", strict=True)]

    def fit(seed: int, fold: str) -> SimpleNamespace:
        test = [SimpleNamespace(record=SimpleNamespace(slide_id=r["slide_id"])) for r in reversed(rows) if r["fold"] == fold]
        job = SimpleNamespace(cohort=SimpleNamespace(test=test), train=SimpleNamespace(seed=seed))
        return SimpleNamespace(job=job, model=tmp_path / f"{seed}{fold}" / "model")

    fits = [fit(seed, fold) for seed in (0, 1) for fold in "012"]
    monkeypatch.setattr(benchmarking, "_finetune", lambda *_: SimpleNamespace(fits=fits))
    monkeypatch.setattr(benchmarking, "_score", lambda judged, model, *_: [
        _scored(program, r["slide_id"], True, float(model.parent.name), [1.0]) for r in judged
    ])  # fmt: skip
    found = benchmarking.cross_validate(rows, tmp_path, FinetuneSettings(), positive="x", seed=0, n_seeds=2)
    assert [[s.slide_id for s in one] for one in found] == [list("abcdef")] * 2
    assert [s.output for s in found[0]] == [1.0, 0.0, 2.0, 0.0, 2.0, 1.0]
    assert [s.output for s in found[1]] == [11.0, 10.0, 12.0, 10.0, 12.0, 11.0]


def test_attention_is_held_against_the_tiles_truth(program: Any) -> None:
    """AUROCs of two positive slides are what counting pairs gives; pooled attention is relative to uniform."""
    runs = [
        _scored(program, "a", True, 1.0, [0.1, 0.5, 0.2, 0.2]),
        _scored(program, "b", False, 0.0, [0.5, 0.5]),
        _scored(program, "c", True, 2.0, [0.7, 0.3]),
        _scored(program, "d", True, 2.0, [0.4, 0.6]),
    ]
    truth = {
        "a": _truth(False, True, True, False),
        "b": _truth(False, False),
        "c": _truth(False, True),
        "d": _truth(True, True),
    }
    each, pooled, is_hit = program("benchmarking").attention_aurocs(runs, truth)
    assert each[0] == pytest.approx(3.5 / 4)
    assert each[2] == 0.0
    assert np.isnan(each[[1, 3]]).all()
    assert pooled.tolist() == pytest.approx([0.4, 2.0, 0.8, 0.8, 1.4, 0.6, 0.8, 1.2])
    assert is_hit.tolist() == [False, True, True, False, False, True, True, True]


def test_a_tile_that_was_never_laid_is_an_error(program: Any) -> None:
    """Attention on another grid than the mosaic's cannot be judged."""
    benchmarking: ModuleType = program("benchmarking")
    from wsi_ips import WsiIpsError

    with pytest.raises(WsiIpsError, match=r"a: no tile was laid at \(64, 0\)"):
        benchmarking.attention_aurocs([_scored(program, "a", True, 0.0, [0.3, 0.3, 0.4])], {"a": _truth(True, False)})


def test_nuclei_become_slides_of_one_image_each(program: Any, nuclei: Path, tmp_path: Path) -> None:
    """Every crop lies once on its image's slide, in an order that does not tell the class; truth names its corner."""
    crc = program("crc_nuclei")
    rows, truth = crc.prepare(nuclei, tmp_path / "work")
    assert [r["patient_id"] for r in rows] == ["img002", "img005", "img007", "img011"]
    assert [r["label"] for r in rows] == ["positive", "negative", "positive", "negative"]
    assert {k: len(v) for k, v in truth.items()} == {"img002": 9, "img005": 4, "img007": 1, "img011": 6}
    kinds = [truth["img002"][corner] for corner in sorted(truth["img002"], key=lambda c: (c[1], c[0]))]
    assert sum(kinds) == 3
    assert kinds != sorted(kinds, reverse=True)
    records = load_manifest(tmp_path / "work" / "manifest.csv").records
    with open_slide(records[0].slide_path) as slide:
        assert slide.mpp.x == pytest.approx(0.5)
        for (x0, y0), is_epithelial in truth["img002"].items():
            pixels = slide.read_region(x0, y0, 0, 32, 32).pixels
            assert (pixels == pixels[0, 0]).all()
            assert (pixels[0, 0, 2] == ord("e")) == is_epithelial


def test_bag_features_of_plain_colours(program: Any) -> None:
    """Log size, means and spreads of R, G, B are arithmetic; pure haematoxylin has no eosin."""
    crc = program("crc_nuclei")
    tiles = np.stack([np.full((32, 32, 3), c, np.uint8) for c in ((100, 50, 20), (200, 50, 40))])
    found = crc.bag_features(tiles)
    assert found[:7] == pytest.approx([np.log(2), 150, 50, 30, 50, 0, 10])
    unit = crc._STAINS[0] / np.linalg.norm(crc._STAINS[0])
    stained = np.broadcast_to(np.round(256 * np.exp(-0.8 * unit) - 1).astype(np.uint8), (1, 32, 32, 3))
    assert crc.bag_features(stained)[7:] == pytest.approx([0.8, 0.0, 0.0], abs=0.02)


def test_bags_and_attention_are_judged_as_counted(program: Any) -> None:
    """Three of four pairs in order in one seed, all in the other; attention of the one positive bag that has both kinds."""
    crc = program("crc_nuclei")
    truth = {"a": _truth(True, False), "b": _truth(False), "c": _truth(True), "d": _truth(False)}

    def run(*outputs: float) -> list[Any]:
        bags = {"a": [0.9, 0.1], "b": [1.0], "c": [1.0], "d": [1.0]}
        return [_scored(program, s, s in "ac", o, bags[s]) for s, o in zip("abcd", outputs, strict=True)]

    found = crc.score([run(2.0, 1.0, 0.5, 0.0), run(2.0, 0.0, 1.0, 0.5)], truth)
    assert [found[f"bag_auroc_seed_{k}"]["value"] for k in (0, 1)] == [0.75, 1.0]
    assert found["bag_auroc"]["value"] == 0.875
    assert found["attention_auroc_mean_over_bags"]["value"] == 1.0
    assert found["attention_auroc_mean_over_bags"]["n"] == 1
    # tiles of both positive bags, relative attention 1.8, 0.2 and 1.0: both pairs in order
    assert found["attention_auroc_pooled_by_seed"] == [1.0, 1.0]
    assert found["evidence_auroc_mean_over_bags"] | {"low": 0, "high": 0} == {"value": 0.0, "low": 0, "high": 0, "n": 1}


def test_baselines_of_nuclei_name_the_shortcut(program: Any) -> None:
    """Where colour tells the label and size does not, the figures say so."""
    crc = program("crc_nuclei")
    rng = np.random.default_rng(3)
    rows = [{"slide_id": f"s{i}", "patient_id": f"s{i}", "label": ("negative", "positive")[i % 2]} for i in range(40)]
    features = rng.normal(size=(40, 10))
    features[:, 1] += 6.0 * (np.arange(40) % 2)
    found = crc.baselines(crc.with_folds(rows, 0), features)
    assert found["mean_colour_auroc"]["value"] > 0.95
    assert found["bag_size_auroc"]["value"] < 0.75


def _pool(n_normal: int, n_tumour: int) -> dict[bool, list[np.ndarray]]:
    """Tiles without symmetry: every turn and flip differs; the blue channel tells tumour."""
    rng = np.random.default_rng(n_normal)
    tiles = rng.integers(0, 200, (n_normal + n_tumour, 50, 50, 3), dtype=np.uint8)
    tiles[..., 2] = 0
    tiles[n_normal:, ..., 2] = 255
    return {False: list(tiles[:n_normal]), True: list(tiles[n_normal:])}


def test_a_positive_slide_has_a_few_tumour_tiles_and_none_twice(program: Any) -> None:
    """5 to 30 % of 60 to 120 tiles, as flagged; every tile differs; a negative slide has none."""
    idc = program("idc_mosaics")
    rng = np.random.default_rng(0)
    places = []
    for _ in range(20):
        tiles, is_tumour = idc.deal_slide(_pool(15, 5), rng, is_positive=True)
        assert 60 <= len(tiles) <= 120
        assert 0.05 * len(tiles) - 0.5 <= is_tumour.sum() <= 0.30 * len(tiles) + 0.5
        assert is_tumour.tolist() == [bool(t[0, 0, 2] == 255) for t in tiles]
        assert len({t.tobytes() for t in tiles}) == len(tiles)
        places.append(np.flatnonzero(is_tumour).mean() / len(tiles))
    assert 0.4 < np.mean(places) < 0.6
    tiles, is_tumour = idc.deal_slide(_pool(15, 5), rng, is_positive=False)
    assert not is_tumour.any()
    assert all(t[0, 0, 2] == 0 for t in tiles)


def test_a_patient_with_one_tumour_tile_still_gives_positive_slides(program: Any) -> None:
    """Eight turns of one tile are used first, then again; a small patient's slide is as large as its tiles allow."""
    idc = program("idc_mosaics")
    tiles, is_tumour = idc.deal_slide(_pool(8, 1), np.random.default_rng(2), is_positive=True)
    assert is_tumour.sum() >= 1
    assert len(tiles) <= 64


def test_classes_come_from_the_same_patients_and_splits_from_different_ones(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patient with tumour has as many positive as negative slides; no patient is on two sides; shares are nested."""
    idc = program("idc_mosaics")
    monkeypatch.setattr(idc, "N_TILES", (5, 9))
    pools = {f"p{i:02d}": _pool(9 + i, 0 if i == 7 else 3) for i in range(10)}
    rows, truth, colours = idc.prepare(pools, tmp_path)
    by_patient = {p: Counter(r["label"] for r in rows if r["patient_id"] == p) for p in pools}
    assert by_patient["p07"] == {"negative": 2}
    assert all(found == {"positive": 2, "negative": 2} for p, found in by_patient.items() if p != "p07")
    sides = {p: {r["split"] for r in rows if r["patient_id"] == p} for p in pools}
    assert Counter(side for (side,) in sides.values()) == {"train": 5, "val": 2, "test": 3}
    assert colours.shape == (len(rows), 6)
    assert all(any(truth[r["slide_id"]].values()) == (r["label"] == "positive") for r in rows)
    few, more = (idc.with_share(rows, share, seed=0) for share in (0.5, 1.0))
    assert [r for r in more if r in few] == few
    assert sum(r["split"] == "train" for r in few) < sum(r["split"] == "train" for r in more)
    assert sum(r["split"] != "train" for r in few) == sum(r["split"] != "train" for r in more)


def test_mosaics_are_judged_as_counted(program: Any) -> None:
    """Slide AUROC, attention by slide and pooled, under the name of the training."""
    idc = program("idc_mosaics")
    scored = [_scored(program, "a", True, 1.0, [0.7, 0.3]), _scored(program, "b", False, 2.0, [1.0]),
              _scored(program, "c", True, 3.0, [0.2, 0.8])]  # fmt: skip
    truth = {"a": _truth(True, False), "b": _truth(False), "c": _truth(True, False)}
    found = idc.score(scored, truth, "all")
    assert found["all_slide_auroc"]["value"] == 0.5
    assert found["all_attention_auroc_mean_over_slides"] | {"low": 0, "high": 0} == {
        "value": 0.5,
        "low": 0,
        "high": 0,
        "n": 2,
    }
    assert found["all_evidence_auroc_mean_over_slides"]["value"] == 0.5
    assert found["all_attention_auroc_pooled"] == 0.25  # relative: 1.4 and 0.6, 0.4 and 1.6


def test_a_model_is_held_against_the_baseline_on_the_same_slides(program: Any) -> None:
    """The difference of two AUROCs is theirs; a model that is the baseline differs by exactly nothing."""
    tcga = program("tcga_bags")
    rows = [{"label": ("LUAD", "LUSC")[i % 2], "fold": str(i % 5), "patient_id": f"p{i // 2}"} for i in range(60)]
    rng = np.random.default_rng(1)
    good, poor = (np.arange(60) % 2 * s + rng.normal(size=60) for s in (6.0, 0.3))
    found = tcga.compare(rows, good, poor)["auroc_difference"]
    assert found["value"] > 0.2
    assert found["low"] > 0.0
    same = tcga.compare(rows, poor, poor)["auroc_difference"]
    assert (same["value"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)


def test_real_sets_are_what_the_programs_expect(program: Any, shared_data: Path, tmp_path: Path) -> None:
    """498 lung bags of 457 patients in five folds by patient; 61 breast patients with enough tiles, 59 with tumour."""
    for name in ("idc_tiles", "tcga_bags"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"no {name}")
    rows = program("tcga_bags").prepare(shared_data, tmp_path, 0)
    assert len(rows) == 498
    fold_of: dict[str, set[str]] = {}
    for r in rows:
        fold_of.setdefault(r["patient_id"], set()).add(r["fold"])
    assert len(fold_of) == 457
    assert all(len(f) == 1 for f in fold_of.values())
    assert program("tcga_bags").mean_embeddings(rows[:3]).shape == (3, 192)
    pools = program("idc_mosaics").read_pools(shared_data)
    assert len(pools) == 61
    assert sum(bool(p[True]) for p in pools.values()) in (59, 60, 61)
