"""Versions of libraries below which known faults write into foreign memory, run a file's code, or return wrong pixels.

A process is judged by what it has loaded, for a library that nobody loads does no harm, and loading one to ask it would
cost each start. Workers are judged before their first slide; `doctor` loads everything.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

from wsi_ips.errors import ConfigError

__all__ = ["MINIMUMS", "as_numbers", "refuse_too_old", "too_old"]


class Minimum(NamedTuple):
    """The least version of a library, as the library itself says it."""

    module: str
    attribute: str
    name: str
    least: tuple[int, ...]
    why: str
    cure: str


MINIMUMS = (
    Minimum("openslide", "__library_version__", "OpenSlide", (4, 0, 1), "a made slide can write into its memory (CVE-2026-48977)",
            "pip install -U openslide-bin"),
    Minimum("torch", "__version__", "torch", (2, 10), "a file of weights can damage its memory (CVE-2026-24747)",
            "pip install -c constraints.txt torch torchvision"),
    Minimum("pyexpat", "EXPAT_VERSION", "expat", (2, 4, 1), "a few bytes of XML can fill the memory (CVE-2013-0340)",
            "install a newer Python, or the system's libexpat1"),
    Minimum("pydicom", "__version__", "pydicom", (3, 0, 2), "a DICOM folder can name files outside of it (CVE-2026-32711)",
            "pip install -U pydicom"),
)  # fmt: skip


def too_old() -> list[str]:
    """Say which of the loaded libraries are too old, one sentence each."""
    found = []
    for m in MINIMUMS:
        version = str(getattr(sys.modules.get(m.module), m.attribute, ""))
        if version and as_numbers(version) < m.least:
            wanted = ".".join(map(str, m.least))
            found.append(f"{m.name} {version} is too old, at least {wanted} is needed: {m.why}; {m.cure}")
    return found


def refuse_too_old() -> None:
    """Refuse to go on with libraries of known faults.

    Raises:
        ConfigError: every one of them, with the cure.
    """
    if found := too_old():
        raise ConfigError("; ".join(found))


def as_numbers(version: str) -> tuple[int, ...]:
    """Read a version for comparing; what stands behind a plus is no part of it.

    >>> as_numbers("2.15.0+cu132"), as_numbers("expat_2.5.0")
    ((2, 15, 0), (2, 5, 0))
    """
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:4])
