"""The child's side of a supervised worker: it takes jobs from a pipe until the pipe closes, and says how it goes.

Messages to the leader are pairs (kind, value): `ready`, `refused`, `progress`, `ahead`, `done`, `stopped`. A worker with
a method `expect` is told of the job that will probably come next, and may prepare it beside the one it does; it says
so (`ahead`) before it begins, for the leader must know what else may have killed a child. SIGTERM ends a child at its next sign of progress,
so that what it has done of a slide can be put by; SIGKILL may do so at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from wsi_ips.engine.environment import is_gpu_lost
from wsi_ips.engine.noise import send_stderr_to
from wsi_ips.errors import ConfigError, ModelError, StoppedError
from wsi_ips.minimums import refuse_too_old

__all__ = ["GPU_LOST", "Job", "child_main", "how_it_ended"]

_DEFECT, GPU_LOST = 70, 71  # exit statuses

_PARKED = 143  # exit status of a child that was told to end, as shells give it
_told_to_end = threading.Event()


class Job(NamedTuple):
    """One slide to do."""

    id: str
    payload: Any  # plain, picklable


def child_main(pipe: Connection, factory: str, setup: dict[str, Any], leader: int, stderr: str = "") -> None:
    """Make the worker, then do jobs; each comes with the one that is expected after it, or None; `stderr`: see noise.py."""
    _end_with_leader(leader)
    send_stderr_to(stderr)
    _go_first_without_memory()
    _leave_no_core()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader decides what Ctrl-C means
    signal.signal(signal.SIGTERM, lambda number, frame: _told_to_end.set())
    # a main thread busy in Python starves threads that decode: 5,362 tiles/s became 183, with this 3,078
    sys.setswitchinterval(5e-5)
    module, _, name = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
        refuse_too_old()  # of what it has loaded
        worker = make(**setup)
    except (ConfigError, ModelError) as error:
        pipe.send(("refused", (type(error).__name__, str(error))))
        return
    pipe.send(("ready", worker.info))
    while _do_next(pipe, worker):
        pass


class _ToldToEndError(BaseException):
    """Raised between two chunks; no library takes it for an error of its own."""


def _do_next(pipe: Connection, worker: Any) -> bool:
    """Do one job; False when there is no more to do."""
    try:
        job, following = pipe.recv()
    except (EOFError, OSError):
        return False

    def progress(stage: str, done: int, total: int) -> None:
        if _told_to_end.is_set():
            raise _ToldToEndError
        pipe.send(("progress", (job.id, stage, done, total)))

    try:
        if hasattr(worker, "expect"):
            worker.expect(following.payload if following else None, _told(pipe, following))
        pipe.send(("done", worker.work(job.payload, progress)))
    except StoppedError as error:
        pipe.send(("stopped", str(error)))
        return False
    except _ToldToEndError:  # what the slide has come to is put by, see entrywriter.py
        os._exit(_PARKED)
    except Exception as error:  # a defect of ours, or a GPU that answers nothing more: the leader sees a dead worker
        status = _DEFECT
        with contextlib.suppress(Exception):  # an error that cannot even be printed
            status = GPU_LOST if is_gpu_lost(error) else _DEFECT
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(status)
    return True


def _told(pipe: Connection, following: Job | None) -> Callable[[], None]:
    """Say to the leader, from the thread that works, that the next job is being prepared."""
    return lambda: pipe.send(("ahead", following.id)) if following else None


def _end_with_leader(leader: int) -> None:
    """Ask Linux for SIGKILL when the leader dies; elsewhere the closed pipe ends the worker at its next message."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != leader:
            os._exit(1)


def _go_first_without_memory() -> None:
    """Should memory run out before the leader notices, let Linux end this process, not the leader or others."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def _leave_no_core() -> None:
    """Let no memory image of a crash be written: it would hold a patient's pixels, in a folder that others may read."""
    if sys.platform != "win32":
        import resource  # Unix only

        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def how_it_ended(exitcode: int | None) -> str:
    """Say what became of a child."""
    if exitcode is None:
        return "the worker closed its pipe"
    if exitcode == GPU_LOST:
        return "the GPU failed under the worker (an illegal access, or the device was lost)"
    if exitcode == _DEFECT:
        return "the worker met an unexpected error; its trace is in the run's log.jsonl, or on stderr with --debug"
    if exitcode == _PARKED:
        return "the worker was told to end (SIGTERM)"
    if exitcode < 0:
        hint = " (out of memory?)" if exitcode == -9 else ""
        return f"the worker was killed by {signal.Signals(-exitcode).name}{hint}"
    return f"the worker ended with exit status {exitcode}"
