"""`doctor`: what is installed, what can be read, which combinations are known to break, and what to do.

Each check runs by itself, so that a broken library is a line with a cure and not the end.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from wsi_ips.engine.environment import available_cores, choose_engine, cpu_flags, package_versions
from wsi_ips.minimums import MINIMUMS, as_numbers, refuse_too_old

__all__ = ["Finding", "examine"]

# below these, known faults can crash the process or return wrong pixels
_MINIMUM = {"openslide-bin": (4, 0, 1), "torch": (2, 10), "timm": (1, 0, 20), "tiffslide": (3, 0, 1)}
_WITHOUT = {"imagecodecs": "missing", "openvino": 'not installed; pip install "wsi-ips[fast]" encodes faster on CPUs with bfloat16'}


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    is_good: bool
    text: str


def examine() -> list[Finding]:
    """Look at the installation."""
    findings = [Finding("cores", True, f"{available_cores()} usable; {', '.join(cpu_flags()) or 'no flags known'}")]
    for name, version in package_versions().items():
        least = _MINIMUM.get(name)
        if version == "missing" and name in ("imagecodecs", "openvino"):
            findings.append(Finding(name, True, _WITHOUT[name]))
        elif version == "missing":
            findings.append(Finding(name, False, "not installed; pip install -c constraints.txt -e ."))
        elif least and as_numbers(version) < least:
            findings.append(Finding(name, False, f"{version} is too old; at least {'.'.join(map(str, least))}"))
        else:
            findings.append(Finding(name, True, version))
    return findings + [_attempt(*check) for check in _CHECKS]


def _attempt(subject: str, check: Callable[[], str], cure: str) -> Finding:
    try:
        return Finding(subject, True, check())
    except Exception as error:  # whatever a broken library raises is what this command is there to show
        return Finding(
            subject, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; {cure}"
        )


def _torch_pair() -> str:
    torch = importlib.import_module("torch")
    vision = importlib.import_module("torchvision")
    vision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return f"torch {torch.__version__} and torchvision {vision.__version__} fit together"


def _timm() -> str:
    return f"timm {importlib.import_module('timm').__version__} imports"


def _gpu() -> str:
    torch = importlib.import_module("torch")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) if names else "none seen by torch; everything runs on the CPU, finetuning slowly"


def _engine() -> str:
    torch = importlib.import_module("torch")
    name = choose_engine("auto", "cuda" if torch.cuda.is_available() else "cpu")
    if name == "openvino":
        importlib.import_module("wsi_ips.model.openvino_engine").load_openvino()
    return f"--engine auto means {name} here"


def _openslide() -> str:
    openslide = importlib.import_module("openslide")
    return f"OpenSlide {openslide.__library_version__}: SVS, NDPI, MRXS, SCN, VMS, BIF, Philips and generic tiled TIFF, DICOM"


def _tiffslide() -> str:
    importlib.import_module("tiffslide")
    codecs = importlib.import_module("imagecodecs")
    kinds = [name for name in ("jpeg2k", "webp", "jpeg", "lzw") if hasattr(codecs, f"{name}_decode")]
    return f"tiffslide: URIs, tiled TIFF with {', '.join(kinds)}"


def _opencv() -> str:
    return f"OpenCV {importlib.import_module('cv2').__version__} imports"


def _known_faults() -> str:
    """Ask the loaded libraries themselves: a system's OpenSlide or expat has no package with a version."""
    for name in ("openslide", "torch", "pyexpat"):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("pydicom")
    refuse_too_old()
    loaded = [(m.name, getattr(sys.modules.get(m.module), m.attribute, "")) for m in MINIMUMS]
    return "none in " + ", ".join(f"{name} {version.removeprefix('expat_')}" for name, version in loaded if version)


_CHECKS: list[tuple[str, Callable[[], str], str]] = [
    ("torch pair", _torch_pair, "torch and torchvision come from different builds: install both from one index, "
     "pip install -c constraints.txt --force-reinstall torch torchvision"),
    ("timm", _timm, "usually the torch pair above; else pip install -c constraints.txt timm"),
    ("GPU", _gpu, "reinstall torch for your driver"),
    ("engine", _engine, 'reinstall OpenVINO, pip install -c constraints.txt "wsi-ips[fast]", or say --engine torch'),
    ("OpenSlide", _openslide, "pip install openslide-python openslide-bin"),
    ("TiffSlide", _tiffslide, "pip install -c constraints.txt tiffslide tifffile imagecodecs zarr"),
    ("known faults", _known_faults, "no command reads slides before that"),
    ("OpenCV", _opencv, "a missing libGL.so.1 is cured by apt-get install libgl1, or by opencv-python-headless in its place"),
]  # fmt: skip
