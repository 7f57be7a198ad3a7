"""Nets of timm out of a name and arguments that may come from anywhere: nothing is fetched, nothing is opened.

timm takes arguments that name files to load, by pickle, and addresses to load from. A configuration that travels with a
model must not reach them, so they are refused by name before timm sees any.
"""

from __future__ import annotations

import math
from typing import Any

import timm
from torch import nn

from wsi_ips.errors import ModelError

__all__ = ["check_arguments", "create_net", "keep_stages", "stage_names", "timm_kwargs"]

# of `timm.create_model`: these load files, reach out, or are this package's own
_RESERVED = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir",
             "scriptable", "exportable", "no_jit", "num_classes", "in_chans", "model_name"}  # fmt: skip


def create_net(name: str, kwargs: dict[str, Any], in_channels: int) -> nn.Module:
    """Make a net with random weights.

    Raises:
        ModelError: this version of timm does not know the name or its arguments, or they are not taken here.
    """
    check_arguments(name, kwargs)
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **timm_kwargs(kwargs))
    # whatever an argument of another type or size leads to
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelError(f"encoder {name}: cannot be built with kwargs {kwargs} ({error})") from error


def stage_names(net: nn.Module) -> list[str]:
    """Name the stages of a net that hold weights, first to last."""
    named = [name for name, _ in net.named_parameters()]
    modules = [info["module"] for info in getattr(net, "feature_info", []) if "module" in info]
    if not modules:
        modules = [name for name, _ in net.named_children()]
    return [m for m in modules if any(name.startswith(m + ".") for name in named)]


def keep_stages(net: nn.Module, name: str, stages: int | None) -> nn.Module:
    """Cut a net behind one of its stages; what that gives is averaged over the tile.

    Args:
        net: of timm, changed in place.
        name: of the encoder, for messages.
        stages: how many are kept; None: all, and nothing is changed.

    Raises:
        ModelError: more stages than there are, or a net that cannot be cut.
    """
    if stages is None:
        return net
    known = stage_names(net)
    if stages > len(known):
        raise ModelError(f"encoder {name}: stages {stages} asked for; it has {len(known)}: {', '.join(known)}")
    try:
        infos: Any = list(net.feature_info)  # type: ignore[arg-type]  # of timm's nets
        last = next(i for i, info in enumerate(infos) if info["module"] == known[stages - 1])
        net.prune_intermediate_layers([last], prune_norm=True, prune_head=True)  # type: ignore[operator]
        net.reset_classifier(0, "avg")  # type: ignore[operator]
        net.feature_info = infos[: last + 1]
    except (AssertionError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise ModelError(f"encoder {name}: cannot be cut behind stage {known[stages - 1]} ({error}); leave stages out") from error
    return net


def check_arguments(name: str, kwargs: dict[str, Any]) -> None:
    """Refuse names that are addresses, and arguments by which timm would open files or the network.

    Raises:
        ModelError: names them.
    """
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"{name.split('.')[0][:6]}*")[:5]
        raise ModelError(f"encoder {name!r}: no such timm model; near: {', '.join(near) or 'see timm.list_models()'}")
    refused = sorted(_RESERVED & set(kwargs))
    if refused:
        why = "weights are named by `encoder.weights`, channels by `encoder.in_channels`"
        raise ModelError(f"encoder {name}: kwargs {', '.join(refused)} are not taken ({why}); leave them out")


def timm_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Say `groupnorm` so that narrow layers work too: timm's own asks for multiples of 32 channels."""
    return kwargs | {"norm_layer": _group_norm} if kwargs.get("norm_layer") == "groupnorm" else dict(kwargs)


def _group_norm(num_channels: int, eps: float = 1e-5, affine: bool = True, **_: Any) -> nn.GroupNorm:
    # 32 groups as in timm; narrow layers get two channels a group, as a layer of 64 has
    groups = 32 if num_channels % 32 == 0 else max(1, math.gcd(num_channels // 2, 32))
    return nn.GroupNorm(groups, num_channels, eps=eps, affine=affine)
