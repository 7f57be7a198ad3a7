"""The encoder in OpenVINO's CPU runtime: several streams of a few tiles each, one to a core.

On two cores two streams of 8 tiles beat one stream of any batch by a tenth to a third, with the same numbers. Pixels
go in as uint8, channels-last; normalisation is part of the graph.

A converted net is kept as plain data (IR: xml and weights), under a name that follows from the encoder's hash, the
shape and OpenVINO's version; it is read through memory, after its SHA-256 was checked, and what is damaged counts as
absent. Compiling it for the CPU takes a tenth of a second, so compiled code is never stored.

Shapes: n tiles, B tiles a batch, S side, C channels, W width of an embedding.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import ConfigError
from wsi_ips.files import sync_file, sync_folder
from wsi_ips.model.arithmetic import round_to_stored
from wsi_ips.model.encoder import Encoder

__all__ = ["OpenVinoEngine", "load_openvino"]

_XML, _WEIGHTS, _SEAL = "net.xml", "net.bin", "sha256.json"
_SCHEMA_VERSION = 1
_N_KEPT = 16  # exported nets; those used least recently go


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry: with it, importing alone would report to its maker, and slides are private.

    Raises:
        ConfigError: it is not installed, or does not load.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails, and OpenVINO has a stub for that
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ConfigError(
            f'--engine openvino: OpenVINO cannot be loaded ({error}); pip install "wsi-ips[fast]", or --engine torch'
        ) from error


class OpenVinoEngine:
    """Embeds tiles on the CPU; see the top of the file.

    Args:
        encoder: on the CPU, in float32.
        batch: B.
        threads: of the CPU.
        chunk_size: how many tiles will come at a time.
        place: folder that keeps converted nets; None keeps none.

    Raises:
        ConfigError: OpenVINO is missing, or cannot convert the net.
    """

    name = "openvino"

    def __init__(self, encoder: Encoder, batch: int, *, threads: int, chunk_size: int, place: Path | None) -> None:
        ov = load_openvino()
        kind = "bf16" if encoder.arithmetic == torch.bfloat16 else "f32"
        streams = max(1, min(threads, -(-chunk_size // batch)))
        self.note = ""
        self._batch, self._width = batch, encoder.width
        core = ov.Core()
        net = self._net(ov, core, encoder, place)
        compiled = core.compile_model(net, "CPU", _safety(net) | {
            "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": kind,
            "ENABLE_CPU_PINNING": False,  # every worker process would pin itself to the same first cores
        })  # fmt: skip
        self._queue = ov.AsyncInferQueue(compiled, streams)
        self._queue.set_callback(_collect)
        self.compute = f"openvino {ov.__version__} cpu/{kind}, {streams} streams of {threads} threads, {batch} tiles at once"

    def embed(self, tiles: Tensor) -> Tensor:
        """See `Engine`."""
        pixels = np.ascontiguousarray(tiles.numpy())
        n_whole = len(pixels) // self._batch * self._batch
        last = pixels[n_whole:]
        if len(last):
            last = np.concatenate([last, np.zeros((self._batch - len(last), *last.shape[1:]), np.uint8)])
        out = np.empty((n_whole + len(last), self._width), np.float32)
        for start in range(0, len(out), self._batch):
            part = pixels[start : start + self._batch] if start < n_whole else last
            # shared, not copied: `pixels` and `last` outlive the call
            self._queue.start_async({0: part}, out[start : start + self._batch], share_inputs=True)
        self._queue.wait_all()
        return round_to_stored(torch.from_numpy(out[: len(pixels)]))

    def _net(self, ov: Any, core: Any, encoder: Encoder, place: Path | None) -> Any:
        """Find the converted net, or convert it and keep it."""
        if place is None:
            return _converted(ov, encoder, self._batch)
        told = [_SCHEMA_VERSION, encoder.hash, self._batch, ov.__version__, torch.__version__]
        folder = place / hashlib.sha256(json.dumps(told).encode()).hexdigest()
        found = _stored(folder)
        if found is None:
            net = _converted(ov, encoder, self._batch)
            try:
                _store(ov, net, folder)
            except OSError as error:
                self.note = f"the converted encoder cannot be kept ({error.strerror or error}); it is converted again next time"
            return net
        with contextlib.suppress(OSError):  # a folder that is only read from still serves
            os.utime(folder)
        return core.read_model(*found)


def _safety(net: Any) -> dict[str, str]:
    """Keep group normalisation away from code made on the fly: in float32 that kills the process (seen in 2026.4.1)."""
    has_group_norm = any(op.get_type_name() == "GroupNormalization" for op in net.get_ops())
    return {"SNIPPETS_MODE": "DISABLE"} if has_group_norm else {}


def _collect(request: Any, out: np.ndarray) -> None:
    out[:] = request.get_output_tensor().data


def _converted(ov: Any, encoder: Encoder, batch: int) -> Any:
    """Translate the net, with its normalisation in front: (B, S, S, C) uint8 to (B, W) float32."""
    a = encoder.architecture
    example = torch.zeros(1, a.in_channels, a.tile_px, a.tile_px)
    try:
        with warnings.catch_warnings():  # of tracing: shapes are fixed here, so they may become constants
            warnings.simplefilter("ignore")
            net = ov.convert_model(
                copy.deepcopy(encoder.net).eval(), example_input=example, input=[batch, *example.shape[1:]]
            )
    except Exception as error:  # whatever a net brings OpenVINO's converter to raise
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--engine openvino: cannot convert encoder {a.name} ({cause}); use --engine torch") from error
    steps = ov.preprocess.PrePostProcessor(net)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    mean, std = ((255.0 * t).flatten().tolist() for t in (encoder.mean, encoder.std))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(mean).scale(std)
    steps.output().tensor().set_element_type(ov.Type.f32)
    return steps.build()


def _stored(folder: Path) -> tuple[bytes, bytes] | None:
    """Read xml and weights of a converted net; None where there is none, or another than was written."""
    try:
        told = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        xml, weights = (folder / _XML).read_bytes(), (folder / _WEIGHTS).read_bytes()
        if told != _seal(xml, weights):
            raise ValueError
    except (OSError, ValueError):
        return None
    return xml, weights


def _seal(xml: bytes, weights: bytes) -> dict[str, str]:
    return {_XML: hashlib.sha256(xml).hexdigest(), _WEIGHTS: hashlib.sha256(weights).hexdigest()}


def _store(ov: Any, net: Any, folder: Path) -> None:
    """Keep a converted net: all of it or nothing, also when several processes do at once.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        try:
            ov.save_model(net, temporary / _XML, compress_to_fp16=False)
        except RuntimeError as error:
            raise OSError(str(error).splitlines()[0]) from error
        seal = _seal((temporary / _XML).read_bytes(), (temporary / _WEIGHTS).read_bytes())
        (temporary / _SEAL).write_text(json.dumps(seal), encoding="utf-8")
        temporary.chmod(0o755)
        for name in (_XML, _WEIGHTS, _SEAL):
            sync_file(temporary / name)
        if folder.exists() and _stored(folder) is None:
            _remove(folder)
        with contextlib.suppress(OSError):  # another process was first: what it wrote is as good
            temporary.rename(folder)
        sync_folder(folder.parent)
        _make_room(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_room(place: Path) -> None:
    """Remove the nets used least recently, and what killed processes left."""
    with contextlib.suppress(OSError):  # another process may be removing them
        aged = sorted((f for f in place.iterdir() if len(f.name) in (12, 64)), key=lambda f: f.stat().st_mtime)
        for folder in aged[:-_N_KEPT]:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a net at one stroke: a reader finds all of it or nothing."""
    gone = folder.with_name(f".old-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
