"""What is chosen for the machine: threads by what is seen, batches by memory alone; results by neither."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.config import ReadSettings, result_hash
from wsi_ips.engine import tuning
from wsi_ips.engine.encoding import embedding_key
from wsi_ips.engine.environment import is_out_of_memory
from wsi_ips.engine.microbatch import bytes_a_tile, choose_batch
from wsi_ips.engine.pace import choose_style, pace_of
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.predict import Labelled, PredictJob, label_slide
from wsi_ips.engine.scan import plan_slide
from wsi_ips.engine.tuning import (
    ReaderTuner,
    chunks_ahead,
    describe_pace,
    fitting_batch,
    host_budget,
    machine_memory,
    reader_range,
)
from wsi_ips.model.bundle import Bundle, load_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.engines import set_engine
from wsi_ips.results import ledger_bytes
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.faultyslide import Fault, FaultySlide
from wsi_ips.slide.reader import Slide


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def _slide(stall_seconds: float = 0.0) -> FaultySlide:
    rng = np.random.default_rng(0)
    pixels = np.full((1500, 2300, 3), 243, np.uint8)
    colours = rng.integers((150, 60, 130), (220, 140, 200), (10, 16, 3)).astype(np.uint8)
    pixels[90:1370, 120:2168] = colours.repeat(128, 0).repeat(128, 1)
    return FaultySlide(ArraySlide(pixels, mpp=1.0), [Fault("stall", seconds=stall_seconds)] if stall_seconds else [])


def _label(slide: Slide, bundle: Bundle, tools: PassTools, read: ReadSettings | None = None) -> Labelled:
    return label_slide(slide, bundle, PredictJob("s", read=read or ReadSettings()), None, None, tools)


def test_readers_grow_while_a_slow_reader_starves_the_encoder(bundle: Bundle) -> None:
    """One thread at first, more in the same pass, kept for the next slide; every byte is that of one thread."""
    tuner = ReaderTuner(1, 4)
    grown = _label(_slide(0.006), bundle, PassTools(tuner=tuner))
    assert tuner.n_readers in (2, 4)
    alone = _label(_slide(), bundle, PassTools(), ReadSettings(n_readers=1))
    assert ledger_bytes(grown.prediction) == ledger_bytes(alone.prediction)


def test_readers_stay_while_the_encoder_is_busy(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow encoder has no use for more threads; the wait for the first chunk is no sign."""
    real = type(bundle.classifier).embed_tiles
    monkeypatch.setattr(type(bundle.classifier), "embed_tiles", lambda *given: time.sleep(0.15) or real(*given))
    tuner = ReaderTuner(1, 4)
    tools = PassTools(tuner=tuner)
    n_tiles = _label(_slide(), bundle, tools).prediction.n_tiles
    assert tuner.n_readers == 1
    pace = pace_of(bundle.classifier, ReadSettings(), tools, n_tiles)
    assert pace["encode_ms"] > 150 / 16 > pace["decode_ms"]
    assert "encoding limits" in describe_pace(pace)


def test_a_window_decides_and_the_limit_holds() -> None:
    """Doubled once a window of some chunks and time, never beyond the most."""
    tuner = ReaderTuner(1, 6)
    assert [tuner.note(0.05, 0.1) for _ in range(12)] == [1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 6]
    assert [tuner.note(0.05, 0.1) for _ in range(8)] == [6] * 8
    assert [ReaderTuner(1, 6).note(0.01, 0.1) for _ in range(8)] == [1] * 8
    short = ReaderTuner(1, 6)
    assert [short.note(0.005, 0.01) for _ in range(24)] == [1] * 24  # not a quarter of a second yet
    assert (reader_range(2, "cpu"), reader_range(16, "cuda:0"), reader_range(1, "cuda:0")) == ((1, 2), (4, 8), (1, 1))


def test_what_the_user_states_wins(bundle: Bundle) -> None:
    """Stated threads and chunks ahead are used as they are, and nothing watches."""
    machine = {"device": "cpu", "cores": 8}
    stated, free = ReadSettings(n_readers=3, read_ahead=5), ReadSettings()
    style = choose_style(bundle.classifier, stated, machine)
    assert (style.tuner, style.tuned(stated).readers, style.tuned(stated).chunks_ahead) == (None, 3, 5)
    style = choose_style(bundle.classifier, free, machine)
    assert (style.tuned(free).readers, style.tuned(free).chunks_ahead) == (1, 2)
    assert (free.readers, free.chunks_ahead) == (2, 2)  # where nothing is tuned


def test_results_do_not_hang_on_readers(bundle: Bundle) -> None:
    """The hash of the settings that decide a result knows no thread."""
    hashes = {result_hash(bundle.settings, ReadSettings(n_readers=n, read_ahead=a)) for n, a in ((0, 0), (1, 2), (8, 4))}
    assert len(hashes) == 1


def test_chunks_ahead_shrink_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU wants four; an eighth of what is free is the most."""
    assert chunks_ahead(ReadSettings(), 1000, "cuda:0") == 4
    free = tuning.psutil.virtual_memory()._replace(available=8 * 5 * 1000)
    monkeypatch.setattr(tuning.psutil, "virtual_memory", lambda: free)
    assert [chunks_ahead(ReadSettings(), 1000, "cuda:0"), chunks_ahead(ReadSettings(), 5000, "cpu")] == [3, 1]


def test_batches_halve_under_a_small_budget_and_stay_there(bundle: Bundle) -> None:
    """The same limit gives the same batch each time; the paper's loop keeps its chunk."""
    classifier = bundle.classifier
    assert isinstance(classifier, IPSClassifier)
    tile_bytes = bytes_a_tile(classifier)
    assert tile_bytes == bytes_a_tile(classifier)
    assert tile_bytes > 2 * 16 * 16 * 8 * 2  # the output of its first layer, in bfloat16 at least, twice
    weights = sum(t.numel() * t.element_size() for t in classifier.state_dict().values())
    for room, batch in ((16.0, 16), (15.9, 8), (4.0, 4), (0.5, 1), (-1.0, 1)):
        memory = 2 * int(weights + room * tile_bytes) + 2
        assert {choose_batch(classifier, tile_bytes, memory, 1) for _ in range(3)} == {batch}
    selection = bundle.settings.selection.replace(mode="ips")
    ips = IPSClassifier(classifier.encoder, bundle.settings.replace(selection=selection.model_dump()))
    assert choose_batch(ips, tile_bytes, 1, 1) == 16
    assert choose_batch(classifier, tile_bytes, None, 1) == 16
    assert fitting_batch(64, 1, 0) == 1


def test_the_budget_is_what_is_there_not_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not change bits: free memory is not asked for, a control group's limit is."""
    total, before = machine_memory(), host_budget(None, 2)
    less = tuning.psutil.virtual_memory()._replace(available=1)
    monkeypatch.setattr(tuning.psutil, "virtual_memory", lambda: less)
    assert (machine_memory(), host_budget(None, 2)) == (total, before)
    assert host_budget(2**30, 7) == 2**29


def test_fault_012_a_job_schedulers_limit_counts(tmp_path: Path) -> None:
    """The limits of the process's own control group and of all above it are asked; without groups there are none."""
    (tmp_path / "cgroup").write_text("0::/slurm/job_7\n")
    found = tuning._own_limits(tmp_path / "cgroup", tmp_path / "fs")
    assert found == [str(tmp_path / "fs" / place / "memory.max") for place in ("slurm/job_7", "slurm", "")]
    (tmp_path / "cgroup").write_text("4:memory:/x\n")
    assert tuning._own_limits(tmp_path / "cgroup", tmp_path / "fs") == []
    assert tuning._own_limits(tmp_path / "none", tmp_path / "fs") == []


def test_fault_012_memory_that_a_decoder_was_refused_is_memory() -> None:
    """Python's own error counts as torch's do: the slide fails with a reason, the worker goes on."""
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_smaller_batch_is_another_name_in_the_cache(bundle: Bundle) -> None:
    """Embeddings of another batch are never taken for these; the pass itself repeats, and says how it was done."""
    slide = _slide()
    grid = plan_slide(slide, bundle.settings, ReadSettings()).grid
    keys = [embedding_key(slide, grid, bundle.classifier, {}, batch) for batch in (None, 16, 4)]
    assert keys[0] == keys[1] != keys[2]
    once = [embedding_key(slide, grid, bundle.classifier, {}, batch, same_once=True) for batch in (64, 32)]
    assert once[0] == once[1] != embedding_key(slide, grid, bundle.classifier, {}, 64)  # equal tiles once: at most 32 at a time
    one, other = (_label(slide, bundle, PassTools(batch=4)) for _ in range(2))
    assert ledger_bytes(one.prediction) == ledger_bytes(other.prediction)
    whole = _label(slide, bundle, PassTools())
    assert np.allclose(one.prediction.logits, whole.prediction.logits, atol=1e-3)
    tools = PassTools(batch=4, tile_bytes=2**20)
    pace = pace_of(bundle.classifier, ReadSettings(), tools, _label(slide, bundle, tools).prediction.n_tiles)
    assert (pace["batch"], pace["chunk"]) == (4, 16)
    assert "chunks of 16, 4 at a time through the encoder" in describe_pace(pace)


def test_a_batch_goes_through_the_encoder_as_it_was_chosen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """No forward pass sees more tiles than that."""
    seen: list[int] = []
    encoder = bundle.single.encoder
    real = type(encoder).forward
    monkeypatch.setattr(type(encoder), "forward", lambda self, tiles: seen.append(len(tiles)) or real(self, tiles))
    _label(_slide(), bundle, PassTools(batch=4))
    assert set(seen) == {4}


def test_an_engine_takes_no_more_than_memory_allows(tiny_bundle: Path) -> None:
    """Engines have a batch of their own, which the limit bounds, too; another batch is another name in the cache."""
    classifier = load_bundle(tiny_bundle).classifier
    hashes, seen = [], []
    for at_most in (None, 2):
        set_engine(classifier, {"name": "torch", "or_torch": False}, None, at_most)
        hashes.append(classifier.embedding_hash)
    assert isinstance(classifier, IPSClassifier)
    assert classifier.embedder is not None
    net = classifier.embedder.engine._net  # type: ignore[attr-defined]
    net.register_forward_hook(lambda module, given, made: seen.append(len(given[0])))
    classifier.embed_tiles(np.zeros((5, 32, 32, 3), np.uint8), 16)
    assert seen == [2, 2, 2]
    assert hashes[0] != hashes[1]
