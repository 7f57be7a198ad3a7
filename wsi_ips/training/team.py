"""One process or several that learn together: who does which slide, and how gradients and records come together.

Started by `torchrun`, Lightning Fabric gives every process its rank and device (gloo on CPUs, NCCL on GPUs); otherwise
one process is the whole team. Gradients are summed once a step, after the exact two-pass gradient; they are not hooked
into the backward pass, which runs several times a step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from wsi_ips.engine.environment import is_out_of_memory
from wsi_ips.errors import StoppedError

__all__ = ["Team", "processes_here"]


def processes_here() -> int:
    """How many processes of this training share the machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class Team:
    """The processes of one training.

    Args:
        device: where this process learns when it is alone; under torchrun the launcher decides.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size, self.device = 0, 1, torch.device(device)
        self._fabric: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from lightning_fabric import Fabric  # here: only several processes need it

            local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
            kind = "cpu" if device == "cpu" else "auto"
            self._fabric = Fabric(accelerator=kind, devices=local, strategy="ddp",
                                  num_nodes=int(os.environ["WORLD_SIZE"]) // local)  # fmt: skip
            self._fabric.launch()
            self.rank, self.size = int(self._fabric.global_rank), int(self._fabric.world_size)
            self.device = self._fabric.device

    @property
    def is_leader(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, items: list[Any]) -> list[Any]:
        """The items this process does: every size-th from its rank on."""
        return items[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up what the processes have found; a parameter without gradient counts as zero."""
        if self._fabric is None:
            return
        chosen = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in chosen])
        with _together():
            total = self._fabric.all_reduce(flat, reduce_op="sum")
        for p, part in zip(chosen, total.split([p.numel() for p in chosen]), strict=True):
            p.grad = part.view_as(p).clone()

    def gather(self, mine: Any) -> list[Any]:
        """Bring plain objects of all processes together, in order of rank, on every process."""
        if self._fabric is None:
            return [mine]
        found: list[Any] = [None] * self.size
        with _together():
            torch.distributed.all_gather_object(found, mine)
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._fabric is not None:
            with _together():
                self._fabric.barrier()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Say what it means when the others do not answer: one of them has died, or hangs for longer than half an hour."""
    try:
        yield
    except RuntimeError as error:  # of torch.distributed: gloo's, NCCL's through it, and its timeouts
        if is_out_of_memory(error):
            raise
        raise StoppedError(
            f"a process of this training has ended, or does not answer ({str(error).splitlines()[0]}); the last checkpoint is kept, "
            "start the same command again with as many processes"
        ) from error
