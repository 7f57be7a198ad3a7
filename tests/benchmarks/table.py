"""Alternatives measured in turn, and the table that says which is faster and by how much.

A machine that others use, too, is faster in one minute than in the next; so all alternatives run in every round, one
after the other (A B C, A B C, ...), and a ratio is taken within a round. The table shows medians with least and largest.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median

from wsi_ips.engine.environment import available_cores, cpu_flags

__all__ = ["Measured", "compare", "machine", "spread"]

_PACKAGES = ("torch", "torchvision", "timm", "openslide-bin", "openslide-python", "simplejpeg", "opencv-python", "imagecodecs",
             "tifffile", "numpy")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Seconds of every alternative in every round, by its name; the first is the baseline."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]  # of this process and of children that have ended by the end of the call
    n_items: int

    def ratios(self, name: str, *, cpu: bool = False) -> list[float]:
        """How many times faster than the baseline an alternative was, round by round."""
        seconds = self.cpu if cpu else self.wall
        return [a / b for a, b in zip(seconds[next(iter(seconds))], seconds[name], strict=True)]

    def markdown(self, item: str = "tile") -> str:
        """Write the table: ms of an item by the clock and of all cores together, and ratios to the first row."""
        lines = [f"| way | ms/{item} | CPU ms/{item} | {item}s/s | times faster | times less CPU |", "|---|---|---|---|---|---|"]
        for name, wall in self.wall.items():
            cells = [spread([1e3 * s / self.n_items for s in seconds]) for seconds in (wall, self.cpu[name])]
            cells += [spread([self.n_items / s for s in wall]), spread(self.ratios(name)), spread(self.ratios(name, cpu=True))]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        rounds = len(next(iter(self.wall.values())))
        return "\n".join([*lines, "", f"n = {self.n_items} {item}s a call; {rounds} rounds in turn; median [least-largest]."])


def compare(ways: Mapping[str, Callable[[], object]], n_items: int, *, rounds: int = 5, warm_up: int = 1) -> Measured:
    """Run alternatives in turn.

    Args:
        ways: by name, the baseline first; each call does the whole work, with its processes started and ended in it.
        n_items: how many tiles (or what it may be) a call works on.
        rounds: measured rounds.
        warm_up: rounds before, not measured.
    """
    found = Measured({name: [] for name in ways}, {name: [] for name in ways}, n_items)
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), _cpu_seconds()
            way()
            if number >= warm_up:
                found.wall[name].append(time.perf_counter() - wall)
                found.cpu[name].append(_cpu_seconds() - cpu)
    return found


def _cpu_seconds() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def spread(values: list[float]) -> str:
    """Write a median with least and largest, to three digits that matter.

    >>> spread([2.0, 1.0, 1234.5])
    '2 [1-1234]'
    """
    return f"{_short(median(values))} [{_short(min(values))}-{_short(max(values))}]"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """Describe the machine in a few lines, without names of hosts or users."""
    used = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    threads = os.environ.get("OMP_NUM_THREADS", "as torch sets them")
    return (f"{platform.machine()}, {available_cores()} cores, {' '.join(cpu_flags()) or 'no vector flags known'}; "
            f"OMP threads {threads}\nPython {platform.python_version()}, {used}")  # fmt: skip
