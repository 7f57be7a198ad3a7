"""Who does the work: supervised child processes behind one small interface.

The leader keeps the books and never opens a slide. A worker is a spawned child that may crash, hang or eat memory: it
is then ended, the slide is tried once more in a fresh child, and a slide that ends two children is given up (the poison
list). A worker that loses its leader ends itself. Errors and results cross the border as plain data.

With its job a child is told which will be its next, so that it can prepare it. That job is reserved for it, but not
locked: another child takes it when nothing else is left. What is prepared may kill the child too, so a death beside a
preparation proves nothing against the job at work: it does not count, and neither of the two is prepared again, nor is
anything beside them.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from wsi_ips.engine.child import GPU_LOST, Job, child_main, how_it_ended
from wsi_ips.engine.noise import Noise
from wsi_ips.engine.tuning import worker_memory
from wsi_ips.engine.watching import Patience, rebuilt_error, resident_bytes, said_ahead
from wsi_ips.errors import StoppedError

__all__ = ["Executor", "Job", "LocalExecutor", "Outcome", "Progress", "WorkerLimits"]

MAX_DEATHS = 2
_PARK_SECONDS = 8.0  # for putting a slide by, before SIGKILL


class Outcome(NamedTuple):
    """What became of a job."""

    id: str
    result: dict[str, Any] | None  # what the worker returned; None when it died
    code: str = ""  # E_WORKER_DIED, E_TIMEOUT, E_MEMORY
    message: str = ""
    attempts: int = 1
    noise: str = ""  # what the worker's libraries printed meanwhile


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
        """End all workers."""


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker may use before it is ended."""

    stall_seconds: float = 600.0  # without any progress
    memory_bytes: int | None = None  # resident memory of one worker; None: its part of the machine's, see `worker_memory`


@dataclass
class _Child:
    process: Any
    pipe: Connection
    setup: dict[str, Any]
    noise: Noise
    job: Job | None = None
    next: Job | None = None  # reserved for it
    beside: set[str] = field(default_factory=set)  # ids it has begun to prepare and was not given yet
    last_sign: float = 0.0  # see `Patience`
    is_ready: bool = False
    peak_bytes: int = 0


@dataclass
class _Book:
    """What is known of the jobs of one run."""

    queue: deque[Job]
    tries: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)  # of children, that only this job can have caused
    alone: set[str] = field(default_factory=set)  # ids at whose side nothing is prepared, and which are not prepared
    lost_gpu: set[str] = field(default_factory=set)  # ids under which a GPU failed since a job was last done


class LocalExecutor:
    """Child processes of this machine.

    Args:
        factory: "module:callable"; called in the child with its set-up, returns an object with `info` (dict) and
            `work(payload, progress) -> dict`; and, if it likes, `expect(payload or None, begun)`, called before: the
            next job's payload, and what to call before it is prepared.
        setups: plain arguments of the factory, one mapping a worker (each its own GPU, say).
        limits: deadline and memory of each.
    """

    def __init__(self, factory: str, setups: Sequence[dict[str, Any]], limits: WorkerLimits) -> None:
        self._factory, self._limits = factory, limits
        self.memory_bytes = limits.memory_bytes or worker_memory(len(setups))
        self._free = list(setups)
        self._n_workers = len(setups)
        self._children: list[_Child] = []
        self._patience = Patience()
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
                raise rebuilt_error(*value)
            if kind == "died":
                print(child.noise.take(), file=sys.stderr)
                raise StoppedError(
                    f"a worker ended while it was starting ({value}); a script of your own calls this inside "
                    "if __name__ == \"__main__\":, for workers import it; wsi-ips --debug shows a worker's output"
                )

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> Iterator[Outcome]:
        """Do the jobs; a worker that dies, stalls or grows too large costs its slide alone."""
        book = _Book(deque(jobs))
        while book.queue or any(c.job for c in self._children):
            n_busy = sum(bool(c.job) for c in self._children)
            while len(self._children) < min(self._n_workers, len(book.queue) + n_busy):
                self._spawn()
            self._hand_out(book)
            for child in self._wait():
                kind, value = self._receive(child, timeout=0.0)
                if kind == "progress":
                    on_progress(Progress(*value))
                elif kind == "ready":
                    child.is_ready = True
                elif kind == "ahead":
                    child.beside.add(value)
                elif kind == "done" and child.job:
                    job, child.job = child.job, None
                    book.lost_gpu.clear()
                    yield Outcome(job.id, value, attempts=book.tries[job.id], noise=child.noise.take())
                elif kind == "stopped":
                    raise StoppedError(value)
                elif kind == "refused":
                    raise rebuilt_error(*value)
                elif kind == "died":
                    yield from self._bury(child, ("E_WORKER_DIED", value), book)
            for child, reason in self._overdue():
                yield from self._bury(child, reason, book)

    def close(self) -> None:
        """End all workers; those at work get some seconds to put their slides by."""
        for child in self._children:
            if child.job is not None and child.is_ready:
                child.process.terminate()
        deadline = time.monotonic() + _PARK_SECONDS
        for child in self._children:
            if child.job is not None and child.is_ready:
                child.process.join(max(0.0, deadline - time.monotonic()))
            _end(child)
            self._free.append(child.setup)
        self._children.clear()

    def _spawn(self) -> _Child:
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        setup = self._free.pop(0)
        noise = Noise()
        process = context.Process(target=child_main, args=(there, self._factory, setup, os.getpid(), noise.path), daemon=True)
        process.start()
        there.close()
        child = _Child(process, here, setup, noise, last_sign=self._patience.now())
        self._children.append(child)
        return child

    def _hand_out(self, book: _Book) -> None:
        given = []
        for child in self._children:
            if book.queue and child.is_ready and child.job is None:
                child.job = self._choose(child, book.queue)
                book.queue.remove(child.job)
                book.tries[child.job.id] += 1
                child.beside.discard(child.job.id)
                child.next = None
                child.last_sign = self._patience.now()
                given.append(child)
        for child in given:  # after all have their job, so that nothing is reserved that another is waiting for
            child.next = self._reserve(child, book)
            with contextlib.suppress(OSError):  # a dead child is noticed by its closed pipe
                child.pipe.send((child.job, child.next))

    def _choose(self, child: _Child, queue: deque[Job]) -> Job:
        """Choose its reserved job, else the first that nobody has reserved, else the first."""
        if child.next is not None and any(job.id == child.next.id for job in queue):
            return child.next
        taken = {c.next.id for c in self._children if c.next}
        return next((job for job in queue if job.id not in taken), queue[0])

    def _reserve(self, child: _Child, book: _Book) -> Job | None:
        """Find the job that will probably be the child's next; those that others wait for are left to them."""
        if child.job is None or child.job.id in book.alone:
            return None
        taken = {c.next.id for c in self._children if c.next} | book.alone
        n_waiting = sum(c.job is None for c in self._children)
        free = (job for job in book.queue if job.id not in taken)
        return next(islice(free, n_waiting, None), None)

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
            return "died", how_it_ended(child.process.exitcode)
        child.last_sign = self._patience.now()
        if message[0] == "ready":
            child.noise.forget_name()
        return message

    def _overdue(self) -> list[tuple[_Child, tuple[str, str]]]:
        late: list[tuple[_Child, tuple[str, str]]] = []
        now = self._patience.now()
        for child in self._children:
            size = resident_bytes(child.process.pid)
            self.peak_bytes = max(self.peak_bytes, size)
            child.noise.trim()
            silent = now - child.last_sign
            if size > self.memory_bytes:
                text = f"the worker grew to {size / 2**30:.1f} GiB, more than the {self.memory_bytes / 2**30:.1f} it may use"
                late.append((child, ("E_MEMORY", f"{text} (--memory-gb)")))
            elif (child.job or not child.is_ready) and silent > self._limits.stall_seconds:
                late.append((child, ("E_TIMEOUT", f"no progress for {silent:.0f} s; the worker was ended")))
        return late

    def _bury(self, child: _Child, reason: tuple[str, str], book: _Book) -> Iterator[Outcome]:
        child.beside |= said_ahead(child.pipe)
        noise = _end(child)
        self._children.remove(child)
        self._free.append(child.setup)
        if child.job is None:
            if not child.is_ready:
                print(noise, file=sys.stderr)
                raise StoppedError(f"a worker ended while it was starting ({reason[1]})")
            return
        job = child.job
        book.alone |= {job.id, *child.beside}
        if child.process.exitcode == GPU_LOST:
            book.lost_gpu.add(job.id)
            if len(book.lost_gpu) > 1:  # a fault of one slide alone would have spared the other
                raise StoppedError(f"{reason[1]}, twice in a row, on different slides; finished slides are kept. Look at the "
                                   "GPU (nvidia-smi, dmesg), then run the same command again")  # fmt: skip
        if not child.beside:  # else what it was preparing may have done it; this ends, for nothing is prepared twice
            book.deaths[job.id] += 1
        if book.deaths[job.id] < MAX_DEATHS:
            book.queue.append(job)
            return
        code, text = reason
        if child.process.exitcode is None:
            text += f" (its process {child.process.pid} does not end: it waits for a disk or a mount that does not answer)"
        yield Outcome(job.id, None, code, f"{text}; tried {MAX_DEATHS} times", book.tries[job.id], noise)


def _end(child: _Child) -> str:
    """End a child; give what it printed last."""
    child.process.kill()
    child.process.join(5.0)
    child.pipe.close()
    noise = child.noise.take()
    child.noise.close()
    return noise
