"""The example manifests are honest: they parse, and the folder holds nothing but tables and their description."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsi_ips.manifest import load_manifest

_FOLDER = Path(__file__).resolve().parents[1] / "data_manifests"
_OPTIONS = {"crossval.csv": {"ext": "svs", "label_columns": ("subtype", "grade")}}


@pytest.mark.parametrize("path", sorted(_FOLDER.glob("*.csv")), ids=lambda p: p.name)
def test_every_example_is_a_manifest(path: Path) -> None:
    """Each example is read without a problem or a note, with a patient named for every slide."""
    manifest = load_manifest(path, check_files=False, **_OPTIONS.get(path.name, {}))
    assert len(manifest) >= 7
    assert manifest.notes == ()
    assert not any(r.patient_is_default or r.carried for r in manifest)


def test_the_folder_holds_tables_only() -> None:
    """No pixels, no other files: CSV and one README."""
    assert {p.suffix for p in _FOLDER.iterdir() if p.name != "README.md"} == {".csv"}


def test_the_readme_describes_every_column_and_file() -> None:
    """A column used in an example, and each example, is named in the README."""
    text = (_FOLDER / "README.md").read_text(encoding="utf-8")
    for path in _FOLDER.glob("*.csv"):
        assert f"`{path.name}`" in text
        options = _OPTIONS.get(path.name, {})
        known = [c for c in load_manifest(path, check_files=False, **options).columns
                 if c not in options.get("label_columns", ())]  # fmt: skip
        assert all(f"`{re.sub('_[0-9]+$', '_<k>', c)}`" in text for c in known), path.name


def test_no_example_divides_a_patient() -> None:
    """The examples teach what is right: all slides of a patient are in one split of each fold."""
    for name, key in (("finetune.csv", None), ("crossval.csv", "fold_0"), ("crossval.csv", "fold_2")):
        manifest = load_manifest(_FOLDER / name, check_files=False, **_OPTIONS.get(name, {}))
        splits: dict[str, set[str | None]] = {}
        for r in manifest:
            splits.setdefault(r.patient_id, set()).add(r.folds[key] if key else r.split)
        assert all(len(s) == 1 for s in splits.values())


def test_the_excluded_example_keeps_its_reason() -> None:
    """An excluded row stays a row and carries why."""
    (row,) = [r for r in load_manifest(_FOLDER / "classify.csv", check_files=False) if r.is_excluded]
    assert row.slide_id == "P006_A"
    assert row.exclude_reason == "column 'exclude' says yes: wrong block"
