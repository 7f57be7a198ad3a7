"""Encode at the hardware's limit: inference engines that embed tiles in an encoder's place, where nothing learns.

* `torch`: a copy of the net with batch normalisation folded into the convolutions, channels-last, wholly in bfloat16
  where the hardware multiplies in it. On a CPU each core has a lane of its own, a thread that takes a few tiles from
  the first layer to the last: activations stay in the core's cache, and no core waits for another at the end of every
  layer, which beside a thread that reads cost a third of the time. A traced and frozen graph (torch.jit) gained nothing
  measurable over this; torch.compile does, but needs a C++ compiler.
* `openvino` (extra `fast`): the net in OpenVINO's runtime, on the CPU; see openvino_engine.py.
* `cuda`: the torch engine's net as a captured CUDA graph, with copies beside it; see cuda_engine.py.

Training and gradients never come here. Which engine ran is part of the embeddings' identity (`embedding_hash`).

Shapes: n tiles, S side, C channels, W width of an embedding.
"""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_ips.errors import ConfigError, ModelError
from wsi_ips.model.arithmetic import in_fixed_batches, normalised, round_to_stored
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.embedder import Embedder, Engine, relative_error
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.ensemble import Classifier, EnsembleClassifier

__all__ = ["FastNet", "TorchEngine", "make_engine", "set_engine", "use_engine"]

TILES_A_CORE = 8  # at a time; of 4, 8, 16 and 32 the fastest: activations of resnet18 at 224 px then fit a cache of 2 MiB
_TILES_A_GPU = 256
# relative error up to which a copy is used; in bfloat16 throughout, the long sums of deep transformers can be above it
_GOOD_COPY = {torch.float32: 1e-4, torch.bfloat16: 6e-3}


def use_engine(
    classifier: Classifier, name: str, *, threads: int | None = None, place: Path | None = None, at_most: int | None = None
) -> tuple[str, ...]:
    """Let a classifier embed tiles by an engine; each different encoder of an ensemble gets its own.

    Args:
        classifier: on its device, to predict with; one that takes features stays as it is. Gradients and `forward`
            still pass through its modules.
        name: torch, openvino, cuda; or module, which takes the engine away.
        threads: of the CPU; None takes torch's.
        place: folder that keeps exported nets; None keeps none.
        at_most: tiles at once, where memory allows fewer than the model's chunk.

    Returns:
        What went otherwise than planned, a sentence each.

    Raises:
        ConfigError: no such engine, or none on this device, or its package is missing.
        ModelError: it computes other embeddings than the encoder.
    """
    members: list[Any] = list(classifier.members) if isinstance(classifier, EnsembleClassifier) else [classifier]
    made: dict[int, Embedder] = {}
    for member in members:
        assert isinstance(member, IPSClassifier)
        member.embedder = None
        encoder = member.encoder
        if name == "module" or not isinstance(encoder, Encoder):
            continue
        if id(encoder) not in made:
            chunk = min(member.settings.selection.chunk_size, at_most or member.settings.selection.chunk_size)
            made[id(encoder)] = Embedder(encoder, make_engine(encoder, name, chunk, threads=threads, place=place))
        member.embedder = made[id(encoder)]
    return tuple(dict.fromkeys(one.engine.note for one in made.values() if one.engine.note))


def set_engine(
    classifier: Classifier, engine: dict[str, Any], place: Path | None, at_most: int | None = None
) -> tuple[str, str]:
    """Let a classifier embed tiles by the engine a run asks for; torch stands in where that is allowed.

    Args:
        classifier: see `use_engine`.
        engine: {"name": see `use_engine`, "or_torch": whether torch may stand in}.
        place, at_most: see `use_engine`.

    Returns:
        The engine's name, and what went otherwise than planned.

    Raises:
        ConfigError, ModelError: it cannot, and torch may not stand in.
    """
    name = engine["name"] if classifier.takes_tiles else "module"  # nothing to encode
    try:
        return name, " ".join(use_engine(classifier, name, place=place, at_most=at_most))
    except (ConfigError, ModelError) as error:
        if not engine["or_torch"] or name == "torch":
            raise
        use_engine(classifier, "torch", place=place, at_most=at_most)
        return "torch", f"{error}; torch encodes instead"


def make_engine(
    encoder: Encoder, name: str, chunk_size: int, *, threads: int | None = None, place: Path | None = None
) -> Engine:
    """Make an engine for an encoder.

    Args:
        encoder: on its device.
        name: torch, openvino or cuda.
        chunk_size: how many tiles will come at a time; batches are never larger.
        threads, place: see `use_engine`.

    Raises:
        ConfigError: see `use_engine`.
    """
    threads, kind = threads or torch.get_num_threads(), encoder.device.type
    if encoder.mean.dtype != torch.float32:
        raise ConfigError(f"--engine {name}: engines take weights in float32, these are in {encoder.mean.dtype}")
    if name == "torch":
        if kind == "cuda":
            return TorchEngine(FastNet(encoder), min(_TILES_A_GPU, chunk_size))
        batch = min(TILES_A_CORE, chunk_size)
        return TorchEngine(FastNet(encoder), batch, min(threads, -(-chunk_size // batch)))
    if name == "openvino" and kind == "cpu":
        from wsi_ips.model.openvino_engine import OpenVinoEngine  # here: an extra, and slow to load

        return OpenVinoEngine(encoder, min(TILES_A_CORE, chunk_size), threads=threads, chunk_size=chunk_size, place=place)
    if name == "cuda" and kind == "cuda":
        from wsi_ips.model.cuda_engine import CudaEngine

        return CudaEngine(FastNet(encoder), min(_TILES_A_GPU, chunk_size))
    raise ConfigError(f"--engine {name}: there is no such engine on {kind}; expected torch, openvino (on a CPU) or cuda")


class FastNet(nn.Module):
    """An encoder's function from a copy of its net, as fast as torch runs it eagerly; learns nothing.

    `form` says what became of the net: "folded" when batch normalisation went into the convolutions, "plain" when it
    cannot, and "as is" when it loses too much in pure bfloat16, so that only products are in it, as in the encoder.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.arithmetic, self.width = encoder.arithmetic, encoder.width
        self.register_buffer("mean", encoder.mean.clone())
        self.register_buffer("std", encoder.std.clone())
        net, is_folded = _folded(encoder.net)
        self.net = net.to(self.arithmetic, memory_format=torch.channels_last).requires_grad_(False).eval()  # type: ignore[call-overload]  # torch's stubs know the two apart only
        self.form = "folded" if is_folded else "plain"
        if not relative_error(encoder, TorchEngine(self, 2)) <= _GOOD_COPY[self.arithmetic]:
            self.net = copy.deepcopy(encoder.net).requires_grad_(False).eval()
            self.form = "as is"

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed (n, S, S, C) uint8 tiles on any device: (n, W) float32, rounded to float16."""
        x = normalised(tiles, self.mean, self.std)  # (n, C, S, S), channels-last; a few tiles: it stays in the cache
        if self.form == "as is":
            with torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.arithmetic == torch.bfloat16):
                return round_to_stored(self.net(x).float())
        return round_to_stored(self.net(x.to(self.arithmetic)).float())


class TorchEngine:
    """Runs a `FastNet` eagerly, on any device.

    Args:
        net: on its device.
        batch: tiles at once.
        lanes: batches at once, each in one thread on one core; with 1, torch's own threads share a batch's layers.
    """

    name = "torch"
    note = ""

    def __init__(self, net: FastNet, batch: int, lanes: int = 1) -> None:
        self._net, self._batch = net, batch
        self._lanes = _make_lanes(lanes) if lanes > 1 else None
        kind = str(net.arithmetic).removeprefix("torch.")
        self.compute = f"torch engine {net.mean.device.type}/{kind}, net {net.form}, {batch} tiles at once"
        if self._lanes is not None:
            self.compute += " by one thread"

    def embed(self, tiles: Tensor) -> Tensor:
        """See `Engine`."""
        return in_fixed_batches(self._run, tiles, self._batch, self._lanes)

    @torch.inference_mode()  # holds for the thread that runs
    def _run(self, tiles: Tensor) -> Tensor:
        return self._net(tiles)


def _make_lanes(n: int) -> ThreadPoolExecutor:
    """Start threads in each of which torch computes alone."""
    started, before = threading.Barrier(n + 1), torch.get_num_threads()

    def begin() -> None:
        torch.get_num_threads()  # torch sets a thread's number at its first question: what was set before would be lost
        torch.set_num_threads(1)
        started.wait()

    lanes = ThreadPoolExecutor(n, "encoder-lane")
    for _ in range(n):
        lanes.submit(begin)
    started.wait()
    torch.set_num_threads(before)  # of this thread, and of those to come
    return lanes


def _folded(net: nn.Module) -> tuple[nn.Module, bool]:
    """Copy a net with batch normalisation folded into the convolutions before it, where it can be traced for that."""
    plain = copy.deepcopy(net).eval()
    try:
        from torch.fx.experimental.optimization import fuse  # here: experimental, so it may move

        return fuse(plain), True
    except Exception:  # a net with control flow cannot be traced, and torch.fx raises whatever it met there
        return plain, False
