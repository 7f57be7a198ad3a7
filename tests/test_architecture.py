"""The house: who may import whom, how big a room may grow, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wsi_ips"
GROUND = {"errors", "geometry", "config", "manifest", "records", "columns", "slidefiles", "tables", "results", "settings", "tasks",
          "recipe", "files", "hdf5", "untrusted", "workbooks", "locking", "minimums", "runfolder", "refined", "stages", "stopping"}  # fmt: skip
# room -> rooms it may import, besides itself; "ground" stands for the ground files
MAY_IMPORT = {
    "ground": set(),
    "slide": {"ground"},
    "tiles": {"ground", "slide"},
    "model": {"ground"},
    "report": {"ground", "slide"},
    "synthetic": {"ground"},
    "stats": {"ground"},
    "engine": {"ground", "slide", "tiles", "model", "report", "synthetic", "stats"},
    "training": {"ground", "slide", "tiles", "model", "report", "synthetic", "stats", "engine"},
    "cli": {"ground", "slide", "tiles", "model", "report", "synthetic", "stats", "engine", "training"},
}
TORCH_ROOMS = {"model", "engine", "training"}
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(parts: tuple[str, ...]) -> str:
    name = parts[0] if parts else "front"
    return "ground" if name in GROUND else name


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the full name"
            names += [f"{node.module}.{a.name}" for a in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downhill(path: Path) -> None:
    """A file imports its own room and the rooms below it, nothing else of the house."""
    here = _room(path.relative_to(PACKAGE).with_suffix("").parts)
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return  # the front door names everything, lazily
    allowed = MAY_IMPORT[here] | {here}
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "pipelines" or (parts[0] == "wsi_ips" and len(parts) > 1 and parts[1] != "__version__"):
            assert parts[0] != "pipelines", f"{path.name} imports pipelines"
            assert _room(tuple(parts[1:])) in allowed, f"{here} may not import {name}"
        if parts[0] in ("torch", "timm", "torchvision"):
            assert here in TORCH_ROOMS, f"{here} may not import {name}"


def test_no_import_runs_in_a_circle() -> None:
    """No file needs itself, however far around; imports inside functions count."""
    needs = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        needs[name] = {n for i in _imports(path) for n in (i, i.rpartition(".")[0]) if n.startswith("wsi_ips.")}
    known = {name: {n for n in found if n in needs and n != name} for name, found in needs.items()}
    while leaves := {name for name, found in known.items() if not found & known.keys()}:
        known = {name: found for name, found in known.items() if name not in leaves}
    assert not known, f"in or behind a circle: {sorted(known)}"


def test_pipelines_use_public_names_only() -> None:
    """Programs import the front door, not the rooms behind it."""
    import wsi_ips

    for path in (ROOT / "pipelines").rglob("*.py"):
        for name in _imports(path):
            if name.startswith("wsi_ips"):
                parts = name.split(".")
                assert len(parts) <= 2, f"{path.name} imports {name}; use a public name of wsi_ips"
                assert len(parts) == 1 or parts[1] in wsi_ips.__all__, f"{path.name}: {name} is not public"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_stay_small_and_typed(path: Path) -> None:
    """Files up to 300 lines, functions up to 60 lines and 8 parameters, every parameter and result typed."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300, "one idea a file"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        where = f"{path.name}:{node.lineno} {node.name}"
        assert (node.end_lineno or 0) - node.lineno + 1 <= 60, f"{where}: longer than 60 lines"
        arguments = [
            a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")
        ]
        if path.parent.name != "cli":  # a command's options are its parameters
            assert len(arguments) <= 8, f"{where}: {len(arguments)} parameters"
        assert node.returns is not None, f"{where}: no result type"
        assert all(a.annotation is not None for a in arguments), f"{where}: a parameter has no type"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_fault_129_label_and_macro_images_are_asked_for_nowhere(path: Path) -> None:
    """P12: no line of the package names the libraries' way to a slide's label, macro or thumbnail image."""
    text = path.read_text(encoding="utf-8")
    assert "associated_image" not in text
    assert "get_thumbnail" not in text  # pyramid levels only


def test_ground_and_report_need_no_torch() -> None:
    """Overlays, pages, manifests and `--help` work without loading torch."""
    code = (
        "import sys, wsi_ips, wsi_ips.cli, wsi_ips.manifest, wsi_ips.results, wsi_ips.stats.metrics, wsi_ips.report.overlay, wsi_ips.report.page, "
        "wsi_ips.tiles.stream, wsi_ips.slide.backends, wsi_ips.runfolder, wsi_ips.engine.executors, wsi_ips.engine.draw; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_exists_and_is_documented() -> None:
    """The front door opens onto real things that say what they are."""
    import wsi_ips

    assert 15 <= len(wsi_ips.__all__) <= 45
    for name in wsi_ips.__all__:
        value = getattr(wsi_ips, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), f"{name} has no docstring"
