"""GPUs that run out of memory, fail, or are not there; by stand-ins that raise what torch raises, on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.engine import environment, shortage, worker
from wsi_ips.engine.child import GPU_LOST, how_it_ended
from wsi_ips.engine.determinism import make_deterministic
from wsi_ips.engine.encoding import _machine
from wsi_ips.engine.environment import default_devices, device_sentence, is_gpu_lost, is_out_of_memory
from wsi_ips.engine.executors import Job, LocalExecutor, WorkerLimits
from wsi_ips.engine.worker import SlideWorker
from wsi_ips.errors import ConfigError, StoppedError
from wsi_ips.model.engines import TorchEngine
from wsi_ips.results import SlidePrediction, read_ledger
from wsi_ips.runfolder import RunFolder

ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def do(tiny_bundle: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Label a slide with a worker in this process: `do(out)` gives the record."""
    monkeypatch.setattr(worker, "make_deterministic", lambda threads: None)  # which would last
    slide = shutil.copy(sorted((cohort.parent / "slides").glob("*.tif"))[0], tmp_path / "a.tif")

    def done(w: SlideWorker | str, slide_id: str = "a") -> dict[str, Any]:
        if isinstance(w, str):
            w = SlideWorker(str(tiny_bundle), str(tmp_path / w), {}, None, False, {"name": "torch", "or_torch": False},
                            {"threads": 1, "device": "cpu", "look_ahead": False}, {"place": "off", "strict": False})  # fmt: skip
        payload = {"slide_id": slide_id, "patient_id": "p", "slide_path": str(slide), "features_path": None, "mpp": None, "mask_path": None,
                   "identity": {"row": "r"}, "retry_failed": False, "formats": []}  # fmt: skip
        return w.work(payload, lambda *_: None) | {"worker": w}

    return done


def _ledger(folder: Path, slide_id: str = "a") -> SlidePrediction:
    return read_ledger(RunFolder(folder).slide_folder(slide_id) / f"{slide_id}.ledger.h5")


def _fits(monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], RuntimeError]) -> list[int]:
    """Let a GPU's memory hold so many tiles; gives the sizes of batches that came."""
    real, seen = TorchEngine._run, []

    def run(self: TorchEngine, tiles: torch.Tensor) -> torch.Tensor:
        seen.append(len(tiles))
        if len(tiles) > most:
            raise error()
        return real(self, tiles)

    monkeypatch.setattr(TorchEngine, "_run", run)
    return seen


def _no_room() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")


@pytest.mark.parametrize("error", [_no_room, lambda: RuntimeError("CUDA error: out of memory")])
def test_fault_100_batches_are_halved_until_they_fit(
    do: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], RuntimeError]
) -> None:
    """The slide is labelled as ever, the batch is recorded, nothing of the failed tries is in it, and the next slide begins anew."""
    whole = do("run")
    assert whole["batch"] == 16
    with monkeypatch.context() as patch:
        seen = _fits(patch, 2, error)
        halved = do(whole["worker"], "b")
    assert (halved["status"], halved["reason"], halved["batch"], halved["pace"]["batch"]) == (whole["status"], whole["reason"], 2, 2)
    assert set(seen) == {8, 4, 2}
    a, b = _ledger(tmp_path / "run"), _ledger(tmp_path / "run", "b")
    assert np.array_equal(a.coords, b.coords)
    assert np.array_equal(a.selected, b.selected)
    np.testing.assert_allclose(a.logits, b.logits, atol=2e-3)
    np.testing.assert_allclose(a.outputs, b.outputs, atol=2e-3)
    assert RunFolder(tmp_path / "run").read_record("b")["batch"] == 2  # type: ignore[index]
    assert do(whole["worker"], "c")["batch"] == 16
    c = _ledger(tmp_path / "run", "c")
    assert np.array_equal(a.logits, c.logits)
    assert np.array_equal(a.outputs, c.outputs)


def test_fault_100_and_103_what_fits_with_no_batch_fails_alone_and_says_who_holds_the_memory(
    do: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile is too much: `E_GPU_MEMORY`, with the memory's owners and the cure; when there is room again, the next slide is labelled."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 29, 8 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 << 30)
    sound = do("run")
    with monkeypatch.context() as patch:
        seen = _fits(patch, 0, _no_room)
        failed = do(sound["worker"], "b")
    assert (failed["status"], failed["reason"]) == ("failed", "E_GPU_MEMORY")
    assert min(seen) >= 1
    assert "with 1 tile at a time: CUDA out of memory" in failed["message"]
    assert "more words" not in failed["message"]
    text = shortage.explain_shortage(_no_room(), "cuda:0", 1)[1]
    assert "of 8.0 GiB this worker holds 1.0, other programs 6.5, and 0.5 are free" in text
    assert "--retry-failed" in text
    assert do(sound["worker"], "c")["outputs_logits"] == sound["outputs_logits"]


def test_fault_100_the_papers_loop_keeps_its_chunk(tiny_bundle: Path) -> None:
    """Where the chunk is part of the method, and where memory of the host gave out, no smaller batch is tried."""

    class Settings:
        class selection:
            mode = "ips"

    class Classifier:
        takes_tiles, settings = True, Settings

    assert shortage.smaller_batch(_no_room(), Classifier, 16) is None  # type: ignore[arg-type]
    Settings.selection.mode = "exact"
    assert shortage.smaller_batch(_no_room(), Classifier, 16) == 8  # type: ignore[arg-type]
    assert shortage.smaller_batch(_no_room(), Classifier, 1) is None  # type: ignore[arg-type]
    assert shortage.smaller_batch(MemoryError(), Classifier, 16) is None  # type: ignore[arg-type]


def test_fault_101_a_failed_gpu_is_told_from_lack_of_memory() -> None:
    """By torch's own words, whatever class of error brings them."""
    assert is_gpu_lost(RuntimeError(ILLEGAL))
    assert not is_gpu_lost(RuntimeError("CUDA error: out of memory"))
    assert not is_gpu_lost(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_gpu_lost(ValueError("a defect"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert "GPU failed" in how_it_ended(GPU_LOST)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    made = LocalExecutor("fake_workers:Worker", [{"folder": str(tmp_path)}], WorkerLimits(30.0))
    yield made
    made.close()


def _run(executor: LocalExecutor, *kinds: str) -> dict[str, tuple[str, int]]:
    jobs = [Job(f"{i} {kind}", {"do": kind}) for i, kind in enumerate(kinds)]
    return {o.id: (o.code, o.attempts) for o in executor.run(jobs, lambda p: None)}


def test_fault_101_a_slide_under_which_the_gpu_fails_is_tried_once_more_and_fails_alone(executor: LocalExecutor) -> None:
    """The worker is replaced each time, and the others do not notice."""
    assert _run(executor, "gpu once", "value") == {"1 value": ("", 1), "0 gpu once": ("", 2)}
    assert _run(executor, "value", "gpu", "value") == {"0 value": ("", 1), "2 value": ("", 1), "1 gpu": ("E_WORKER_DIED", 2)}


def test_fault_101_a_gpu_that_fails_twice_in_a_row_ends_the_run(executor: LocalExecutor) -> None:
    """Two slides in turn: no slide's fault; exit status 3, with what to look at."""
    with pytest.raises(StoppedError, match=r"twice in a row.*nvidia-smi"):
        _run(executor, "gpu", "gpu")


def test_fault_102_a_gpu_that_was_asked_for_and_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never the CPU in silence: exit status 2 for what was named, a sentence for what was chosen."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(environment, "_has_gpu_driver", lambda: True)
    for device in ("cuda", "cuda:7", "nonsense"):
        with pytest.raises(ConfigError, match=f"--device {device}"):
            default_devices(device, 0)
    assert default_devices("auto", 2) == ["cpu", "cpu"]
    assert "although there is a GPU driver" in device_sentence("auto", ["cpu"])
    monkeypatch.setattr(environment, "_has_gpu_driver", lambda: False)
    assert device_sentence("auto", ["cpu"]) == "encoding on the CPU: there is no GPU here"
    assert device_sentence("auto", ["cuda:0"]) == "encoding on cuda:0"
    assert device_sentence("cpu", ["cpu"]) == ""


def test_fault_104_results_are_repeatable_and_gpus_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, no autotuning, deterministic kernels; what two kinds of GPU computed is never taken for each other's."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32,
              torch.backends.cudnn.allow_tf32, torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory)  # fmt: skip
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        make_deterministic(torch.get_num_threads())
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:4]
        torch.set_num_threads(before[4])
        torch.utils.deterministic.fill_uninitialized_memory = before[5]
    names = {}
    for gpu in ("NVIDIA A100", "NVIDIA H100"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, gpu=gpu: gpu)
        names[gpu] = _machine(torch.device("cuda:0"))
    assert names["NVIDIA A100"] != names["NVIDIA H100"]
    assert any("tf32" in word for word in names["NVIDIA H100"])
