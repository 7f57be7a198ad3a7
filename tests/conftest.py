"""Fixtures shared by all rooms' tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides and labelled data, or a skip."""
    folder = Path(os.environ.get("WSI_IPS_DATA", _ROOT.parent / "shared" / "data"))
    if not (folder / "slides").is_dir():
        pytest.skip("no folder of real slides (set WSI_IPS_DATA)")
    return folder
