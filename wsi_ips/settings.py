"""The machinery of settings: frozen, typed, with units; YAML in and out.

Every field has a default and a sentence. An unknown key is an error that names the nearest known key. Files hold only
differences from the defaults; a run writes its settings out in full beside its results.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_ips.errors import ConfigError
from wsi_ips.untrusted import read_yaml

__all__ = ["Settings", "dump_settings", "load_settings", "settings_hash"]

_MAX_BYTES = 1 << 20  # of a file of settings

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values, validated; a value out of range is a ConfigError."""
        try:
            return type(self).model_validate(self.model_dump() | changes)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain("settings", type(self), e) for e in error.errors())) from error


def load_settings(kind: type[S], source: str | Path | dict[str, Any] | None) -> S:
    """Read settings from YAML or a mapping; missing keys keep their defaults.

    Raises:
        ConfigError: unknown key (with the nearest known one) or a value out of range.

    >>> from wsi_ips.config import TileSpec
    >>> load_settings(TileSpec, {"size_px": 256}).size_px
    256
    >>> load_settings(TileSpec, {"sise_px": 256})
    Traceback (most recent call last):
    ...
    wsi_ips.errors.ConfigError: settings: unknown key 'sise_px'; did you mean 'size_px'?
    """
    name, data = "settings", source
    if isinstance(source, (str, Path)):
        name = str(source)
        if not Path(source).is_file():
            raise ConfigError(f"{name}: no such file of settings; correct the path")
        try:
            data = read_yaml(Path(source).read_text(encoding="utf-8-sig"), max_bytes=_MAX_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{name}: cannot be read as YAML ({error})") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected a mapping of settings, found {type(data).__name__}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(name, kind, e) for e in error.errors())) from error


def dump_settings(settings: Settings) -> str:
    """Write settings out in full as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def settings_hash(*settings: Settings) -> str:
    """Hash settings by content, 16 hex digits."""
    text = json.dumps([s.model_dump(mode="json") for s in settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _explain(name: str, kind: type[BaseModel], error: Any) -> str:
    place = [str(part) for part in error["loc"]]
    if error["type"] == "value_error":  # a rule of ours, which names its values
        return f"{name}: {'.'.join(place) or 'settings'}: {error['ctx']['error']}"
    if error["type"] != "extra_forbidden":
        return f"{name}: {'.'.join(place) or 'settings'}: {error['msg']} (found {error['input']!r})"
    known = _fields_at(kind, place[:-1])
    near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{name}: unknown key {'.'.join(place)!r}; {hint}"


def _fields_at(kind: type[BaseModel], place: list[str]) -> list[str]:
    current: Any = kind
    for part in place:
        if part.isdigit() or not hasattr(current, "model_fields"):
            continue
        annotation = current.model_fields[part].annotation
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")]
        current = inner[0] if inner else current
    return list(getattr(current, "model_fields", {}))
