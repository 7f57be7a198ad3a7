"""From tiles to embeddings: any timm model, with its own normalisation inside.

Tiles come as uint8 at the encoder's input size, so there is no resize and no crop anywhere (`crop_pct` is 1).
The network always computes its inference function, also while it learns: normalisation on frozen statistics, no
dropout. So a tile's embedding depends on that tile alone, which both exact selection and exact gradients rest on.

Shapes: n tiles, S side, C channels, W width of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.hub import build_pretrained, resolve_architecture
from wsi_ips.model.weights import check_finite, load_strict, read_state

__all__ = ["Architecture", "Encoder", "build_encoder", "in_fixed_batches", "is_bf16_native", "rebuild_encoder"]

Precision = Literal["auto", "float32"]


class Architecture(NamedTuple):
    """All that is needed to build an encoder again without network; stored in a bundle."""

    name: str  # timm registry name
    kwargs: dict[str, Any]  # further arguments of the timm model
    in_channels: int
    tile_px: int
    mean: tuple[float, ...]  # (C,) of pixels scaled to 0..1
    std: tuple[float, ...]
    interpolation: str


class Encoder(nn.Module):
    """uint8 tiles in, embeddings out."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, architecture: Architecture, precision: Precision = "auto") -> None:
        """Wrap a network whose output is (n, W).

        Raises:
            ModelError: the network does not take such tiles, or does not pool to one vector a tile.
        """
        super().__init__()
        self.net = net.eval().to(memory_format=torch.channels_last)
        self.architecture = architecture
        self.precision = precision
        self.interpolation = architecture.interpolation
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, -1, 1, 1))
        self.width = self._measured_width()

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.mean.device

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed (n, S, S, C) uint8 tiles as (n, W) float32 (float64 when the weights are).

        Raises:
            ModelError: another type, side or number of channels than the encoder's own.
        """
        a = self.architecture
        if tiles.dtype != torch.uint8 or tuple(tiles.shape[1:]) != (a.tile_px, a.tile_px, a.in_channels):
            raise ModelError(
                f"encoder {a.name}: expected uint8 tiles (n, {a.tile_px}, {a.tile_px}, {a.in_channels}), "
                f"got {tiles.dtype} {tuple(tiles.shape)}"
            )
        x = tiles.to(self.device).permute(0, 3, 1, 2).to(self.mean.dtype)  # (n, C, S, S), channels-last in memory
        x.mul_(1.0 / (255.0 * self.std)).sub_(self.mean / self.std)  # in place: x is a fresh copy
        if x.dtype == torch.float32 and self.precision == "auto" and is_bf16_native(self.device.type):
            with torch.autocast(self.device.type, torch.bfloat16):
                return self.net(x).float()
        with torch.autocast(self.device.type, enabled=False):
            return self.net(x)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the network itself stays in inference (frozen statistics, no dropout)."""
        super().train(mode)
        self.net.eval()
        return self

    def stages(self) -> list[str]:
        """Name the stages that can be opened one by one, first to last."""
        named = [name for name, _ in self.net.named_parameters()]
        modules = [info["module"] for info in getattr(self.net, "feature_info", []) if "module" in info]
        if not modules:
            modules = [name for name, _ in self.net.named_children()]
        return [m for m in modules if any(name.startswith(m + ".") for name in named)]

    def set_trainable(self, stages: int) -> int:
        """Let the last `stages` learn, with all that follows them: -1 everything, 0 nothing.

        Returns:
            How many parameters learn.

        Raises:
            ModelError: more stages than there are.
        """
        known = self.stages()
        if stages < -1 or stages > len(known):
            raise ModelError(
                f"encoder {self.architecture.name}: {stages} stages asked for; it has {known}, -1 opens all"
            )
        start = f"{known[-stages]}." if stages > 0 else ""
        learns = stages == -1
        n_learning = 0
        for name, parameter in self.net.named_parameters():
            learns = learns or (stages > 0 and name.startswith(start))
            parameter.requires_grad_(learns)
            n_learning += parameter.numel() if learns else 0
        return n_learning

    @torch.no_grad()
    def set_norm_statistics(self, tiles: Tensor) -> None:
        """Measure the frozen statistics of batch normalisation on a sample, for a network that starts from scratch.

        Args:
            tiles: (n, S, S, C) uint8; n in the hundreds. A network without batch normalisation is left as it is.
        """
        layers = [m for m in self.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [m.momentum for m in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over what passes
            layer.train()
        self.forward(tiles)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()

    @torch.no_grad()
    def _measured_width(self) -> int:
        a = self.architecture
        try:
            out = self.net(torch.zeros(1, a.in_channels, a.tile_px, a.tile_px))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ModelError(
                f"encoder {a.name}: does not take tiles of {a.tile_px} px, {a.in_channels} channels ({error})"
            ) from error
        if out.ndim != 2:
            raise ModelError(
                f"encoder {a.name}: gives {tuple(out.shape)}, not one vector a tile; set kwargs: {{global_pool: avg}}"
            )
        return int(out.shape[1])


def build_encoder(
    settings: EncoderSettings,
    tile_px: int,
    pretrained_ok: bool = True,
    *,
    offline: bool = False,
    precision: Precision = "auto",
) -> Encoder:
    """Make an encoder from its settings; random weights come from torch's global seed.

    Args:
        settings: name, weights and further arguments.
        tile_px: side S of the tiles.
        pretrained_ok: False builds the shape alone and leaves the weights random, whatever the settings say.
        offline: never look at the network (also by HF_HUB_OFFLINE=1).
        precision: "auto" uses bfloat16 where the hardware computes in it.

    Raises:
        ModelError: unknown name or argument, weights that are absent, do not fit or are not finite.
    """
    weights = settings.weights if pretrained_ok else "none"
    found = resolve_architecture(settings.name, offline)
    kwargs = found.kwargs | settings.kwargs
    if found.fixed_input and "img_size" not in kwargs and not kwargs.get("dynamic_img_size"):
        kwargs["img_size"] = tile_px
    if weights == "pretrained":
        net = build_pretrained(found, _timm_kwargs(kwargs), settings.in_channels, offline)
        check_finite(net.state_dict(), f"encoder {settings.name}")
    else:
        net = _create(found.name, kwargs, settings.in_channels)
        if weights != "none":
            _load_file(net, Path(weights))
    data = found.data | resolve_model_data_config(net)
    architecture = Architecture(
        found.name, kwargs, settings.in_channels, tile_px,
        _per_channel(data["mean"], settings.in_channels), _per_channel(data["std"], settings.in_channels),
        str(data["interpolation"]),
    )  # fmt: skip
    return Encoder(net, architecture, precision)


def rebuild_encoder(architecture: Architecture, precision: Precision = "auto") -> Encoder:
    """Make the same encoder again with random weights, without any file or network.

    Raises:
        ModelError: this version of timm does not know the architecture or its arguments.
    """
    return Encoder(_create(architecture.name, architecture.kwargs, architecture.in_channels), architecture, precision)


def in_fixed_batches(function: Callable[[Tensor], Tensor], tiles: Tensor, batch: int) -> Tensor:
    """Apply a function to tiles in batches of one fixed size, the last padded with zeros.

    Kernels differ in their last bits between batch shapes; with one shape a tile's embedding does not depend on how
    many tiles came with it.

    Args:
        function: (batch, ...) -> (batch, ...).
        tiles: (n, ...); n may be 0 only if the function accepts it.
        batch: size of a batch.
    """
    parts = []
    for start in range(0, max(len(tiles), 1), batch):
        part = tiles[start : start + batch]
        n = len(part)
        if 0 < n < batch:
            part = torch.cat([part, part.new_zeros(batch - n, *part.shape[1:])])
        parts.append(function(part)[:n])
    return torch.cat(parts)


def is_bf16_native(device_type: str) -> bool:
    """Tell whether a kind of device multiplies in bfloat16 in hardware."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        return _cpu_has_bf16()
    return False


def _cpu_has_bf16() -> bool:
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(probe()) for probe in probes if probe is not None)


def _create(name: str, kwargs: dict[str, Any], in_channels: int) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **_timm_kwargs(kwargs))
    except (TypeError, ValueError, RuntimeError, KeyError, AssertionError, IndexError) as error:
        raise ModelError(f"encoder {name}: cannot be built with kwargs {kwargs} ({error})") from error


def _timm_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Say `groupnorm` so that narrow layers work too: timm's own asks for multiples of 32 channels."""
    return kwargs | {"norm_layer": _group_norm} if kwargs.get("norm_layer") == "groupnorm" else dict(kwargs)


def _group_norm(num_channels: int, eps: float = 1e-5, affine: bool = True, **_: Any) -> nn.GroupNorm:
    # 32 groups as in timm; narrow layers get two channels a group, as a layer of 64 has
    groups = 32 if num_channels % 32 == 0 else max(1, math.gcd(num_channels // 2, 32))
    return nn.GroupNorm(groups, num_channels, eps=eps, affine=affine)


def _load_file(net: nn.Module, path: Path) -> None:
    state = read_state(path)
    head = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    own = net.state_dict()
    # the ImageNet classifier of a stock checkpoint has no place in an encoder; nothing else may be left over
    dropped = {f"{h}.{part}" for h in heads for part in ("weight", "bias")} - own.keys()
    load_strict(net, {key: t for key, t in state.items() if key not in dropped}, str(path))


def _per_channel(values: Any, n_channels: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values)
    return numbers if len(numbers) == n_channels else (sum(numbers) / len(numbers),) * n_channels
