"""A bundle's config.json spoilt and made: settings, a model, or a `ModelError` that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Document, fuzz, fuzz_test, try_some
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from mutations import EXTREMES, json_values, mutated, odd_json

from wsi_ips.errors import ModelError
from wsi_ips.model.bundle_config import read_bundle_config, read_bundle_settings

KEYS = ("format", "schema_version", "settings", "members", "encoder", "encoders", "encoder_of", "weights", "sha256", "extra", "tasks", "kind",
        "classes", "cuts", "tile", "size_px", "mpp", "architecture", "kwargs", "width", "in_channels", "mean", "std", "interpolation")  # fmt: skip
MEANT = ("resnet18", "resnet50", "vit_tiny_patch16_224", "features", "hf-hub:a/b", "local-dir:/", "no such", "survival", "ordinal", "bicubic", "../x", 2, 64,
         "regression", [0, 0], [1, 0], [-1], {"channels": [8, 8, 8, 8]}, {"num_classes": 3}, {"checkpoint_path": "/etc/passwd"})  # fmt: skip


def _places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All paths into nested values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*here, key)
        yield from _places(one, (*here, key))


@st.composite
def _spoilt_config(draw: DrawFn, config: dict[str, Any]) -> bytes:
    """The configuration with some values replaced, taken out, or put under another name."""
    spoilt = json.loads(json.dumps(config))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from(list(_places(spoilt)) or [()]))
        if not place:
            break
        inside = spoilt
        for key in place[:-1]:
            inside = inside[key]
        what = draw(st.sampled_from(("odd", "odd", "meant", "meant", "gone", "moved", "nested")))
        if what == "gone":
            del inside[place[-1]]
        elif what == "moved" and isinstance(inside, dict):
            inside[draw(st.sampled_from(KEYS))] = inside.pop(place[-1])
        else:
            values = {"meant": st.sampled_from(MEANT), "nested": json_values(KEYS)}.get(what, odd_json())
            inside[place[-1]] = json.loads(json.dumps(draw(values)))  # of its own: `MEANT` holds mappings
    return json.dumps(spoilt).encode()


def documents(bundle: Path) -> SearchStrategy[Document]:
    """Spoilt configurations of a bundle."""
    config = json.loads((bundle / "config.json").read_bytes())
    ensemble = config | {"encoders": [config["encoder"]] * 2, "encoder_of": [0, 1], "members": 2}
    texts = mutated([json.dumps(c).encode() for c in (config, ensemble)], (b"{", b"}", b"[", b"null", b"\xff", b'"a":', *EXTREMES))
    made = json_values(KEYS).map(lambda v: json.dumps(v).encode())
    return st.builds(Document, st.one_of(_spoilt_config(config), _spoilt_config(ensemble), texts, made), st.just(".json"))


@pytest.fixture
def bundles(tmp_path: Path, tiny_bundle: Path) -> Callable[[Document], None]:
    """Opens the tiny bundle with a document for its config.json."""
    from wsi_ips.model.bundle import load_bundle  # torch: not for who collects other tests

    folder = tmp_path / "model"
    shutil.copytree(tiny_bundle, folder)

    def bundle(document: Document) -> None:
        (folder / "config.json").write_bytes(document.data)
        try:
            read_bundle_config(folder)
            read_bundle_settings(folder)
            load_bundle(folder)
        except ModelError as error:
            refusal = str(error)
        else:
            return
        assert str(folder) in refusal

    return bundle


def test_some_spoilt_bundles(bundles: Callable[[Document], None], tiny_bundle: Path) -> None:
    """A few of what is below."""
    try_some(bundles, documents(tiny_bundle), 40)


@fuzz_test
def test_spoilt_bundles(bundles: Callable[[Document], None], tiny_bundle: Path) -> None:
    """A model, or a refusal that names the file."""
    fuzz(bundles, documents(tiny_bundle))
