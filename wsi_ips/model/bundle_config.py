"""What a bundle says of itself, read without loading torch: the leader of a run and `plan` need no more.

Names of its files, its version, its settings.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.errors import ConfigError, ModelError
from wsi_ips.tables import shown
from wsi_ips.untrusted import read_json

__all__ = ["BUNDLE_SCHEMA_VERSION", "CARD", "CONFIG", "FORMAT", "WEIGHTS", "bundle_hash", "read_bundle_config", "read_bundle_settings"]

BUNDLE_SCHEMA_VERSION = 2  # 2: ensembles, embeddings as input; a bundle of version 1 is one member
FORMAT = "wsi-ips-bundle"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_MAX_BYTES = 64 << 20


def read_bundle_config(folder: str | Path) -> dict[str, Any]:
    """Read and check a bundle's config.json; the weights are not looked at.

    Raises:
        ModelError: absent, not a bundle's, or of a newer version; the sentence names the file.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ModelError(f"{path}: missing; a model bundle is a folder with {CONFIG}, {WEIGHTS} and {CARD}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size} bytes are no bundle configuration")
        config = read_json(path.read_bytes(), max_bytes=_MAX_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: is not complete JSON ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"{path}: is not the configuration of a {FORMAT}")
    version = config.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= BUNDLE_SCHEMA_VERSION:
        raise ModelError(
            f"{path}: schema_version {shown(str(version))[1:-1]} needs wsi-ips {shown(str(config.get('wsi_ips_version')))[1:-1]} or newer "
            f"(this one reads up to {BUNDLE_SCHEMA_VERSION})"
        )
    if not isinstance(config.get("weights"), dict) or not isinstance(config["weights"].get("sha256"), str):
        raise ModelError(f"{path}: does not hold the SHA-256 of {WEIGHTS}")
    return config


def bundle_hash(config: dict[str, Any]) -> str:
    """Hash a bundle's configuration, and through the SHA-256 it holds the weights: 64 hex digits, the model's identity."""
    # sorted keys, so that a reformatted file is the same model
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_bundle_settings(folder: str | Path) -> ModelSettings:
    """Read the settings of a bundle.

    Raises:
        ModelError: not a bundle, or settings that this version does not know.
    """
    config = read_bundle_config(folder)
    try:
        return load_settings(ModelSettings, config.get("settings"))
    except ConfigError as error:
        raise ModelError(f"{Path(folder) / CONFIG}: not a valid bundle configuration ({error})") from error
