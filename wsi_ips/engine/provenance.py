"""What a run was made by: versions, the state of the code, the machine, the command line.

Everything is read from files and from what is installed; nothing here loads torch or a slide library unless a worker,
which has them loaded, asks. What cannot be found out is absent, never a failure.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_ips.engine.environment import describe_environment

__all__ = ["code_state", "command_line", "describe_run", "differences_between", "gpu_names", "made_with", "utc_now", "worker_facts"]

_PACKAGE = Path(__file__).resolve().parents[1]
_GIT_SECONDS = 5.0
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# of describe_run: what decides the bits of a result; the number of cores and the driver do not
_DECISIVE = ("python", "system", "cpu_flags", "gpus", "hdf5", "code")
_WITHOUT_PART = ("pandas", "pydantic", "safetensors")  # packages that no number of a result passes through


def utc_now() -> str:
    """Say the time, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def command_line() -> list[str]:
    """Give the words this process was started with; they may hold paths."""
    return list(getattr(sys, "orig_argv", sys.argv))


def describe_run() -> dict[str, Any]:
    """Describe installation and machine as a run records them: no names of hosts or users."""
    import h5py

    found: dict[str, Any] = {**describe_environment(), "hdf5": h5py.version.hdf5_version, "cpu": _cpu_name(), "gpus": gpu_names()}
    driver = _first(r"Kernel Module\S*(?: for \S+)?\s+([\d.]+)", _read("/proc/driver/nvidia/version"))
    more = {"gpu_driver": driver, "code": code_state()}
    return found | {name: value for name, value in more.items() if value}


def worker_facts(device: str = "cpu") -> dict[str, Any]:
    """Say what only a worker knows: versions of the libraries it has loaded, and whether it computes repeatably."""
    import openslide
    import torch

    libraries = {"openslide": openslide.__library_version__, "cuda": torch.version.cuda,
                 "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None}  # fmt: skip
    flags = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(), "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""), "threads": torch.get_num_threads(),
    }  # fmt: skip
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {"libraries": {k: str(v) for k, v in libraries.items() if v}, "deterministic": flags} | gpu


def made_with(environment: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a described environment to what may change a result, as text by name.

    >>> made_with({"python": "3.12.1", "cores": 8, "packages": {"numpy": "2.3.1"}, "gpus": []})
    {'python': '3.12.1', 'gpus': 'none', 'numpy': '2.3.1'}
    """
    flat = {k: _as_text(environment[k]) for k in _DECISIVE if k in environment}
    packages = environment.get("packages")
    known = packages.items() if isinstance(packages, Mapping) else ()
    return flat | {str(k): _as_text(v) for k, v in known if k not in _WITHOUT_PART}


def differences_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Compare two of what `made_with` gives: (name, then, now) where they differ."""
    then, now = ({str(k): str(v) for k, v in one.items()} for one in (before, after))
    names = dict.fromkeys([*then, *now])
    return [(n, then.get(n, "(absent)"), now.get(n, "(absent)")) for n in names if then.get(n) != now.get(n)]


def gpu_names() -> list[str]:
    """Name the GPUs that NVIDIA's driver knows."""
    places = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [name for place in places if (name := _first(r"Model:\s*(.+)", _read(place)))]


def code_state() -> dict[str, Any] | None:
    """Say from which commit the package runs, and whether the tree is as committed.

    None when the package lies in no checkout of its own: a repository that merely holds the environment it is installed
    in does not count.
    """
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD") or _commit_by_hand(root)
    if not _COMMIT.fullmatch(commit):
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit} | ({} if changed is None else {"is_clean": not changed})


def _git(root: Path, *words: str) -> str | None:
    """Ask git about a checkout; None without git, or without an answer."""
    program = shutil.which("git")
    if program is None:
        return None
    # a repository's own settings may name programs to start; and nothing may be written there
    quiet = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-optional-locks"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run([program, *quiet, "-C", str(root), *words], capture_output=True, text=True, check=False,
                              timeout=_GIT_SECONDS, env=env, stdin=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit_by_hand(root: Path) -> str:
    """Read the commit from the files of a checkout, also of a linked one; "" when they do not tell."""
    folder = root / ".git"
    if folder.is_file():
        folder = root / _first(r"gitdir:\s*(.+)", _read(folder))
    head = _read(folder / "HEAD").strip()
    name = _first(r"ref:\s*(refs/\S+)", head)
    if not name:
        return head
    common = folder / (_read(folder / "commondir").strip() or ".")
    packed = _first(rf"(?m)^([0-9a-f]+) {re.escape(name)}$", _read(common / "packed-refs"))
    return _read(folder / name).strip() or _read(common / name).strip() or packed


def _cpu_name() -> str:
    return _first(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo")) or platform.processor() or platform.machine()


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1].strip() if match else ""


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        state = {True: "", False: " with changes"}.get(value.get("is_clean", True), "")
        return f"{str(value.get('commit', ''))[:12]}{state}"
    return (", ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value)
