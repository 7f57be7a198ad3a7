"""What the documents say works: the README's commands as they stand, the examples in docstrings, the settings files."""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsi_ips.config import ReadSettings, load_settings
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.synthetic import make_cohort

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WITH_EXAMPLES = [p for p in sorted((ROOT / "wsi_ips").rglob("*.py")) if ">>>" in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_in_docstrings_hold(path: Path) -> None:
    """What a docstring shows is what happens."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def _readme_commands() -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("#")[0].split() for block in blocks for line in block.splitlines()]
    return [words for words in lines if words[:1] == ["wsi-ips"]]


@pytest.mark.slow
def test_the_readme_commands_run_in_a_users_folder(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """The README's commands, word for word and in a possible order, in a folder with slides and a cohort."""
    cohort = make_cohort(tmp_path / "c", n_train=2, n_val=2, n_test=0, seed=2)
    shutil.copytree(tmp_path / "c" / "slides", tmp_path / "slides")
    shutil.copy(cohort, tmp_path / "cohort.csv")
    shutil.copy(next((tmp_path / "slides").glob("*.tif")), tmp_path / "slide.svs")
    (tmp_path / "pipelines" / "configs").mkdir(parents=True)
    (tmp_path / "pipelines" / "configs" / "finetune.yaml").write_text(yaml.safe_dump(tiny))
    commands = _readme_commands()
    assert {c[1] for c in commands} == {"manifest", "plan", "classify", "heatmap", "finetune"}
    commands.sort(key=lambda c: c[1] != "finetune")  # a model is needed first
    for words in [*commands, ["wsi-ips", "inspect", "slide.svs"], ["wsi-ips", "doctor"]]:
        done = subprocess.run(
            [sys.executable, "-m", "wsi_ips.cli", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "run" / "index.html").is_file()
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code.group(1)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "slide.png").read_bytes()[:4] == b"\x89PNG"


def test_settings_files_are_valid_and_hold_only_differences() -> None:
    """Each configuration loads, and no line of it repeats a default."""
    benchmarks = ("crc_nuclei.yaml", "idc_mosaics.yaml", "tcga_bags.yaml", "megapixel_mnist_small.yaml", "megapixel_mnist_paper.yaml",
                  "megapixel_mnist_paper_3000.yaml")  # fmt: skip
    kinds = {"classify.yaml": ReadSettings, "finetune.yaml": FinetuneSettings, **dict.fromkeys(benchmarks, FinetuneSettings)}
    files = {p.name: p for p in (ROOT / "pipelines" / "configs").glob("*.yaml")}
    assert set(files) == set(kinds)
    for name, kind in kinds.items():
        load_settings(kind, files[name])
        _assert_differs(yaml.safe_load(files[name].read_text()), kind().model_dump(mode="json"), name)


def _assert_differs(given: dict[str, object], default: dict[str, object], where: str) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(default[key], dict) and default[key]:
            _assert_differs(value, default[key], f"{where}: {key}")  # type: ignore[arg-type]
        else:
            assert value != default[key], f"{where}: {key} repeats the default {value!r}"


def test_files_that_must_change_together_agree() -> None:
    """setup.cfg, constraints.txt and environment.yml name the same packages; torch and torchvision are a known pair."""
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = [
        re.split(r"[<>=!;\[ ]", line)[0].lower().replace("_", "-")
        for line in config["options"]["install_requires"].split("\n")
        if line
    ]
    pins = dict(re.findall(r"^([A-Za-z0-9_.\-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pins}
    assert set(needed) <= pinned
    assert (pins["torch"], pins["torchvision"]) == ("2.15.0", "0.29.2")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1]["pip"] == ["-c constraints.txt", "-e .[dev]"]


def test_every_reason_code_is_explained() -> None:
    """docs/failures.md names each code that the package can write."""
    codes = {
        c for p in (ROOT / "wsi_ips").rglob("*.py") for c in re.findall(r'"(E_[A-Z_]+)"', p.read_text(encoding="utf-8"))
    }
    said = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
    assert len(codes) > 30
    assert not {c for c in codes if c not in said}


def _catalogue() -> dict[int, str]:
    """The last cell of each row of the table of faults, by number."""
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", (ROOT / "docs" / "failures.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len({number for number, _ in rows}), "a number twice"
    return {int(number): cell for number, cell in rows}


def test_every_fault_of_the_catalogue_has_a_test_of_its_number() -> None:
    """docs/failures.md names, for each of 137 faults, tests that exist and carry its number, or why it does not apply."""
    catalogue = _catalogue()
    assert sorted(catalogue) == list(range(1, 138))
    for number, cell in catalogue.items():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cell)
        assert named or cell.startswith("does not apply: "), f"fault {number}: {cell}"
        for file, name in named:
            assert re.search(rf"^ *def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), f"fault {number}: no {file}::{name}"
            assert f"_{number:03d}_" in name, f"fault {number}: {name} is of another"


def test_every_test_of_a_fault_stands_in_the_catalogue() -> None:
    """A test that carries a fault's number is found from the table."""
    catalogue = _catalogue()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name, numbers in re.findall(r"^def (test_fault((?:_\d{3}(?:_and)?)+)_\w*)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            for number in map(int, re.findall(r"\d{3}", numbers)):
                where = f"`{path.relative_to(ROOT / 'tests').as_posix()}::{name}`"
                assert where in catalogue[number], f"fault {number}: {where} is not in docs/failures.md"
