"""Where an encoder's name leads: timm's registry, a folder, or the Hugging Face hub.

What is already on this machine is used without asking the network. What is missing while there is no network is an
error at once that names the file and the setting: the hub's client would try again for most of a minute.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from wsi_ips.errors import ModelError
from wsi_ips.model.nets import check_arguments, timm_kwargs
from wsi_ips.model.weights import read_state
from wsi_ips.untrusted import read_json

__all__ = ["Resolved", "build_pretrained", "has_network", "resolve_architecture"]

_FILES = ("model.safetensors", "pytorch_model.bin")
_MAX_CONFIG_BYTES = 4 << 20
_PROBE_SECONDS = 0.7


@dataclass(frozen=True)
class Resolved:
    """An encoder's name taken apart."""

    name: str  # timm registry name
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments that the source asks for
    folder: Path | None = None  # where the configuration lies, when it came from a folder or the hub's cache
    repo: str | None = None  # repository on the hub
    cfg: dict[str, Any] = field(default_factory=dict)  # timm's pretrained_cfg of the source
    data: dict[str, Any] = field(default_factory=dict)  # mean, std, interpolation where the source states them
    fixed_input: bool = False  # the model is built for one tile side


def resolve_architecture(name: str, offline: bool = False) -> Resolved:
    """Find out which timm model a name means.

    Raises:
        ModelError: unknown name, broken folder, or a hub name that is not on this machine while offline.
    """
    scheme, _, rest = name.replace("hf_hub:", "hf-hub:").partition(":")
    if scheme == "local-dir":
        return _from_folder(name, Path(rest), None)
    if scheme == "hf-hub":
        cached = try_to_load_from_cache(rest, "config.json")
        if isinstance(cached, str):
            return _from_folder(name, Path(cached).parent, rest)
        if not _may_ask(offline):
            raise ModelError(_instruction(name, f"config.json and model.safetensors of {rest}", folder=True))
        return _from_hub(name, rest)
    check_arguments(name, {})
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return Resolved(name, cfg=cfg.to_dict() if cfg else {}, fixed_input=bool(cfg and cfg.fixed_input_size))


def build_pretrained(found: Resolved, kwargs: dict[str, Any], in_channels: int, offline: bool = False) -> nn.Module:
    """Make a timm model with the weights its source holds; every parameter must come from there.

    Raises:
        ModelError: weights not on this machine while offline, download failed, or names missing.
    """
    check_arguments(found.name, kwargs)
    local = _local_weights(found)
    if local is None and (found.folder is None or found.repo is not None) and _may_ask(offline):
        local = _download(found)
    if local is not None:
        # handing the tensors over keeps timm from asking the hub whether it has newer ones, and pickles from running
        own = {"file": str(local)} if local.suffix == ".npz" else {"state_dict": read_state(local)}
        overlay = found.cfg | own | {"source": ""}
    elif found.folder is not None and found.repo is None:
        raise ModelError(f"encoder local-dir:{found.folder}: holds none of {', '.join(_FILES)}")
    else:
        repo = found.repo or found.cfg.get("hf_hub_id")
        what = (
            f"model.safetensors from https://huggingface.co/{repo}" if repo else str(found.cfg.get("url") or "weights")
        )
        raise ModelError(_instruction(found.name, what, folder=False))
    gaps = _GapWatch()
    builder = logging.getLogger("timm.models._builder")
    level, propagate = builder.level, builder.propagate
    builder.addHandler(gaps)
    builder.setLevel(logging.INFO)
    builder.propagate = False
    try:
        net = timm.create_model(found.name, pretrained=True, num_classes=0, in_chans=in_channels,
                                pretrained_cfg_overlay=overlay, **timm_kwargs(kwargs))  # fmt: skip
    except Exception as error:  # timm, hub client, torch and safetensors each raise their own kinds here
        raise ModelError(
            f"encoder {found.name}: pretrained weights cannot be loaded with kwargs {kwargs} ({error})"
        ) from error
    finally:
        builder.removeHandler(gaps)
        builder.setLevel(level)
        builder.propagate = propagate
    getattr(net, "pretrained_cfg", {}).pop("state_dict", None)  # timm keeps a second copy of the tensors there
    if gaps.missing:
        raise ModelError(f"encoder {found.name}: its weights lack parts of the model: {gaps.missing}")
    return net


def has_network(seconds: float = _PROBE_SECONDS) -> bool:
    """Tell within a moment whether the hub (or the proxy to it) accepts a connection."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    proxy = urllib.request.getproxies().get(urlparse(endpoint).scheme)
    url = urlparse(proxy or endpoint)
    answer = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection((url.hostname or "", url.port or 443), timeout=seconds).close()
        except OSError:
            return
        answer.set()

    # in a thread: looking up a name has no timeout of its own
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer.is_set()


class _GapWatch(logging.Handler):
    """Hears which parameters timm left random: it says so in a log line only."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.missing = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Missing keys"):
            self.missing = text.partition("(")[2].partition(")")[0]


def _may_ask(offline: bool) -> bool:
    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return not offline and not said and has_network()


def _local_weights(found: Resolved) -> Path | None:
    if found.folder is not None:
        inside = [found.folder / f for f in (found.cfg.get("hf_hub_filename"), *_FILES) if f]
        return next((p for p in inside if p.is_file()), None)
    repo, url = found.cfg.get("hf_hub_id"), found.cfg.get("url")
    if repo:
        names = [n for n in (found.cfg.get("hf_hub_filename"), *_FILES) if n]
        hits = (try_to_load_from_cache(repo, n) for n in names)
        hit = next((h for h in hits if isinstance(h, str)), None)
        if hit is not None:
            return Path(hit)
    if url:
        saved = _saved(url)
        # beside it, `model import` may have made safetensors of it
        return next((p for p in (saved.with_suffix(".safetensors"), saved) if p.is_file()), None)
    return None


def _saved(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _fetch(url: str) -> Path:
    path = _saved(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise ModelError(f"{url}: cannot be fetched ({error})") from error
    return path


def _download(found: Resolved) -> Path:
    """Fetch a source's safetensors; a pickle is not taken from the network.

    Raises:
        ModelError: it has none, or cannot be reached.
    """
    repo, url = found.repo or found.cfg.get("hf_hub_id"), str(found.cfg.get("url") or "")
    if not repo and Path(urlparse(url).path).suffix in (".safetensors", ".npz"):
        return _fetch(url)
    names = [Path(str(n)).with_suffix(".safetensors").name for n in (found.cfg.get("hf_hub_filename"), _FILES[0]) if n]
    for name in dict.fromkeys(names) if repo else ():
        try:
            return Path(hf_hub_download(str(repo), name))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client raises many kinds: absent, gated, network, bad name
            raise ModelError(f"encoder {found.name}: not found on the hub, or access was refused ({error})") from error
    raise ModelError(
        f"encoder {found.name}: {repo or url or 'its source'} offers no safetensors. Download its file of weights, make "
        "safetensors of it by `wsi-ips model import --trust FILE --out FOLDER` and set `encoder.weights` to that"
    )


def _from_folder(name: str, folder: Path, repo: str | None) -> Resolved:
    path = folder / "config.json"
    try:
        config = read_json(path.read_bytes(), max_bytes=_MAX_CONFIG_BYTES)
        model = config["architecture"]
        args = dict(config.get("model_args") or {})
        cfg = dict(config.get("pretrained_cfg") or {k: v for k, v in config.items() if k != "architecture"})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"encoder {name}: {path} is no timm configuration ({error!r})") from error
    if not isinstance(model, str) or not timm.is_model(model.split(".")[0]):
        raise ModelError(f"encoder {name}: {path} names the architecture {model!r}, unknown to timm {timm.__version__}")
    data = {key: cfg[key] for key in ("mean", "std", "interpolation") if cfg.get(key) is not None}
    return Resolved(model, args, folder, repo, cfg, data, bool(cfg.get("fixed_input_size")))


def _from_hub(name: str, repo: str) -> Resolved:
    try:
        path = hf_hub_download(repo, "config.json")
    except Exception as error:  # the hub's client raises many kinds: absent, gated, network, bad name
        raise ModelError(f"encoder {name}: not found on the hub, or access was refused ({error})") from error
    return _from_folder(name, Path(path).parent, repo)


def _instruction(name: str, what: str, *, folder: bool) -> str:
    get = f"encoder {name}: its pretrained weights are not on this machine and the network is off or out of reach. "
    if folder:
        return get + f"Fetch {what} on a connected machine into one folder and set `encoder.name: local-dir:<folder>`"
    return get + (
        f"Download {what} on a connected machine and set `encoder.weights: <path of that file>`; "
        "or `encoder.weights: none` to train from scratch"
    )
