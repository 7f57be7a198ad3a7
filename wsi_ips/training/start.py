"""What a training starts from: an encoder's own weights, a bundle, or nothing; and which stages of it learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from wsi_ips.config import EncoderSettings, ModelSettings, TaskSettings
from wsi_ips.engine.featurefiles import read_feature_file
from wsi_ips.errors import ConfigError, ManifestError, Note, SlideError
from wsi_ips.model.bundle import load_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import build_input
from wsi_ips.model.hub import resolve_architecture
from wsi_ips.results import sha256_file
from wsi_ips.training.targets import Member

__all__ = ["Start", "build_classifier", "choose_stages", "make_start"]

_MANY_SLIDES = 200  # fewer do not carry an encoder
_WIDTHS_LOOKED_AT = 9  # files: one odd one among the first must not decide for all
Precision = Literal["auto", "float32"]


class Start(NamedTuple):
    """Where training starts."""

    settings: ModelSettings  # tasks resolved, feature width known
    notes: tuple[Note, ...]
    is_scratch: bool  # nothing is trained yet, the encoder included
    hash: str  # of the bundle, or of a local file of weights; "" without either
    init: Path | None
    offline: bool
    precision: Precision
    why: str = ""  # which stages learn, in words
    is_new_head: bool = True  # projector and head start untrained

    def make(self, settings: ModelSettings, seed: int) -> IPSClassifier:
        """Build the model; random parts come from the seed."""
        if self.init is None:
            return build_classifier(settings, seed=seed, offline=self.offline, precision=self.precision)
        bundle = load_bundle(self.init, self.precision)
        torch.manual_seed(seed)
        classifier = bundle.single
        if not self.is_new_head:
            classifier.settings = settings
            return classifier
        return IPSClassifier(classifier.encoder, settings)


def build_classifier(
    settings: ModelSettings, *, seed: int = 0, offline: bool = False, precision: Precision = "auto"
) -> IPSClassifier:
    """Make a classifier; random parts come from the seed."""
    torch.manual_seed(seed)
    return IPSClassifier(
        build_input(settings.encoder, settings.tile.size_px, offline=offline, precision=precision), settings
    )


def make_start(
    model: ModelSettings, tasks: tuple[TaskSettings, ...], members: Sequence[Member], *, init: Path | None, offline: bool,
    allow_mismatch: bool, precision: Precision,
) -> Start:  # fmt: skip
    """Decide what training starts from; the encoder must see what it was trained on.

    Raises:
        ConfigError: another tile size or resolution than the encoder's own, without `allow_mismatch`.
        ModelError: the bundle or the encoder cannot be had. ManifestError: no feature file can be read.
    """
    dumped = [t.model_dump() for t in tasks]
    if init is None:
        settings = _with_width(model.replace(tasks=dumped), members)
        own = _own_tile_px(settings.encoder, offline)
        differs = own is not None and own != settings.tile.size_px
        text = f"encoder {settings.encoder.name} was trained on {own} px, the tiles are {settings.tile.size_px} px"
        is_scratch = settings.encoder.weights == "none" and settings.encoder.name != "features"
        weights = Path(settings.encoder.weights)
        own_hash = sha256_file(weights) if weights.is_file() else ""
        return Start(settings, _allowed(text, differs, allow_mismatch), is_scratch, own_hash, None, offline, precision)
    bundle = load_bundle(init)
    _ = bundle.single  # an ensemble is refused now, not after the slides were read
    settings = _on_top_of(bundle.settings, model).replace(tasks=dumped)
    text = f"bundle {init.name} was trained on {bundle.settings.tile}, the tiles are {settings.tile}"
    notes = _allowed(text, settings.tile != bundle.settings.tile, allow_mismatch)
    is_new_head = _shape_of(settings) != _shape_of(bundle.settings)
    taken = "its encoder; attention and heads start anew, for tasks or tiles differ" if is_new_head else "all of its weights"
    notes += (Note("E_NEW_HEAD", f"from bundle {init.name} ({bundle.hash[:12]}): {taken}"),)
    return Start(settings, notes, False, bundle.hash, init, offline, precision, is_new_head=is_new_head)


def choose_stages(asked: int | None, start: Start, n_train: int) -> tuple[int, str]:
    """Decide which stages of the encoder learn, and say why."""
    if start.settings.encoder.name == "features":
        return 0, "embeddings come from files, the head learns"
    if asked is not None:
        return asked, f"encoder stages that learn: {'all' if asked < 0 else asked}, as set"
    if start.is_scratch:
        return -1, "the encoder is untrained, so all of it learns"
    if n_train < _MANY_SLIDES:
        return 0, f"fewer than {_MANY_SLIDES} training slides: the encoder stays as it is, the head learns"
    return 1, "the last stage of the encoder and the head learn"


def _with_width(settings: ModelSettings, members: Sequence[Member]) -> ModelSettings:
    """Take the width of the vectors that most of the first feature files have."""
    if settings.encoder.name != "features" or settings.encoder.width is not None:
        return settings
    faults: list[str] = []
    widths: Counter[int] = Counter()
    for m in members:
        if m.record.features_path and widths.total() < _WIDTHS_LOOKED_AT:
            try:
                widths[int(read_feature_file(m.record.features_path).embeddings.shape[1])] += 1
            except SlideError as error:
                faults.append(error.message)
    if not widths:
        raise ManifestError(faults[:5] or ["encoder features: no row has a file in the column features_path"])
    return settings.replace(encoder=settings.encoder.replace(width=widths.most_common(1)[0][0]).model_dump())


def _on_top_of(own: ModelSettings, asked: ModelSettings) -> ModelSettings:
    """Take a bundle's settings with what was set otherwise; its weights decide encoder and attention."""
    said = asked.model_fields_set
    for name in ("encoder", "attention"):
        given = getattr(asked, name)
        if name == "encoder" and asked.encoder.name == "features" and asked.encoder.width is None:
            given = asked.encoder.replace(width=own.encoder.width)
        if name in said and given != getattr(own, name):
            raise ConfigError(f"model.{name}: a training that starts from a bundle keeps the bundle's; leave it out")
    changes = {k: getattr(own, k).model_dump() | getattr(asked, k).model_dump(exclude_unset=True)
               for k in ("tile", "tissue", "selection") if k in said}  # fmt: skip
    return own.replace(**changes, **({"icc": asked.icc} if "icc" in said else {}))


def _allowed(text: str, differs: bool, allow_mismatch: bool) -> tuple[Note, ...]:
    """Refuse a mismatch, or record it when it was asked for."""
    if differs and not allow_mismatch:
        raise ConfigError(f"{text}: set tile to what it was trained on, or say --allow-mismatch")
    return (Note("E_MISMATCH", text),) if differs else ()


def _own_tile_px(encoder: EncoderSettings, offline: bool) -> int | None:
    """Side of the tiles that an encoder's own weights were trained on; None for a start from scratch or a local file."""
    if encoder.weights != "pretrained" or encoder.name == "features":
        return None
    size = resolve_architecture(encoder.name, offline).cfg.get("input_size")
    return int(size[-1]) if size else None


def _shape_of(settings: ModelSettings) -> list[object]:
    """What decides whether the heads of two models mean the same."""
    tasks = [(t.name, t.kind, t.classes, t.cuts) for t in settings.tasks]
    return [settings.attention, settings.tile.size_px, tasks]
