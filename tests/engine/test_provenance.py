"""What a run says it was made from and by, and which slides count as unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.engine import provenance
from wsi_ips.engine.identity import Identity, identify
from wsi_ips.engine.provenance import code_state, describe_run, differences_between, made_with

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def _git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True, env=env)


@needs_git
def test_the_commit_and_whether_the_tree_was_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of the checkout that holds the package; without git the commit is read from its files, also of a linked one."""
    root = tmp_path / "checkout"
    (root / "wsi_ips").mkdir(parents=True)
    monkeypatch.setattr(provenance, "_PACKAGE", root / "wsi_ips")
    assert code_state() is None
    _git(tmp_path, "init", "-q", str(root))
    assert code_state() is None  # nothing committed
    (root / "wsi_ips" / "a.py").write_text("1")
    _git(root, "add", ".")
    _git(root, "commit", "-qm", "one")
    clean = code_state()
    assert clean is not None
    assert clean["is_clean"] is True
    (root / "wsi_ips" / "a.py").write_text("2")
    assert code_state() == clean | {"is_clean": False}
    _git(root, "worktree", "add", "-q", str(tmp_path / "linked"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        assert code_state() == {"commit": clean["commit"]}
    _git(root, "pack-refs", "--all")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert code_state() == {"commit": clean["commit"]}
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "linked" / "wsi_ips")
    assert code_state() == {"commit": clean["commit"]}
    # a repository around the environment that the package is installed in is none of its own
    monkeypatch.setattr(provenance, "_PACKAGE", root / "env" / "site-packages" / "wsi_ips")
    assert code_state() is None


def test_what_decides_results_is_told_and_names_nobody() -> None:
    """Every library that pixels or numbers pass through has a version; no host and no user is named."""
    found = describe_run()
    packages = found["packages"]
    for name in ("wsi-ips", "torch", "timm", "numpy", "opencv-python", "scikit-image", "h5py", "openslide-bin", "tiffslide", "tifffile",
                 "imagecodecs", "simplejpeg"):  # fmt: skip
        assert packages[name] != "missing"
    assert found["hdf5"]
    assert os.uname().nodename not in str(found)
    flat = made_with(found)
    assert "pandas" not in flat
    assert differences_between(flat, flat | {"torch": "1"}) == [("torch", packages["torch"], "1")]
    assert differences_between({}, {"a": "1"}) == [("a", "(absent)", "1")]


def _look(path: Path, before: Identity | None = None, *, strict: bool = False) -> Identity:
    payload: dict[str, Any] = {"slide_path": str(path), "features_path": None, "mask_path": None, "identity": {"row": "r"}}
    return identify(payload, {"identity": before.facts} if before else None, strict=strict, takes_tiles=True)


def test_resume_compares_like_with_like(tmp_path: Path) -> None:
    """Samples with samples and the time of writing, all bytes with all bytes; samples are not enough for --strict."""
    path = tmp_path / "a.svs"
    path.write_bytes(os.urandom(2_000_000))
    sampled, strict = _look(path), _look(path, strict=True)
    assert _look(path, sampled).facts == sampled.facts
    assert _look(path, strict, strict=True).facts == strict.facts
    assert _look(path, strict).facts == strict.facts
    assert _look(path, strict).known_as is None  # the cache of this start knows slides by samples
    assert _look(path, sampled, strict=True).facts != sampled.facts
    assert "mtime_ns" not in strict.facts
    with path.open("r+b") as f:  # a byte between the samples
        f.seek(100_000)
        byte = f.read(1)
        f.seek(100_000)
        f.write(bytes([byte[0] ^ 1]))
    os.utime(path, (1, 1))
    touched = _look(path, sampled)
    assert touched.facts["file"] == sampled.facts["file"]
    assert touched.facts != sampled.facts
    assert touched.known_as != touched.slide  # embeddings of the old bytes are not taken for it
    assert _look(path).known_as == touched.slide
    assert _look(path, strict).facts != strict.facts
    path.unlink()
    assert _look(path, sampled).facts["file"] is None
