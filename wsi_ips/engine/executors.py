"""Who does the work: supervised child processes behind one small interface.

The leader keeps the books and never opens a slide. A worker is a spawned child that may crash, hang or eat memory: it
is then ended, the slide is tried once more in a fresh child, and a slide that ends two children is given up (the poison
list). A worker that loses its leader ends itself. Errors and results cross the border as plain data.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import psutil

from wsi_ips.errors import ConfigError, ModelError, StoppedError

__all__ = ["Executor", "Job", "LocalExecutor", "Outcome", "Progress", "WorkerLimits"]

MAX_DEATHS = 2


class Job(NamedTuple):
    """One slide to do."""

    id: str
    payload: Any  # plain, picklable


class Outcome(NamedTuple):
    """What became of a job."""

    id: str
    result: dict[str, Any] | None  # what the worker returned; None when it died
    code: str = ""  # E_WORKER_DIED, E_TIMEOUT, E_MEMORY
    message: str = ""
    attempts: int = 1


class Progress(NamedTuple):
    """A sign of life from a worker."""

    id: str
    stage: str
    done: int
    total: int


class Executor(Protocol):
    """Runs jobs somewhere and yields their outcomes in the order they end."""

    def ready(self) -> dict[str, Any]:
        """Start; return what the worker says of itself (model hash, settings). Raises what its set-up raised."""

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> Iterator[Outcome]:
        """Do the jobs."""

    def close(self) -> None:
        """End all workers at once."""


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker may use before it is ended."""

    stall_seconds: float = 600.0  # without any progress
    memory_bytes: int | None = None  # resident memory of one worker


@dataclass
class _Child:
    process: Any
    pipe: Connection
    setup: dict[str, Any]
    job: Job | None = None
    last_sign: float = field(default_factory=time.monotonic)
    is_ready: bool = False
    peak_bytes: int = 0


class LocalExecutor:
    """Child processes of this machine.

    Args:
        factory: "module:callable"; called in the child with its set-up, returns an object with `info` (dict) and
            `work(payload, progress) -> dict`.
        setups: plain arguments of the factory, one mapping a worker (each its own GPU, say).
        limits: deadline and memory of each.
    """

    def __init__(self, factory: str, setups: Sequence[dict[str, Any]], limits: WorkerLimits) -> None:
        self._factory, self._limits = factory, limits
        self._free = list(setups)
        self._n_workers = len(setups)
        self._children: list[_Child] = []
        self.peak_bytes = 0

    def ready(self) -> dict[str, Any]:
        """Start the first worker and wait until its model stands."""
        child = self._spawn()
        while True:
            kind, value = self._receive(child, timeout=self._limits.stall_seconds)
            if kind == "ready":
                child.is_ready = True
                return dict(value)
            if kind == "refused":
                raise _rebuild(*value)
            if kind == "died":
                raise StoppedError(
                    f"a worker ended while it was starting ({value}); a script of your own calls this inside "
                    "if __name__ == \"__main__\":, for workers import it; wsi-ips --debug shows a worker's output"
                )

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> Iterator[Outcome]:
        """Do the jobs; a worker that dies, stalls or grows too large costs its slide alone."""
        queue = deque(jobs)
        deaths: dict[str, int] = {}
        while queue or any(c.job for c in self._children):
            while len(self._children) < min(self._n_workers, len(queue) + sum(bool(c.job) for c in self._children)):
                self._spawn()
            self._hand_out(queue)
            for child in self._wait():
                kind, value = self._receive(child, timeout=0.0)
                if kind == "progress":
                    on_progress(Progress(*value))
                elif kind == "ready":
                    child.is_ready = True
                elif kind == "done" and child.job:
                    job, child.job = child.job, None
                    yield Outcome(job.id, value, attempts=deaths.get(job.id, 0) + 1)
                elif kind == "stopped":
                    raise StoppedError(value)
                elif kind == "refused":
                    raise _rebuild(*value)
                elif kind == "died":
                    yield from self._bury(child, ("E_WORKER_DIED", value), queue, deaths)
            for child, reason in self._overdue():
                yield from self._bury(child, reason, queue, deaths)

    def close(self) -> None:
        """End all workers at once."""
        for child in self._children:
            _end(child)
            self._free.append(child.setup)
        self._children.clear()

    def _spawn(self) -> _Child:
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        setup = self._free.pop(0)
        process = context.Process(target=_child_main, args=(there, self._factory, setup, os.getpid()), daemon=True)
        process.start()
        there.close()
        child = _Child(process, here, setup)
        self._children.append(child)
        return child

    def _hand_out(self, queue: deque[Job]) -> None:
        for child in self._children:
            if queue and child.is_ready and child.job is None:
                child.job = queue.popleft()
                child.last_sign = time.monotonic()
                with contextlib.suppress(OSError):  # a dead child is noticed by its closed pipe
                    child.pipe.send(child.job)

    def _wait(self) -> list[_Child]:
        by_pipe = {id(c.pipe): c for c in self._children}
        return [by_pipe[id(pipe)] for pipe in wait([c.pipe for c in self._children], timeout=0.2)]

    def _receive(self, child: _Child, timeout: float) -> tuple[str, Any]:
        try:
            if not child.pipe.poll(timeout):
                return ("died", "it did not start in time") if timeout else ("idle", None)
            message = child.pipe.recv()
        except (EOFError, OSError):
            child.process.join(5.0)
            return "died", _how_it_ended(child.process.exitcode)
        child.last_sign = time.monotonic()
        return message

    def _overdue(self) -> list[tuple[_Child, tuple[str, str]]]:
        late: list[tuple[_Child, tuple[str, str]]] = []
        for child in self._children:
            size = _resident_bytes(child.process.pid)
            self.peak_bytes = max(self.peak_bytes, size)
            silent = time.monotonic() - child.last_sign
            if self._limits.memory_bytes and size > self._limits.memory_bytes:
                late.append((child, ("E_MEMORY", f"the worker grew to {size / 2**30:.1f} GiB, more than it may use")))
            elif (child.job or not child.is_ready) and silent > self._limits.stall_seconds:
                late.append((child, ("E_TIMEOUT", f"no progress for {silent:.0f} s; the worker was ended")))
        return late

    def _bury(
        self, child: _Child, reason: tuple[str, str], queue: deque[Job], deaths: dict[str, int]
    ) -> Iterator[Outcome]:
        _end(child)
        self._children.remove(child)
        self._free.append(child.setup)
        if child.job is None:
            if not child.is_ready:
                raise StoppedError(f"a worker ended while it was starting ({reason[1]})")
            return
        job = child.job
        deaths[job.id] = deaths.get(job.id, 0) + 1
        if deaths[job.id] < MAX_DEATHS:
            queue.append(job)
            return
        code, text = reason
        yield Outcome(job.id, None, code, f"{text}; tried {MAX_DEATHS} times", MAX_DEATHS)


def _child_main(pipe: Connection, factory: str, setup: dict[str, Any], leader: int) -> None:
    _end_with_leader(leader)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader decides what Ctrl-C means
    module, _, name = factory.partition(":")
    try:
        worker = getattr(importlib.import_module(module), name)(**setup)
    except (ConfigError, ModelError) as error:
        pipe.send(("refused", (type(error).__name__, str(error))))
        return
    pipe.send(("ready", worker.info))
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return

        def progress(stage: str, done: int, total: int, job_id: str = job.id) -> None:
            pipe.send(("progress", (job_id, stage, done, total)))

        try:
            pipe.send(("done", worker.work(job.payload, progress)))
        except StoppedError as error:
            pipe.send(("stopped", str(error)))
            return
        except Exception:  # a defect of ours: the trace goes to stderr, the leader sees a dead worker
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)


def _end_with_leader(leader: int) -> None:
    """Ask Linux for SIGKILL when the leader dies; elsewhere the closed pipe ends the worker at its next message."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != leader:
            os._exit(1)


def _rebuild(name: str, text: str) -> ConfigError | ModelError:
    return ModelError(text) if name == "ModelError" else ConfigError(text)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is None:
        return "the worker closed its pipe"
    if exitcode == 70:
        return "the worker met an unexpected error; its trace is on stderr"
    if exitcode < 0:
        hint = " (out of memory?)" if exitcode == -9 else ""
        return f"the worker was killed by {signal.Signals(-exitcode).name}{hint}"
    return f"the worker ended with exit status {exitcode}"


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _end(child: _Child) -> None:
    child.process.kill()
    child.process.join(5.0)
    child.pipe.close()
