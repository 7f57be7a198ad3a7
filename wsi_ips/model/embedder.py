"""An inference engine bound to the encoder it was made from, and refused once that encoder has changed.

An engine computes what an encoder computes, faster and without gradient, from a copy of its weights. The copy knows
nothing of what happens to the weights later (training, other weights loaded, another device), so the bond is checked:
cheaply at every call, by every bit whenever the identity of the embeddings is asked for.

Shapes: n tiles, B tiles of one call of the engine, S side, C channels, W width of an embedding.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from wsi_ips.errors import ModelError
from wsi_ips.model.arithmetic import normalised
from wsi_ips.model.encoder import Encoder

__all__ = ["Embedder", "Engine"]

_N_PROBED = 2  # tiles that a new engine and its encoder must agree on
_ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # relative; bf16 forms of one net lie 1e-3 to 2e-2 apart


class Engine(Protocol):
    """Embeds tiles in batches of one fixed shape."""

    name: str  # "torch", "openvino" or "cuda"
    compute: str  # names the arithmetic: another text, other last bits
    note: str  # what went otherwise than planned; "" when nothing did

    def embed(self, tiles: Tensor) -> Tensor:
        """Embed (n, S, S, C) uint8 tiles on the CPU, n > 0: (n, W) float32, rounded to float16, on any device."""


class Embedder:
    """Embeds by an engine for as long as the encoder is the one it was made from.

    Raises:
        ModelError: the engine computes something else than the encoder.
    """

    def __init__(self, encoder: Encoder, engine: Engine) -> None:
        self.engine = engine
        self._encoder, self._hash, self._state = encoder, encoder.hash, _state(encoder)
        error = relative_error(encoder, engine)
        # a net that makes much of little differences does so in bfloat16 whoever computes it
        allowed = max(_ALLOWED[encoder.arithmetic], 3.0 * _own_rounding(encoder))
        if not error <= allowed:
            raise ModelError(
                f"encoder {encoder.architecture.name}: the {engine.name} engine computes other embeddings than the model "
                f"(relative difference {error:.2g}, allowed {allowed:.2g}); choose another --engine, and please report this"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Leave the engine out of copies: a copy has weights of its own, which will learn."""
        return

    @property
    def compute(self) -> str:
        """Names the arithmetic.

        Raises:
            ModelError: any bit of the encoder is another one now.
        """
        if self._encoder.hash != self._hash:
            raise self._changed()
        return self.engine.compute

    def __call__(self, tiles: Tensor) -> Tensor:
        """Embed (n, S, S, C) uint8 tiles, n > 0: (n, W) float32, rounded to float16.

        Raises:
            ModelError: the weights were changed since; tiles the encoder does not take.
        """
        if _state(self._encoder) != self._state:
            raise self._changed()
        self._encoder.check_tiles(tiles)
        return self.engine.embed(tiles)

    def _changed(self) -> ModelError:
        return ModelError("the encoder has changed since its inference engine was made: call use_engine again")


def _state(encoder: Encoder) -> list[tuple[int, int]]:
    """Place and version of all weights: changes in place count up the version, others change the place."""
    return [(t.data_ptr(), t._version) for t in chain(encoder.parameters(), encoder.buffers())]


@torch.inference_mode()
def relative_error(encoder: Encoder, engine: Engine) -> float:
    """Compare an engine with its encoder on a few tiles of noise: |difference| / |embedding|, the largest of any tile.

    An encoder whose numbers are not finite is compared with nothing: the pass over a slide says so, with the place.
    """
    tiles = _noise(encoder)
    return _apart(engine.embed(tiles), encoder(tiles))


@torch.inference_mode()
def _own_rounding(encoder: Encoder) -> float:
    """How far the encoder's own arithmetic is from float32."""
    tiles = _noise(encoder)
    return _apart(encoder(tiles), encoder.net(normalised(tiles, encoder.mean, encoder.std)))


def _noise(encoder: Encoder) -> Tensor:
    a = encoder.architecture
    shape = (_N_PROBED, a.tile_px, a.tile_px, a.in_channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _apart(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.float().cpu(), wanted.float().cpu()
    if not bool(wanted.isfinite().all()):
        return 0.0
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-6)).max())
