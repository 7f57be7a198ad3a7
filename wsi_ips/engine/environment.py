"""The machine: cores that may be used, devices, versions. Torch is asked only when it must be."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from wsi_ips.errors import ConfigError

__all__ = ["ENGINES", "allow_open_files", "available_cores", "choose_engine", "cpu_flags", "default_devices", "describe_environment",
           "device_sentence", "is_gpu_lost", "is_out_of_memory", "package_versions"]  # fmt: skip

ENGINES = ("auto", "torch", "openvino", "module")  # what can be asked for; see model/engines.py
_DEVICES = ("auto", "cpu", "cuda", "mps")
_FEW_FILES, _MANY_FILES = 128, 4096
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "CUDA error: out of memory")  # in a RuntimeError of torch
_PACKAGES = ("wsi-ips", "torch", "torchvision", "timm", "openslide-python", "openslide-bin", "tiffslide", "tifffile", "imagecodecs",
             "simplejpeg", "openvino", "numpy", "opencv-python", "scikit-image", "scipy", "h5py", "pandas", "safetensors", "pydantic")  # fmt: skip


def allow_open_files() -> None:
    """Raise this process's limit of open files, which its workers inherit, as far as it may.

    Raises:
        ConfigError: too few remain; a slide of many files, a model and a cache would meet the limit in the middle of a run.
    """
    if importlib.util.find_spec("resource") is None:  # Windows
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _MANY_FILES if hard == unlimited else min(_MANY_FILES, hard)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != unlimited and soft < _FEW_FILES:
        raise ConfigError(f"this process may open {soft} files, which is too few; allow at least {_FEW_FILES}: ulimit -n 1024")


def available_cores() -> int:
    """Count cores by the process's affinity and the control group's quota, not by the machine's size."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control group of version 2: affinity is all there is to know
    return cores


def default_devices(device: str, workers: int) -> list[str]:
    """Choose one device a worker process: every GPU once, or one process on the CPU.

    Args:
        device: auto, cpu, cuda, cuda:<i> or mps.
        workers: how many processes; 0 chooses.

    Raises:
        ConfigError: no such kind of device, or the asked one is not there.
    """
    if device.partition(":")[0] not in _DEVICES:
        raise ConfigError(f"--device {device}: expected auto, cpu, cuda, one GPU by its number (cuda:0), or mps")
    if device == "cpu" or (device == "auto" and not _has_gpu_driver()):
        return ["cpu"] * max(1, workers)
    import torch  # only here: a machine without a GPU driver need not load it in the leader

    n_gpus = torch.cuda.device_count()
    if device in ("auto", "cuda"):
        if n_gpus == 0 and device == "cuda":
            raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu, or see `wsi-ips doctor`")
        names = [f"cuda:{i}" for i in range(n_gpus)] or ["cpu"]
        return [names[i % len(names)] for i in range(workers or len(names))]
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return [device] * max(1, workers)


def choose_engine(asked: str, device: str = "cpu", before: str = "") -> str:
    """Choose what encodes tiles without gradient: torch, openvino, cuda, or module (the model just as it learned).

    Args:
        asked: one of ENGINES.
        device: of the worker processes.
        before: with which an unfinished run began; `auto` keeps to it.

    Raises:
        ConfigError: no such engine, not on this device, or not installed.
    """
    kind = device.partition(":")[0]
    if asked not in ENGINES:
        raise ConfigError(f"--engine {asked}: expected {', '.join(ENGINES)}")
    has_openvino = importlib.util.find_spec("openvino") is not None
    if asked == "auto":
        if kind != "cpu":
            return "cuda" if kind == "cuda" else "torch"
        if before in ("torch", "openvino", "module"):
            return choose_engine(before)
        return "openvino" if has_openvino and {"avx512_bf16", "amx_bf16"} & set(cpu_flags()) else "torch"
    if asked == "openvino" and kind != "cpu":
        raise ConfigError(f"--engine openvino: it computes on the CPU, the device is {device}; use --engine auto")
    if asked == "openvino" and not has_openvino:
        raise ConfigError('--engine openvino: OpenVINO is not installed; pip install "wsi-ips[fast]", or --engine torch')
    return asked


def package_versions() -> dict[str, str]:
    """Versions of what results depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def cpu_flags() -> list[str]:
    """Name the vector instruction sets that decide speed."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next(
        (line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features"))), []
    )
    return [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd") if f in flags]


def describe_environment() -> dict[str, object]:
    """Python, machine and package versions, without names of hosts or users."""
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", "cores": available_cores(),
            "cpu_flags": cpu_flags(), "packages": package_versions()}  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: Python's error, torch's own on a GPU, on the CPU a RuntimeError with these words."""
    text = str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )


def is_gpu_lost(error: BaseException) -> bool:
    """Tell whether a GPU failed in a way after which a process gets no answer from it any more, but for lack of memory."""
    return "CUDA error" in str(error) and not is_out_of_memory(error)


def device_sentence(asked: str, devices: Sequence[str]) -> str:
    """Say on what a run encodes where that was left to be chosen; "" where it was stated."""
    if asked != "auto":
        return ""
    if devices[0] != "cpu":
        return f"encoding on {', '.join(devices)}"
    if not _has_gpu_driver() or platform.system() == "Darwin":
        return "encoding on the CPU: there is no GPU here"
    return ("encoding on the CPU although there is a GPU driver: torch sees no GPU (a driver too old for it, a torch built for CPUs, or "
            "CUDA_VISIBLE_DEVICES); `wsi-ips doctor` says more, --device cuda refuses instead")  # fmt: skip


def _has_gpu_driver() -> bool:
    return (
        platform.system() == "Darwin"
        or Path("/proc/driver/nvidia/version").exists()
        or Path("/dev/kfd").exists()
        or os.name == "nt"
    )
