"""Libraries with known faults are named with their cure before a slide is read."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from wsi_ips import minimums
from wsi_ips.engine import doctor
from wsi_ips.errors import ConfigError


@pytest.mark.parametrize(
    ("module", "attribute", "old", "least"),
    [("openslide", "__library_version__", "4.0.0", "4.0.1"), ("torch", "__version__", "2.9.1+cpu", "2.10"),
     ("pyexpat", "EXPAT_VERSION", "expat_2.4.0", "2.4.1"), ("pydicom", "__version__", "3.0.1", "3.0.2")],
)  # fmt: skip
def test_fault_021_and_022_a_library_below_its_least_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, module: str, attribute: str, old: str, least: str
) -> None:
    """The version it has, the one it needs, why, and what to do; one that was never loaded does no harm."""
    for m in minimums.MINIMUMS:
        monkeypatch.delitem(sys.modules, m.module, raising=False)
    assert minimums.too_old() == []
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{attribute: old}))
    with pytest.raises(ConfigError, match=rf"{old.replace('+', '.')} is too old, at least {least} is needed: .*CVE-.*install"):
        minimums.refuse_too_old()
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{attribute: least}))
    assert minimums.too_old() == []


def test_fault_022_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good: every library by its own version. Bad: the sentence with which a run is refused."""
    import openslide

    check = next(c for c in doctor._CHECKS if c[0] == "known faults")
    good = doctor._attempt(*check)
    assert good.is_good
    assert all(name in good.text for name in ("OpenSlide 4.", "torch 2.", "expat 2."))
    monkeypatch.setattr(openslide, "__library_version__", "3.4.1")
    bad = doctor._attempt(*check)
    assert not bad.is_good
    assert "OpenSlide 3.4.1 is too old" in bad.text
