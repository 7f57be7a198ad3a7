"""From tiles to embeddings: any timm model, with its own normalisation inside.

Tiles come as uint8 at the encoder's input size, so there is no resize and no crop anywhere (`crop_pct` is 1).
The network always computes its inference function, also while it learns: normalisation on frozen statistics, no
dropout. So a tile's embedding depends on that tile alone, which both exact selection and exact gradients rest on.

Shapes: n tiles, S side, C channels, W width of the embedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.arithmetic import hash_tensors, in_fixed_batches, is_bf16_native, normalised, round_to_stored
from wsi_ips.model.features import FeatureInput
from wsi_ips.model.hub import build_pretrained, resolve_architecture
from wsi_ips.model.nets import create_net, keep_stages, stage_names
from wsi_ips.model.weights import check_finite, load_strict, read_state

__all__ = [
    "Architecture",
    "Encoder",
    "FeatureInput",
    "build_encoder",
    "build_input",
    "in_fixed_batches",
    "is_bf16_native",
    "rebuild_encoder",
]

Precision = Literal["auto", "float32"]
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Architecture(NamedTuple):
    """All that is needed to build an encoder again without network; stored in a bundle."""

    name: str  # timm registry name
    kwargs: dict[str, Any]  # further arguments of the timm model
    in_channels: int
    tile_px: int
    mean: tuple[float, ...]  # (C,) of pixels scaled to 0..1
    std: tuple[float, ...]
    interpolation: str
    stages: int | None = None  # first stages kept; None: all


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
        self._known: tuple[tuple[Any, ...], str] | None = None  # state of the weights, and their hash

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.mean.device

    @property
    def compute(self) -> str:
        """Kind of device and type of the numbers it multiplies, "cpu/float32" or "cuda/bfloat16"."""
        return f"{self.device.type}/{str(self.arithmetic).removeprefix('torch.')}"

    @property
    def arithmetic(self) -> torch.dtype:
        """Type of the numbers it multiplies: bfloat16 where the hardware does, unless float32 is asked for."""
        in_bf16 = self.mean.dtype == torch.float32 and self.precision == "auto" and is_bf16_native(self.device.type)
        return torch.bfloat16 if in_bf16 else self.mean.dtype

    @property
    def hash(self) -> str:
        """Identity of the function: architecture, weights and buffers, 64 hex digits."""
        tensors = self.state_dict()
        # kept while the weights are the same: changes in place count up the version, others (`.data`) change the bits' sum
        bits = [t.detach().view(_BITS[t.element_size()]).sum(dtype=torch.int64) for t in tensors.values()]
        state = (*torch.stack(bits).tolist(), *((t.data_ptr(), t._version, t.dtype) for t in tensors.values()))
        if self._known is None or self._known[0] != state:
            said = {k: v for k, v in self.architecture._asdict().items() if k != "stages" or v is not None}
            head = json.dumps(said, sort_keys=True, default=str)
            self._known = state, hash_tensors(head, tensors.items())
        return self._known[1]

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed (n, S, S, C) uint8 tiles as (n, W) float32, rounded to float16 (float64, as it is, when the weights are).

        The gradient passes the rounding unchanged.

        Raises:
            ModelError: another type, side or number of channels than the encoder's own.
        """
        self.check_tiles(tiles)
        x = normalised(tiles, self.mean, self.std)  # (n, C, S, S)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.arithmetic == torch.bfloat16):
            return round_to_stored(self.net(x).to(x.dtype))

    def check_tiles(self, tiles: Tensor) -> None:
        """Refuse what is no batch of tiles for this encoder; see `forward`."""
        a = self.architecture
        if tiles.dtype != torch.uint8 or tuple(tiles.shape[1:]) != (a.tile_px, a.tile_px, a.in_channels):
            raise ModelError(f"encoder {a.name}: expected uint8 tiles (n, {a.tile_px}, {a.tile_px}, {a.in_channels}), "
                             f"got {tiles.dtype} {tuple(tiles.shape)}")  # fmt: skip

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the network itself stays in inference (frozen statistics, no dropout)."""
        super().train(mode)
        self.net.eval()
        return self

    def stages(self) -> list[str]:
        """Name the stages that can be opened one by one, first to last."""
        return stage_names(self.net)

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

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Group the parameters that learn by stage, first to last; what stands before the first stage is part of it.

        Stages without one are left out, so the last group is always the one next to the head.
        """
        starts = [f"{stage}." for stage in self.stages()]
        groups: list[list[nn.Parameter]] = [[] for _ in starts] or [[]]
        at = 0
        for name, parameter in self.net.named_parameters():
            at = next((i for i, start in enumerate(starts) if name.startswith(start)), at)
            if parameter.requires_grad:
                groups[at].append(parameter)
        return [group for group in groups if group]

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


def build_input(
    settings: EncoderSettings, tile_px: int, *, offline: bool = False, precision: Precision = "auto"
) -> Encoder | FeatureInput:
    """Make what stands before the projector: an encoder, or the place where another tool's embeddings come in."""
    if settings.name == "features":
        return FeatureInput(settings.width)
    return build_encoder(settings, tile_px, offline=offline, precision=precision)


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
        net = build_pretrained(found, kwargs, settings.in_channels, offline)
        check_finite(net.state_dict(), f"encoder {settings.name}")
    else:
        net = create_net(found.name, kwargs, settings.in_channels)
        if weights != "none":
            _load_file(net, Path(weights))
    data = found.data | resolve_model_data_config(net)
    keep_stages(net, settings.name, settings.stages)
    architecture = Architecture(
        found.name, kwargs, settings.in_channels, tile_px,
        _per_channel(data["mean"], settings.in_channels), _per_channel(data["std"], settings.in_channels),
        str(data["interpolation"]), settings.stages,
    )  # fmt: skip
    return Encoder(net, architecture, precision)


def rebuild_encoder(architecture: Architecture, precision: Precision = "auto") -> Encoder:
    """Make the same encoder again with random weights, without any file or network.

    Raises:
        ModelError: this version of timm does not know the architecture or its arguments.
    """
    net = create_net(architecture.name, architecture.kwargs, architecture.in_channels)
    return Encoder(keep_stages(net, architecture.name, architecture.stages), architecture, precision)


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
