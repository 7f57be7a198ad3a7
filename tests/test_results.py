"""The ledger file: what one pass found, whole and to the last bit."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_ips.config import TileSpec
from wsi_ips.errors import ConfigError, Note
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.results import (
    LEDGER_VERSION,
    SCHEMA_VERSION,
    Faithfulness,
    Pooled,
    SlidePrediction,
    TissueOutline,
    ledger_bytes,
    read_ledger,
)
from wsi_ips.tasks import TaskSettings


@pytest.fixture
def prediction() -> SlidePrediction:
    """Seven tiles, two tasks, three heads of two, four selected."""
    rng = np.random.default_rng(0)
    tasks = (TaskSettings(classes=("no", "yes")), TaskSettings(name="age", kind="regression"))
    return SlidePrediction(
        slide_id="s", tasks=tasks, tile=TileSpec(size_px=32, mpp=4.0), coords=rng.integers(0, 9999, (7, 2)),
        extent0=(256.5, 255.25), tissue=rng.random(7, np.float32), logits=rng.random((7, 2, 3), np.float32),
        attention=rng.random((7, 2), np.float32), selected=np.array([3, 0, 6, 1]), values=rng.random((4, 6), np.float32),
        evidence=rng.random((4, 2), np.float32), outputs=rng.random(2, np.float32), mpp=Mpp(0.5, 0.25, "manifest"),
        bounds=Box0(1, 2, 300, 200), size0=(301, 202), outline=TissueOutline(rng.random((5, 8)) > 0.5, 1, 2, 8.0, 7.5),
        tissue_mm2=1.25, reader="tifffile", model_hash="a" * 64, settings_hash="b" * 16, n_missing=1, n_failed_reads=2,
        n_reencoded=3, notes=(Note("E_MADE", "made up"),),
    )  # fmt: skip


def _assert_same(a: SlidePrediction, b: SlidePrediction) -> None:
    for field in fields(SlidePrediction):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            assert np.array_equal(one, other), field.name
        elif field.name not in ("outline", "context"):
            assert one == other, field.name
    assert np.array_equal(a.outline.mask, b.outline.mask)


def test_a_ledger_reads_back_as_it_was(prediction: SlidePrediction) -> None:
    """Every field, and the same bytes when written again."""
    data = ledger_bytes(prediction)
    again = read_ledger(data)
    _assert_same(prediction, again)
    assert again.context is None
    assert ledger_bytes(again) == data
    with h5py.File(io.BytesIO(data), "r") as f:
        assert f.attrs["schema_version"] == SCHEMA_VERSION  # older readers may have it
        assert "context_mean" not in f


def test_the_context_is_kept_in_float64(prediction: SlidePrediction, tmp_path: Path) -> None:
    """The label rests on it to the last bit; a reader that does not know it must refuse the file."""
    rng = np.random.default_rng(1)
    context = Pooled(rng.normal(size=(2, 3)) / 3, rng.normal(size=(2, 3, 2)) / 3)
    (tmp_path / "x.h5").write_bytes(ledger_bytes(replace(prediction, context=context)))
    again = read_ledger(tmp_path / "x.h5")
    _assert_same(prediction, again)
    assert again.context is not None
    for found, wanted in zip(again.context, context, strict=True):
        assert found.dtype == np.float64
        assert np.array_equal(found, wanted)
    with h5py.File(tmp_path / "x.h5", "r+") as f:
        assert f.attrs["schema_version"] == LEDGER_VERSION > SCHEMA_VERSION
        f.attrs["schema_version"] = LEDGER_VERSION + 1
    with pytest.raises(ConfigError, match=r"x\.h5: schema_version 3 needs a newer wsi-ips"):
        read_ledger(tmp_path / "x.h5")


def test_what_was_measured_beside_the_label_survives(prediction: SlidePrediction) -> None:
    """Whole-bag evidence and faithfulness curves come back; ledgers without them stay what they were."""
    rng = np.random.default_rng(2)
    counts = np.array([1, 2], np.int64)
    curves = rng.random((2, 3, 2)).astype(np.float32)
    found = Faithfulness(("attention", "evidence", "random"), counts, curves[:, 0, 0], curves, curves[::-1].copy())
    bag = rng.normal(size=(prediction.n_tiles, prediction.evidence.shape[1])).astype(np.float32)
    again = read_ledger(ledger_bytes(replace(prediction, bag_evidence=bag, faithfulness=found)))
    np.testing.assert_array_equal(again.bag_evidence, bag)
    assert again.faithfulness is not None
    assert again.faithfulness.orders == found.orders
    for name in ("counts", "whole", "deletion", "insertion"):
        np.testing.assert_array_equal(getattr(again.faithfulness, name), getattr(found, name))
    plain = read_ledger(ledger_bytes(prediction))
    assert plain.bag_evidence is None
    assert plain.faithfulness is None


def test_a_cut_ledger_is_one_sentence(prediction: SlidePrediction, tmp_path: Path) -> None:
    """What is not whole is not read."""
    path = tmp_path / "x.h5"
    path.write_bytes(ledger_bytes(prediction)[:-2000])
    with pytest.raises(ConfigError, match=r"x\.h5: not a complete ledger"):
        read_ledger(path)
