"""A model as a folder: config.json + model.safetensors + README.md, whole or not there at all.

Opening one runs no code from it and asks no network: the architecture stands in the configuration, the weights are
plain tensors whose SHA-256 the configuration holds, so the hash of the configuration is the identity of the model.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import wsi_ips
from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.errors import ModelError, WsiIpsError
from wsi_ips.files import sync_file, sync_folder
from wsi_ips.model.bundle_config import (
    BUNDLE_SCHEMA_VERSION,
    CARD,
    CONFIG,
    FORMAT,
    WEIGHTS,
    bundle_hash,
    read_bundle_config,
)
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import Architecture, Encoder, Precision, rebuild_encoder
from wsi_ips.model.ensemble import Classifier, EnsembleClassifier
from wsi_ips.model.features import FeatureInput
from wsi_ips.model.weights import check_finite, load_strict, read_state
from wsi_ips.results import sha256_file

__all__ = ["BUNDLE_SCHEMA_VERSION", "Bundle", "check_bundle_target", "load_bundle", "save_bundle"]

_IS_MEMBERS_ENCODER = re.compile(r"members\.\d+\.encoder\.")
_IS_NORMALISATION = re.compile(r"(members\.\d+\.encoder|encoders\.\d+|encoder)\.(mean|std)$")


@dataclass(frozen=True)
class Bundle:
    """An opened model."""

    settings: ModelSettings
    classifier: Classifier  # in eval mode, on the CPU
    hash: str  # 64 hex digits over configuration and weights: the model's identity
    config: dict[str, Any]  # config.json as it stands; `extra` holds what the maker added

    @property
    def extra(self) -> dict[str, Any]:
        """Training summary, cohort statistics and other things the maker added."""
        return dict(self.config.get("extra", {}))

    @property
    def single(self) -> IPSClassifier:
        """The classifier, to learn with.

        Raises:
            ModelError: it is an ensemble.
        """
        if isinstance(self.classifier, EnsembleClassifier):
            k = len(self.classifier.members)
            raise ModelError(f"this bundle holds {k} models together, which cannot learn; start from one of them")
        return self.classifier


def save_bundle(
    folder: str | Path,
    classifier: Classifier,
    settings: ModelSettings,
    *,
    card: str,
    extra: dict[str, Any] | None = None,
) -> str:
    """Write a model folder, replacing an older model there; other files of that folder stay.

    Args:
        folder: where the bundle shall stand.
        classifier: its weights are stored as they are; a shared encoder once.
        settings: stored with local paths reduced to file names; `extra` may hold what they were.
        card: README.md, the model card.
        extra: JSON values to travel along.

    Returns:
        The bundle's hash.

    Raises:
        ModelError: the folder holds something else, weights are not finite, or `extra` is no JSON.
    """
    target = check_bundle_target(folder)
    state = _stored_state(classifier)
    check_finite(state, f"{target}: not written")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if target.exists():
            ours = shutil.ignore_patterns(CONFIG, WEIGHTS, CARD)
            shutil.copytree(target, temporary, ignore=ours, dirs_exist_ok=True)
        save_file(state, temporary / WEIGHTS)
        config = _config(classifier, settings, sha256_file(temporary / WEIGHTS), extra or {})
        (temporary / CONFIG).write_text(_json(config, target), encoding="utf-8")
        (temporary / CARD).write_text(card, encoding="utf-8")
        for name in (CONFIG, WEIGHTS, CARD):
            sync_file(temporary / name)
        temporary.chmod(0o755)
        _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return bundle_hash(config)


def check_bundle_target(folder: str | Path) -> Path:
    """Prove that a bundle can be written there, before the work that makes it.

    Raises:
        ModelError: the folder holds something else, or cannot be written.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / CONFIG).is_file())):
        raise ModelError(f"{target}: exists and is no model bundle; choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise ModelError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    return target


def load_bundle(folder: str | Path, precision: str = "auto") -> Bundle:
    """Open a model folder.

    Args:
        folder: a bundle.
        precision: "auto" or "float32", see `build_encoder`.

    Raises:
        ModelError: absent, incomplete, changed, of a newer version, or not finite; the sentence names the file.
    """
    path = Path(folder)
    config = read_bundle_config(path)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{weights}: missing; the bundle is not complete")
    found, stated = sha256_file(weights), config["weights"]["sha256"]
    if found != stated:
        raise ModelError(
            f"{weights}: changed or damaged: its SHA-256 {found[:12]}.. is not the {stated[:12]}.. of {CONFIG}"
        )
    try:
        settings = load_settings(ModelSettings, config["settings"])
        classifier = _empty_classifier(config, settings, "float32" if precision == "float32" else "auto")
    except Exception as error:  # timm and torch raise nearly anything for arguments that cannot be meant
        why = str(error) if isinstance(error, WsiIpsError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"{path / CONFIG}: not a valid bundle configuration ({why})") from error
    said = {key: value.clone() for key, value in classifier.state_dict().items() if _IS_NORMALISATION.match(key)}
    load_strict(classifier, _whole_state(classifier, read_state(weights)), str(weights))
    now = classifier.state_dict()
    if any(not torch.equal(now[key], value) for key, value in said.items()):
        raise ModelError(f"{path / CONFIG}: mean or std differ from those the weights were stored with")
    return Bundle(settings, classifier.eval(), bundle_hash(config), config)


def _empty_classifier(config: dict[str, Any], settings: ModelSettings, precision: Precision) -> Classifier:
    """Build what the configuration describes, with random weights."""
    inputs = [_read_encoder(e, precision) for e in config.get("encoders") or [config["encoder"]]]
    encoder_of = [int(j) for j in config.get("encoder_of", [0])]
    members = [IPSClassifier(inputs[j], settings) for j in encoder_of]
    return EnsembleClassifier(members, encoder_of) if "encoders" in config else members[0]


def _read_encoder(e: dict[str, Any], precision: Precision) -> Encoder | FeatureInput:
    if e["architecture"] == "features":
        return FeatureInput(int(e["width"]))
    name, kwargs = str(e["architecture"]), dict(e["kwargs"])
    architecture = Architecture(
        name, kwargs, int(e["in_channels"]), int(e["input_size_px"]),
        tuple(float(v) for v in e["mean"]), tuple(float(v) for v in e["std"]), str(e["interpolation"]),
        None if e.get("stages") is None else int(e["stages"]),
    )  # fmt: skip
    return rebuild_encoder(architecture, precision)


def _encoder_config(encoder: Encoder | FeatureInput) -> dict[str, Any]:
    if isinstance(encoder, FeatureInput):
        return {"architecture": "features", "width": encoder.width}
    a = encoder.architecture
    return {
        "architecture": a.name, "kwargs": a.kwargs, "in_channels": a.in_channels, "width": encoder.width,
        "input_size_px": a.tile_px, "mean": list(a.mean), "std": list(a.std), "interpolation": a.interpolation,
        "crop_pct": 1.0, **({} if a.stages is None else {"stages": a.stages}),
    }  # fmt: skip


def _stored_state(classifier: Classifier) -> dict[str, Tensor]:
    """Every tensor once: members' encoders stand under `encoders`."""
    own = {key: t for key, t in classifier.state_dict().items() if not _IS_MEMBERS_ENCODER.match(key)}
    return {key: t.detach().cpu().contiguous().clone() for key, t in own.items()}


def _whole_state(classifier: Classifier, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `_stored_state`."""
    if not isinstance(classifier, EnsembleClassifier):
        return state
    again = {
        f"members.{i}.encoder.{key.split('.', 2)[2]}": t
        for i, j in enumerate(classifier.encoder_of) for key, t in state.items() if key.startswith(f"encoders.{j}.")
    }  # fmt: skip
    return state | again


def _config(classifier: Classifier, settings: ModelSettings, sha256: str, extra: dict[str, Any]) -> dict[str, Any]:
    several: dict[str, Any] = {}
    if isinstance(classifier, EnsembleClassifier):
        several = {"encoders": [_encoder_config(e) for e in classifier.encoders], "encoder_of": classifier.encoder_of}  # type: ignore[arg-type]  # ModuleList forgets
        first = several["encoders"][0]
    else:
        first = _encoder_config(classifier.encoder)
    classes = [name for task in settings.tasks for name in task.classes]
    normalise = {"name": "Normalize", "arguments": {"mean": first.get("mean"), "std": first.get("std")}}
    return {
        "format": FORMAT, "schema_version": BUNDLE_SCHEMA_VERSION, "wsi_ips_version": wsi_ips.__version__,
        "settings": _without_paths(settings).model_dump(mode="json"),
        "members": len(several.get("encoder_of", [0])), "shared_encoder": len(several.get("encoders", [0])) == 1,
        "encoder": first, **several,
        "weights": {"file": WEIGHTS, "sha256": sha256, "n_parameters": sum(p.numel() for p in classifier.parameters())},
        # the same words as WSInfer's configuration, so that its tools recognise them
        "architecture": first["architecture"], "num_classes": len(classes), "class_names": classes,
        "patch_size_pixels": settings.tile.size_px, "spacing_um_px": settings.tile.mpp,
        "transform": [{"name": "ToTensor"}, normalise] if "mean" in first else [],
        "extra": extra,
    }  # fmt: skip


def _without_paths(settings: ModelSettings) -> ModelSettings:
    """Reduce local paths to file names: a model that travels must not tell where it was made."""
    encoder = settings.encoder
    scheme, colon, rest = encoder.name.partition(":")
    name = f"{scheme}{colon}{Path(rest).name}" if scheme == "local-dir" else encoder.name
    weights = encoder.weights if encoder.weights in ("pretrained", "none") else Path(encoder.weights).name
    return settings.replace(encoder=encoder.replace(name=name, weights=weights).model_dump())


def _json(config: dict[str, Any], target: Path) -> str:
    try:
        return json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ModelError(f"{target}: what shall travel with the model is no plain JSON ({error})") from error


def _swap(temporary: Path, target: Path) -> None:
    """Give the finished folder its name; the older one goes away after that."""
    old = temporary.with_name(temporary.name + ".old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
