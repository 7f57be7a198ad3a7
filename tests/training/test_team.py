"""Several processes that learn together: when one dies the others end, with the way on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from wsi_ips.errors import StoppedError, exit_status
from wsi_ips.training.team import Team

GONE = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.1.1]:4321\nmore"


class _Alone:
    """What torch's collectives do when another process is gone."""

    def all_reduce(self, *_: object, **__: object) -> None:
        raise RuntimeError(GONE)

    def barrier(self) -> None:
        raise RuntimeError(GONE)


@pytest.mark.parametrize("what", [
    lambda team: team.sum_gradients([torch.nn.Parameter(torch.zeros(2))]), lambda team: team.wait(), lambda team: team.gather(1),
])  # fmt: skip
def test_fault_118_a_process_that_died_stops_the_others(what: Callable[[Team], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 3, one sentence, and the checkpoint is where it was."""
    team = Team()
    team._fabric = _Alone()

    def gone(*_: object) -> None:
        raise RuntimeError(GONE)

    monkeypatch.setattr(torch.distributed, "all_gather_object", gone)
    with pytest.raises(StoppedError, match=r"Connection closed by peer.*checkpoint is kept") as caught:
        what(team)
    assert exit_status(caught.value) == 3
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_fault_118_nobody_waits_for_a_process_that_was_killed() -> None:
    """Two real processes; one is killed before a step's sum: the other ends within a minute with the sentence."""
    code = (
        "import os, signal, sys\n"
        "from wsi_ips.training.team import Team\n"
        "from wsi_ips.errors import StoppedError\n"
        "team = Team('cpu')\n"
        "team.wait()\n"
        "if team.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "try:\n"
        "    team.gather({'rank': team.rank})\n"
        "except StoppedError as error:\n"
        "    print(error)\n"
        "    sys.stdout.flush()\n"
        "    os._exit(3)\n"
    )
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                         env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]  # fmt: skip
    said, _ = started[0].communicate(timeout=120)
    assert started[0].returncode == 3, said
    assert "checkpoint is kept" in said
    assert started[1].wait() == -9
