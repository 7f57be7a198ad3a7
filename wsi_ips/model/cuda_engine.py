"""The encoder as a captured CUDA graph: one launch a batch, with the next batch's pixels already on their way.

Pixels travel as uint8 on a stream of their own (at once where the caller's memory is pinned) into one of two waiting
places; normalisation, cast and channels-last happen on the device, inside the graph. Where a net cannot be captured
the same code runs eagerly, and the run says so.

Shapes: n tiles, B tiles a batch, S side, C channels, W width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wsi_ips.model.arithmetic import in_fixed_batches

__all__ = ["CudaEngine"]

_N_WARM = 3  # runs before the capture, in which libraries choose kernels and set up their memory


class CudaEngine:
    """Embeds tiles on a GPU, B at a time.

    Args:
        net: a `FastNet` on the GPU, uint8 tiles to embeddings; its buffer `mean` says the device.
        batch: B.
    """

    name = "cuda"

    def __init__(self, net: nn.Module, batch: int) -> None:
        self._net, self._batch, self.note = net, batch, ""
        self._device: torch.device = net.mean.device  # type: ignore[assignment]  # a buffer
        self._side = torch.cuda.Stream(self._device)
        self._places: list[Tensor] = []  # two of (B, S, S, C), made with the first tiles
        self._filled = [torch.cuda.Event() for _ in range(2)]  # by the side stream
        self._read = [torch.cuda.Event() for _ in range(2)]  # by the graph
        self._run: Callable[[Tensor], Tensor] = net
        self.compute = f"cuda engine {self._device.type}/{net.arithmetic}, net {net.form}, {batch} tiles at once"

    @torch.inference_mode()
    def embed(self, tiles: Tensor) -> Tensor:
        """See `Engine`; also takes tiles that are on the GPU already."""
        with torch.cuda.device(self._device):
            if not self._places:
                self._prepare(tiles.shape[1:])
            if tiles.is_cuda:
                return in_fixed_batches(self._run, tiles, self._batch)
            out = []
            starts = range(0, len(tiles), self._batch)
            self._send(tiles, 0, 0)
            main = torch.cuda.current_stream()
            for i, start in enumerate(starts):
                here = i % 2
                if start + self._batch < len(tiles):
                    self._send(tiles, start + self._batch, 1 - here)
                main.wait_event(self._filled[here])
                found = self._run(self._places[here])
                self._read[here].record(main)
                out.append(found[: len(tiles) - start])
            self._side.synchronize()  # the caller may fill its memory again
            return torch.cat(out)

    def _send(self, tiles: Tensor, start: int, place: int) -> None:
        """Copy a batch to a waiting place, once that has been read; what is left of it becomes zeros."""
        part, to = tiles[start : start + self._batch], self._places[place]
        self._side.wait_event(self._read[place])  # one never recorded does not hold anything up
        with torch.cuda.stream(self._side):
            to[: len(part)].copy_(part, non_blocking=True)
            to[len(part) :].zero_()
            self._filled[place].record(self._side)

    def _prepare(self, shape: torch.Size) -> None:
        """Make the waiting places and capture the graph."""
        self._places = [torch.zeros(self._batch, *shape, dtype=torch.uint8, device=self._device) for _ in range(2)]
        torch.cuda.current_stream().synchronize()
        try:
            self._run = _captured(self._net, torch.zeros_like(self._places[0]))
        except RuntimeError as error:  # torch's own, and CUDA's through it
            self._run = self._net
            self.note = f"this encoder cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); it runs without"


def _captured(net: nn.Module, pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """Capture a net on tiles of one shape: a function that copies tiles in, replays, and copies the result out.

    Raises:
        RuntimeError: it cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_N_WARM):
            net(pixels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = net(pixels)

    def run(tiles: Tensor) -> Tensor:
        pixels.copy_(tiles)
        graph.replay()
        return result.clone()

    return run
