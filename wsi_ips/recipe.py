"""How a model learns, as settings: splits, optimiser, selection while it learns, augmentation.

None of this decides what a finished model computes; that is `config.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.settings import Settings

__all__ = ["AugmentSettings", "FinetuneSettings", "RescanSettings", "SplitSettings", "TrainSettings"]


class SplitSettings(Settings):
    """Who learns, who decides, who judges; always by patient."""

    val_fraction: float = Field(0.25, gt=0.0, lt=1.0)
    """Share of the training patients that choose the epoch, where the manifest names none."""
    test_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the training patients set aside as test split, where the manifest names none."""
    n_folds: int = Field(0, ge=0, le=50)
    """Cross-validation: how many folds; 0 trains once. Fold columns of the manifest win when they are there."""
    by_site: bool = False
    """Keep each site's slides on one side."""
    final: Literal["ensemble", "refit"] = "ensemble"
    """After cross-validation the bundle is all folds' models together, or one model trained on everything."""
    n_seeds: int = Field(1, ge=1, le=100)
    """Trainings that differ by seed alone; the bundle is the first seed's, the report gives the spread."""

    @model_validator(mode="after")
    def _folds_are_several(self) -> SplitSettings:
        if self.n_folds == 1:
            raise ValueError("n_folds 1 is no cross-validation; give 0, or 2 and more")
        return self


class RescanSettings(Settings):
    """How often tiles are scored again while the encoder learns."""

    mode: Literal["full", "stale"] = "full"
    """`full`: every tile every epoch; `stale`: last epoch's embeddings serve for tiles far from the choice."""
    band: float = Field(1.5, gt=0.0)
    """Stale: tiles of ranks up to (1 + band) M are scored again, by embeddings that follow the encoder's drift."""
    audit: float = Field(0.08, gt=0.0, le=1.0)
    """Stale: share of the other tiles, drawn at random, scored again to estimate recall."""
    min_recall: float = Field(0.9, gt=0.0, le=1.0)
    """Stale: below this audited recall of the true top M (pooled over an epoch) the next epoch scores every tile."""
    full_epochs: int = Field(2, ge=1)
    """Stale: first selecting epochs that score every tile."""
    check_every: int = Field(0, ge=0)
    """Stale: every so many epochs all tiles are scored as well, only to know the true recall; 0 never."""


class AugmentSettings(Settings):
    """Changes of training tiles that keep the label."""

    flips: bool = True
    turns: bool = True
    """Right-angle turns."""
    hed_jitter: float = Field(0.03, ge=0.0, le=0.5)
    """Largest relative change of haematoxylin, eosin, DAB density."""
    blur: float = Field(0.0, ge=0.0, le=1.0)
    """Share of tiles that are blurred, sigma up to 1.5 px."""
    jpeg: float = Field(0.0, ge=0.0, le=1.0)
    """Share of tiles that are compressed again, JPEG quality 40 to 90."""
    scale: float = Field(0.0, ge=0.0, le=0.3)
    """Largest relative change of magnification."""
    bag_mix: float = Field(0.0, ge=0.0, le=1.0)
    """ResizeMix of bags: share of slides that get tiles of another slide of the step, with a soft label."""
    tile_mix: float = Field(0.0, ge=0.0, le=1.0)
    """ResizeMix of tiles: share of slides some of whose tiles get a shrunken tile of another slide pasted in."""


class TrainSettings(Settings):
    """How `finetune` learns."""

    epochs: int = Field(20, ge=1)
    batch_slides: int = Field(8, ge=1)
    """Slides an optimiser step (B)."""
    micro_batch: int | None = Field(None, ge=1)
    """Tiles encoded with gradient at a time; None chooses by memory. Memory depends on it, the gradient does not."""
    memory_gb: float | None = Field(None, gt=0.0)
    """Budget for activations, GiB; None takes 1 on a CPU, 60 % of what is free on a GPU."""
    lr: float = Field(3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    layer_decay: float = Field(1.0, gt=0.0, le=1.0)
    """Learning rate of each encoder stage relative to the next one towards the head."""
    weight_decay: float = Field(0.05, ge=0.0)
    warmup_epochs: float = Field(1.0, ge=0.0)
    """Linear warm-up, then cosine to lr / 1000."""
    clip_norm: float = Field(1.0, gt=0.0)
    """Largest gradient norm."""
    ema: float = Field(0.0, ge=0.0, lt=1.0)
    """Decay a step of the averaged weights that are validated and kept; 0 keeps the plain weights."""
    precision: Literal["auto", "float32"] = "auto"
    """auto: bfloat16 in the encoder where the hardware computes in it."""
    norms: Literal["frozen", "batch"] = "frozen"
    """Batch normalisation in the encoder, `frozen`: on fixed statistics, as when it labels; `batch`: on those of all tiles of
    a step, which the running ones follow, as in the paper. Then a step is one pass whose memory grows with M and slides."""
    train_stages: int | None = Field(None, ge=-1)
    """Last stages of the encoder that learn: -1 all, 0 none (head only); None chooses by weights and cohort."""
    head_first: int = Field(0, ge=0)
    """First epochs in which the head alone learns, on what the encoder gives as it is."""
    head_last: int = Field(0, ge=0)
    """Last epochs in which the head alone learns: an encoder that has seen few slides often enough goes on to know them."""
    random_epochs: int = Field(0, ge=0)
    """First epochs that learn on random tiles: the attention of an untrained encoder knows nothing yet."""
    explore: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the M training tiles drawn at random from the unselected; the label never uses them."""
    rescan: RescanSettings = RescanSettings()
    elastic: float = Field(1.0, ge=1.0, le=64.0)
    """M is drawn each step between M / elastic and M x elastic (log-uniform), so that one model serves any M; 1 is off."""
    mask_top: float = Field(0.0, ge=0.0, lt=1.0)
    """Chance of each of the best tenth of the memory to be left out of a step, so that the rest must learn too; 0 is off."""
    entropy: float = Field(0.0, ge=0.0)
    """Weight of the attention's relative entropy (1 = uniform) rewarded in the loss; 0 is off."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare classes weigh more in the loss, by inverse frequency."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """balanced: an epoch draws slides of every class of the first task equally often."""
    augment: AugmentSettings = AugmentSettings()
    bucket: bool | None = None
    """Whether a step's slides have about equal numbers of tiles; None: where several processes would wait otherwise."""
    patience: int = Field(0, ge=0)
    """Stop after so many epochs without a better validation score; 0 never."""
    keep: Literal["best", "last"] = "best"
    """Weights kept: those of the best validation score, or of the last epoch, for a score of few slides is mostly chance."""
    checkpoint_seconds: float = Field(300.0, ge=0.0)
    """A checkpoint is written at most this often inside an epoch, and at the end of each."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _selects_in_the_end(self) -> TrainSettings:
        if self.random_epochs >= self.epochs:
            raise ValueError(f"random_epochs {self.random_epochs} must be below epochs {self.epochs}")
        if self.head_first + self.head_last >= self.epochs and self.head_first + self.head_last:
            raise ValueError(f"head_first {self.head_first} and head_last {self.head_last} leave the encoder no epoch of {self.epochs}; "
                             "train_stages: 0 trains the head alone")  # fmt: skip
        if self.patience and self.keep == "last":
            raise ValueError(
                f"patience {self.patience} waits for a better epoch, keep: last takes the last; use one of them"
            )
        return self


class FinetuneSettings(Settings):
    """Everything `finetune` can be told in a file."""

    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    split: SplitSettings = SplitSettings()
    read: ReadSettings = ReadSettings()

    @model_validator(mode="after")
    def _context_is_fresh(self) -> FinetuneSettings:
        if self.model.selection.context and self.train.rescan.mode == "stale":
            raise ValueError("rescan mode stale renews tiles near the top M, and selection.context pools all the others: it "
                             "would learn from embeddings of old weights; use rescan: {mode: full}")  # fmt: skip
        return self
