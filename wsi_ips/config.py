"""What a model computes from a slide, as settings: tiles, tissue, encoder, attention, selection, tasks; and reading.

How settings work: `settings.py`. How a model learns: `recipe.py`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from wsi_ips.settings import Settings, dump_settings, load_settings, settings_hash
from wsi_ips.tasks import TaskSettings

__all__ = [
    "AttentionSettings",
    "EncoderSettings",
    "ModelSettings",
    "ReadSettings",
    "SelectionSettings",
    "TaskSettings",
    "TileSpec",
    "TissueSettings",
    "dump_settings",
    "load_settings",
    "result_hash",
    "settings_hash",
]


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

    method: Literal["stain", "whole"] = "stain"
    """`stain`: what is stained; `whole`: everything that was scanned, for images without glass; a mask restricts both."""
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
    """A timm model that turns tiles into embeddings, or embeddings that another tool has made."""

    name: str = "resnet18"
    """timm name, `hf-hub:owner/repo` or `local-dir:folder`; `features` reads embeddings from the column features_path."""
    width: int | None = Field(None, ge=1)
    """Name `features` only: length of the vectors; training fills it in."""
    weights: str = "pretrained"
    """`pretrained` (the name's own), `none` (from scratch) or a local .safetensors file (of a .pt: `model import`)."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the timm model (`norm_layer: groupnorm`, `channels: [...]`)."""
    in_channels: int = Field(3, ge=1)
    """Channels of a tile."""
    stages: int | None = Field(None, ge=1)
    """First stages that are kept, pooled behind the last of them; None keeps all."""


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
    positions: int | None = Field(None, ge=1, le=1_000_000)
    """Tiles of every image, where all have one and the same grid: a sinusoid of a tile's row in it joins its features."""


class SelectionSettings(Settings):
    """How the tiles that matter are found."""

    mode: Literal["exact", "ips"] = "exact"
    """`exact`: top M of the whole bag; `ips`: the paper's loop, whose choice depends on chunk and order."""
    memory_size: int = Field(256, ge=1)
    """M: how many tiles the label is read from."""
    chunk_size: int = Field(64, ge=1)
    """I: how many tiles are encoded at a time."""
    order: Literal["rows", "shuffled"] = "rows"
    """`ips` only: tiles come row by row of the grid, or shuffled: anew each step of training, later by one fixed draw."""
    context: bool = False
    """Whether the unselected tiles enter the label too, pooled without gradient: for evidence that is spread (grading)."""


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

    n_readers: int = Field(0, ge=0, le=64)
    """Reader threads a slide; 0 chooses: 2, and in `classify` as many as keep the encoder busy."""
    read_ahead: int = Field(0, ge=0)
    """Chunks read ahead of the consumer; 0 chooses: 2, and in `classify` more for a GPU."""
    max_bad_tiles: float = Field(0.0, ge=0.0, le=1.0)
    """Share of tiles that may fail to read before the slide fails."""
    hold_gb: float = Field(1.0, ge=0.0)
    """Training only: pixels kept in memory so that tiles are decoded once, GiB; what does not fit is read each time."""
    same_once: bool = False
    """Encode tiles of the same bytes once a pass, and draw them once where tiles are drawn at random: for images that are
    blank for the most part."""
    loading: Literal["lazy", "slide", "batch"] = "lazy"
    """Training only, `lazy`: some chunks ahead, chosen tiles read again; `slide`, `batch`: all tiles of a slide, or of all
    slides of a step, are in memory until their chosen ones are learned from. The paper: lazy, eager sequential, eager."""
    max_tiles: int = Field(1_000_000, ge=1)
    """A slide with more tiles is refused (`E_ABSURD`)."""

    @property
    def readers(self) -> int:
        """Threads where nothing is tuned."""
        return self.n_readers or 2

    @property
    def chunks_ahead(self) -> int:
        """Chunks read ahead where nothing is tuned."""
        return self.read_ahead or 2


def result_hash(settings: ModelSettings, read: ReadSettings) -> str:
    """Hash the settings that decide a result; how many readers there are is none of them."""
    fixed = {"n_readers": 2, "read_ahead": 2}
    return settings_hash(settings, ReadSettings(**fixed, max_bad_tiles=read.max_bad_tiles, max_tiles=read.max_tiles))
