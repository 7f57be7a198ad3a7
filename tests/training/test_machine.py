"""Where memory gives out: learning goes on with smaller micro-batches, scoring says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wsi_ips.config import ModelSettings
from wsi_ips.engine.environment import is_out_of_memory
from wsi_ips.errors import ModelError
from wsi_ips.manifest import load_manifest
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.recipe import FinetuneSettings, TrainSettings
from wsi_ips.training.finetune import FinetuneOptions, FinetuneResult, finetune_manifest


def _too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)  # torch's own refusal, in its own words


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, *, most_tiles: int, learning: bool) -> None:
    """From now on the encoder takes only so many tiles at a time when it learns, or when it only scores."""
    real = IPSClassifier.embed

    def embed(self: IPSClassifier, tiles: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() is learning and len(tiles) > most_tiles:
            _too_much()
        return real(self, tiles)

    monkeypatch.setattr(IPSClassifier, "embed", embed)


def _train(cohort: Path, settings: ModelSettings, out: Path) -> FinetuneResult:
    train = TrainSettings(epochs=2, batch_slides=2, lr=1e-3, micro_batch=5)
    chosen = FinetuneSettings(model=settings, train=train)
    return finetune_manifest(load_manifest(cohort), out, FinetuneOptions(settings=chosen, device="cpu", cache="off", quiet=True))


def test_torchs_own_words_are_understood() -> None:
    """A CPU allocation that fails is told from other errors."""
    with pytest.raises(RuntimeError) as caught:
        _too_much()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.slow
def test_fault_100_short_of_memory_the_micro_batch_is_halved_and_training_goes_on(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5, 2, then it fits: the losses are those of a training that never was short, in float32 to five digits."""
    monkeypatch.setattr("wsi_ips.model.encoder.is_bf16_native", lambda device_type: False)  # batches of other sizes round otherwise in bfloat16
    plenty = _train(cohort, tiny_settings, tmp_path / "plenty").fits[0].history
    _short_of_memory(monkeypatch, most_tiles=2, learning=True)
    short = _train(cohort, tiny_settings, tmp_path / "short").fits[0].history
    assert [e.micro_batch for e in plenty] == [5, 5]
    assert [e.micro_batch for e in short] == [2, 2]
    assert [e.loss for e in short] == pytest.approx([e.loss for e in plenty], rel=1e-5)


def test_one_tile_too_much_is_an_error_with_the_cure(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing smaller is left to try: slides and cure are named."""
    _short_of_memory(monkeypatch, most_tiles=0, learning=True)
    with pytest.raises(ModelError, match=r"one tile at a time \(slides slide_.*smaller encoder") as caught:
        _train(cohort, tiny_settings, tmp_path / "m")
    assert caught.value.code == "E_MEMORY"


def test_tiles_that_cannot_be_scored_name_the_setting(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk has one size, since numbers depend on it: the user is told which setting to change."""
    _short_of_memory(monkeypatch, most_tiles=8, learning=False)
    with pytest.raises(ModelError, match=r"16 tiles are scored at a time; use a smaller selection\.chunk_size"):
        _train(cohort, tiny_settings, tmp_path / "m")
