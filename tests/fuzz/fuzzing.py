"""Runs a check on made documents for a time, and holds it to three promises.

Nothing but this package's own errors may come out; no document takes longer than a deadline; memory stays bounded. What
breaks one is made as small as it gets, and its bytes stay in a file that the message names. A round has its number for a
seed, so that the same rounds are the same documents.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import SearchStrategy

from wsi_ips.errors import WsiIpsError

__all__ = ["Document", "fuzz", "fuzz_test", "try_some"]

FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))
_DEADLINE_SECONDS = 5.0  # of one document; the slowest that is right takes about a second beside other work
_ROOM_BYTES = 2 << 30  # of addresses that checks may take beyond what the process has
_A_ROUND = 300


# a hang that Python cannot end ends the process, with a trace of every thread
_WHOLE_TIMEOUT = pytest.mark.timeout(FUZZ_SECONDS + 300, method="thread")


def fuzz_test(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that calls `fuzz`."""
    return pytest.mark.fuzz(_WHOLE_TIMEOUT(test))


class Document(NamedTuple):
    """A file's content, and the ending of its name."""

    data: bytes
    ending: str


class TooSlowError(AssertionError):
    """A document took longer than its deadline."""


def try_some(check: Callable[[Any], None], documents: SearchStrategy[Any], n: int = 60) -> None:
    """Try a few documents, always the same: for the quick tests."""
    with _bounded_memory():
        _round(check, documents, 0, n)


def fuzz(check: Callable[[Any], None], documents: SearchStrategy[Any]) -> None:
    """Try documents until the time is up; says how many there were."""
    until, n_rounds, tried = time.monotonic() + FUZZ_SECONDS, 0, [0]

    def counted(document: Any) -> None:
        tried[0] += 1
        check(document)

    with _bounded_memory(), _silence():
        while time.monotonic() < until:
            n_rounds += 1
            _round(counted, documents, n_rounds, _A_ROUND)
    print(f"\n{check.__name__}: {tried[0]} documents in {n_rounds} rounds, {FUZZ_SECONDS:g} s")


def _round(check: Callable[[Any], None], documents: SearchStrategy[Any], number: int, n: int) -> None:
    def one(document: Any) -> None:
        try:
            with _deadline():
                check(document)
        except WsiIpsError:
            pass
        except BaseException as error:
            error.add_note(f"round {number}; the document is kept in {_keep(document)}")
            raise

    quiet = settings(
        max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
        verbosity=Verbosity.quiet,  # documents are kept, not printed
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # of long documents
        hypothesis.seed(number)(quiet(given(documents)(one)))()


def _keep(document: Any) -> str:
    data, ending = document if isinstance(document, Document) else (repr(document).encode(), ".txt")
    path = Path(tempfile.gettempdir()) / f"fuzz-{hashlib.sha256(data).hexdigest()[:12]}{ending}"
    path.write_bytes(data)
    return str(path)


@contextmanager
def _deadline() -> Iterator[None]:
    """Stop what Python can stop; what it cannot is measured afterwards."""

    def late(number: int, frame: Any) -> None:
        raise TooSlowError(f"no end after {_DEADLINE_SECONDS:g} s")

    started, before = time.monotonic(), signal.signal(signal.SIGALRM, late)
    left, every = signal.setitimer(signal.ITIMER_REAL, _DEADLINE_SECONDS)  # of the test as a whole
    try:
        yield
    finally:
        seconds = time.monotonic() - started
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, left - seconds) if left else 0, every)
    if seconds > _DEADLINE_SECONDS:  # perhaps somebody caught it
        raise TooSlowError(f"ended after {seconds:.1f} s")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep no record of what libraries say of a million documents."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let memory end soon, as a `MemoryError`, where the system can."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
