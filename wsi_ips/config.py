"""Settings: frozen, typed, with units; YAML in and out.

Every field has a default and a sentence. An unknown key is an error that names the nearest known key. Files hold only
differences from the defaults; a run writes its settings out in full beside its results.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsi_ips.errors import ConfigError

__all__ = [
    "AttentionSettings",
    "EncoderSettings",
    "FinetuneSettings",
    "ModelSettings",
    "ReadSettings",
    "SelectionSettings",
    "TaskSettings",
    "TileSpec",
    "TissueSettings",
    "TrainSettings",
    "dump_settings",
    "load_settings",
    "settings_hash",
]

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


class TileSpec(Settings):
    """Which squares: part of what an encoder was trained on."""

    size_px: int = Field(224, ge=8, le=4096)
    """Side of a tile as the encoder sees it, px."""
    mpp: float = Field(0.5, gt=0.0, le=100.0)
    """Resolution of a tile, µm per tile px."""
    overlap_px: int = Field(0, ge=0)
    """Overlap of neighbours, tile px."""

    @model_validator(mode="after")
    def _overlap_below_size(self) -> Self:
        if self.overlap_px >= self.size_px:
            raise ValueError(f"overlap_px {self.overlap_px} must be below size_px {self.size_px}")
        return self


class TissueSettings(Settings):
    """What counts as tissue. Lengths and areas are physical, so they mean the same on every scanner."""

    view_mpp: float = Field(8.0, gt=0.5, le=64.0)
    """Resolution of the view the mask is made from, µm per px."""
    min_tile_fraction: float = Field(0.1, ge=0.0, le=1.0)
    """A tile is kept when at least this share of it is tissue."""
    min_region_um2: float = Field(10_000.0, ge=0.0)
    """Smaller specks are dropped, µm²."""
    max_hole_um2: float = Field(20_000.0, ge=0.0)
    """Smaller holes are filled, µm²."""
    remove_pen: bool = True
    """Keep green, blue, black and red pen marks out."""
    min_focus: float = Field(0.0, ge=0.0)
    """Tiles whose focus score lies below are dropped; 0 keeps all."""


class EncoderSettings(Settings):
    """A timm model that turns tiles into embeddings."""

    name: str = "resnet18"
    """timm name, `hf-hub:owner/repo` or `local-dir:folder`."""
    weights: str = "pretrained"
    """`pretrained` (the name's own), `none` (from scratch) or a local .safetensors / .pt file."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the timm model (`norm_layer: groupnorm`, `channels: [...]`)."""
    in_channels: int = Field(3, ge=1)
    """Channels of a tile."""


class AttentionSettings(Settings):
    """The cross-attention head: one learned query a task."""

    dim: int | None = Field(512, ge=1)
    """Embedding width D behind the projector; None keeps the encoder's width."""
    n_heads: int = Field(8, ge=1)
    """Heads H; must divide D."""
    projector_norm: Literal["batch", "layer"] = "layer"
    """Normalisation of the projector."""
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """In training only."""


class SelectionSettings(Settings):
    """How the tiles that matter are found."""

    mode: Literal["exact", "ips"] = "exact"
    """`exact`: top M of the whole bag; `ips`: the paper's loop, whose choice depends on chunk and order."""
    memory_size: int = Field(256, ge=1)
    """M: how many tiles the label is read from."""
    chunk_size: int = Field(64, ge=1)
    """I: how many tiles are encoded at a time."""


class TaskSettings(Settings):
    """One question asked of a slide; the order of classes is the order of outputs."""

    name: str = "label"
    kind: Literal["binary", "multiclass", "multilabel", "ordinal", "regression"] = "binary"
    classes: tuple[str, ...] = ()
    """Class names in output order; binary: (negative, positive)."""
    threshold: float | None = None
    """Binary: probability of the positive class from which it is called; None means 0.5."""

    @model_validator(mode="after")
    def _enough_classes(self) -> Self:
        need = {"binary": 2, "multiclass": 2, "ordinal": 2, "multilabel": 1, "regression": 0}[self.kind]
        if len(self.classes) < need or (self.kind == "binary" and len(self.classes) != 2):
            raise ValueError(f"task {self.name!r} is {self.kind} and has {len(self.classes)} classes: {self.classes}")
        return self

    @property
    def n_outputs(self) -> int:
        """Logits of the task's head: binary 1 (the positive class), ordinal K - 1, regression 1, else K."""
        return {"binary": 1, "regression": 1, "ordinal": len(self.classes) - 1}.get(self.kind, len(self.classes))


class ModelSettings(Settings):
    """Everything that decides what a model computes from a slide; stored in its bundle."""

    encoder: EncoderSettings = EncoderSettings()
    attention: AttentionSettings = AttentionSettings()
    selection: SelectionSettings = SelectionSettings()
    tile: TileSpec = TileSpec()
    tissue: TissueSettings = TissueSettings()
    tasks: tuple[TaskSettings, ...] = (TaskSettings(classes=("negative", "positive")),)
    icc: Literal["none", "srgb"] = "none"
    """Whether slides' colour profiles are applied; the same in training and inference."""


class ReadSettings(Settings):
    """How slides are read; changes speed and strictness, never a pixel."""

    n_readers: int = Field(2, ge=1, le=64)
    """Reader threads a slide."""
    read_ahead: int = Field(2, ge=1)
    """Chunks read ahead of the consumer."""
    max_bad_tiles: float = Field(0.0, ge=0.0, le=1.0)
    """Share of tiles that may fail to read before the slide fails."""
    max_tiles: int = Field(1_000_000, ge=1)
    """A slide with more tiles is refused (`E_ABSURD`)."""


class TrainSettings(Settings):
    """How `finetune` learns."""

    epochs: int = Field(20, ge=1)
    batch_slides: int = Field(8, ge=1)
    """Slides an optimiser step (B)."""
    micro_batch: int = Field(256, ge=1)
    """Tiles encoded with gradient at a time; memory depends on it, the result does not."""
    lr: float = Field(3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.05, ge=0.0)
    warmup_epochs: float = Field(1.0, ge=0.0)
    """Linear warm-up, then cosine to lr / 1000."""
    clip_norm: float = Field(1.0, gt=0.0)
    """Largest gradient norm."""
    train_stages: int | None = Field(None, ge=-1)
    """Last stages of the encoder that learn: -1 all, 0 none (head only); None chooses by weights and cohort."""
    random_epochs: int = Field(0, ge=0)
    """First epochs that learn on random tiles: the attention of an untrained encoder knows nothing yet."""
    explore: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the M training tiles drawn at random from the unselected; the label never uses them."""
    flips: bool = True
    turns: bool = True
    """Right-angle turns."""
    hed_jitter: float = Field(0.03, ge=0.0, le=0.5)
    """Largest relative change of haematoxylin, eosin, DAB density."""
    val_fraction: float = Field(0.25, gt=0.0, lt=1.0)
    """Share of patients held out where the manifest gives no split."""
    patience: int = Field(0, ge=0)
    """Stop after so many epochs without a better validation score; 0 never."""
    seed: int = 0

    @model_validator(mode="after")
    def _selects_in_the_end(self) -> Self:
        if self.random_epochs >= self.epochs:
            raise ValueError(f"random_epochs {self.random_epochs} must be below epochs {self.epochs}")
        return self


class FinetuneSettings(Settings):
    """Everything `finetune` can be told in a file."""

    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    read: ReadSettings = ReadSettings()


def load_settings(kind: type[S], source: str | Path | dict[str, Any] | None) -> S:
    """Read settings from YAML or a mapping; missing keys keep their defaults.

    Raises:
        ConfigError: unknown key (with the nearest known one) or a value out of range.

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
        try:
            data = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
