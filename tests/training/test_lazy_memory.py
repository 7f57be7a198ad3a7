"""A training step reads an image lazily: its memory does not grow with the number of tiles."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_BENCH = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_selection.py"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "ips"])
def test_a_step_on_250000_tiles_takes_the_memory_of_10000(mode: str) -> None:
    """Peak resident memory of a process, without the ledger's own bytes, within 10 %."""
    spec = importlib.util.spec_from_file_location("bench_selection", _BENCH)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    few, many = (bench.in_a_process(str(n), mode, "small", "once") for n in (10_000, 250_000))
    own = [r["peak_mib"] - r["ledger_mib"] for r in (few, many)]
    print(f"\n{mode}: {few['peak_mib']:.0f} MiB of 10,000 tiles, {many['peak_mib']:.0f} of 250,000 ({many['ledger_mib']:.0f} of them the ledger)")
    assert own[1] <= 1.1 * own[0]
