"""Killed at any moment and started again, a training ends with the very weights of one that was never disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from wsi_ips.config import ModelSettings
from wsi_ips.errors import ModelError
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import load_bundle
from wsi_ips.recipe import FinetuneSettings, TrainSettings
from wsi_ips.training import loop as loop_module
from wsi_ips.training import step as step_module
from wsi_ips.training.finetune import FinetuneOptions, finetune_manifest

# everything that has a state: averaged weights, stale embeddings, drawn M, mixed tiles, dropout
TRAIN: dict[str, Any] = {
    "epochs": 3, "batch_slides": 2, "lr": 1e-3, "micro_batch": 5, "ema": 0.5, "elastic": 2.0, "explore": 0.2,
    "rescan": {"mode": "stale", "full_epochs": 1}, "augment": {"blur": 0.5, "tile_mix": 0.5}, "checkpoint_seconds": 0.0,
}  # fmt: skip


def _options(settings: ModelSettings, **more: Any) -> FinetuneOptions:
    train = TrainSettings.model_validate(TRAIN | more)
    chosen = FinetuneSettings(model=settings, train=train)
    return FinetuneOptions(settings=chosen, device="cpu", cache="off", quiet=True)


class _Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_a_training_that_was_cut_anywhere_ends_the_same(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at every second checkpoint, going on each time: weights, history and cases equal the undisturbed training's."""
    manifest = load_manifest(cohort)
    finetune_manifest(manifest, tmp_path / "whole", _options(tiny_settings))
    real, n_written, n_cuts = loop_module.write_checkpoint, 0, 0

    def write(*arguments: Any) -> None:
        nonlocal n_written
        real(*arguments)
        n_written += 1
        if n_written % 2 == 0:
            raise _Killed

    monkeypatch.setattr(loop_module, "write_checkpoint", write)
    while True:
        try:
            finetune_manifest(manifest, tmp_path / "cut", _options(tiny_settings))
            break
        except _Killed:
            n_cuts += 1
    assert n_cuts >= 4
    assert load_bundle(tmp_path / "cut").hash == load_bundle(tmp_path / "whole").hash
    one, other = ((tmp_path / f"{name}.training" / "cases.csv").read_bytes() for name in ("whole", "cut"))
    assert one == other
    assert not list((tmp_path / "cut.training").rglob("checkpoint.pt"))


@pytest.mark.slow
def test_fault_111_a_training_whose_weights_are_lost_keeps_its_last_good_checkpoint(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that stop being finite are never saved, nor taken for the best; the same command goes on from before."""
    manifest, options = load_manifest(cohort), _options(tiny_settings, epochs=2)
    finetune_manifest(manifest, tmp_path / "whole", options)
    real, n_steps = step_module.Learner.step, 0

    def step(self: Any, classifier: Any, *rest: Any) -> float:
        nonlocal n_steps
        loss = float(real(self, classifier, *rest))
        n_steps += 1
        if n_steps == 3:
            with torch.no_grad():
                classifier.heads[0].weight[0, 0] = float("nan")
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(step_module.Learner, "step", step)
        with pytest.raises(ModelError, match="checkpoint is kept as it was") as caught:
            finetune_manifest(manifest, tmp_path / "lost", options)
    assert caught.value.code == "E_NOT_FINITE"
    assert not (tmp_path / "lost").exists()
    assert list((tmp_path / "lost.training").rglob("checkpoint.pt"))
    finetune_manifest(manifest, tmp_path / "lost", options)
    assert load_bundle(tmp_path / "lost").hash == load_bundle(tmp_path / "whole").hash


@pytest.mark.slow
def test_a_training_that_was_cut_before_one_of_its_files_ends_the_same(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut once before each file gets its name, from the log of the first epoch over cases and card to the page."""
    manifest = load_manifest(cohort)
    options = _options(tiny_settings, epochs=1)
    finetune_manifest(manifest, tmp_path / "whole", options)
    files = ["epochs.jsonl", "checkpoint.pt", "fit.json", "README.md", "metrics.json", "cases.csv", "epochs.csv", "index.html"]
    real, left = Path.replace, set(files)

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name in left:
            left.remove(Path(target).name)
            raise _Killed
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    for _ in files:
        with pytest.raises(_Killed):
            finetune_manifest(manifest, tmp_path / "cut", options)
    finetune_manifest(manifest, tmp_path / "cut", options)
    assert load_bundle(tmp_path / "cut").hash == load_bundle(tmp_path / "whole").hash
    for name in ("cases.csv", "metrics.csv"):
        one, other = ((tmp_path / f"{which}.training" / name).read_bytes() for which in ("whole", "cut"))
        assert one == other


def test_a_checkpoint_of_another_training_is_refused(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another learning rate does not go on from it; the message says what to do."""
    manifest = load_manifest(cohort)

    def stop(*arguments: Any) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Loop, "_close", stop)
        with pytest.raises(_Killed):
            finetune_manifest(manifest, tmp_path / "m", _options(tiny_settings))
    with pytest.raises(ModelError, match="holds another training"):
        finetune_manifest(manifest, tmp_path / "m", _options(tiny_settings, lr=1e-2))


def _settings_file(tiny: dict[str, Any], path: Path, **train: Any) -> Path:
    path.write_text(yaml.safe_dump(tiny | {"train": TRAIN | train}))
    return path


def _start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(cohort: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Ten times SIGKILL, whenever it comes; the bundle is the undisturbed one's, to the last bit.

    Every other kill waits for a checkpoint, so that the training gets on; the others fall into the first third of a run:
    while it starts, plans its slides, or learns.
    """
    settings = _settings_file(tiny, tmp_path / "s.yaml", epochs=40)

    def words(name: str) -> list[object]:
        return [
            "-m",
            "wsi_ips.cli",
            "finetune",
            cohort,
            "--out",
            tmp_path / name,
            "--settings",
            settings,
            "--cache",
            "off",
        ]

    started = time.monotonic()
    whole = _start(*words("whole"))
    assert whole.wait() == 0, whole.stdout.read() if whole.stdout else ""
    seconds = time.monotonic() - started
    rng, n_kills = random.Random(0), 0
    checkpoint = tmp_path / "cut.training" / "seed_0" / "fit" / "checkpoint.pt"
    while n_kills < 10:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = _start(*words("cut"))
        while n_kills % 2 and process.poll() is None and not (
            checkpoint.exists() and checkpoint.stat().st_mtime_ns != before
        ):  # fmt: skip
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6 if n_kills % 2 else 0.3 * seconds))
        assert process.poll() is None, "it ended before ten kills; give it more epochs"
        process.send_signal(signal.SIGKILL)
        process.wait()
        n_kills += 1
    last = _start(*words("cut"))
    assert last.wait() == 0, last.stdout.read() if last.stdout else ""
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert json.loads((tmp_path / "cut" / "config.json").read_text()) == json.loads(
        (tmp_path / "whole" / "config.json").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("batch_slides", "epochs", "mode"), [(2, 2, "full"), (1, 1, "full"), (2, 2, "stale")])
def test_two_processes_learn_what_one_would(
    cohort: Path, tiny: dict[str, Any], tmp_path: Path, batch_slides: int, epochs: int, mode: str
) -> None:
    """Four steps: two ranks with a slide each equal one process with both, to 1e-5; so do two that share one slide."""
    settings = _settings_file(tiny, tmp_path / "s.yaml", epochs=epochs, batch_slides=batch_slides, bucket=True,
                              augment={"blur": 0.5}, rescan={"mode": mode, "full_epochs": 1})  # fmt: skip
    words: list[object] = [
        "-m",
        "wsi_ips.cli",
        "finetune",
        cohort,
        "--settings",
        settings,
        "--cache",
        "off",
        "--device",
        "cpu",
    ]
    one = _start(*words, "--out", tmp_path / "one")
    assert one.wait() == 0, one.stdout.read() if one.stdout else ""
    launch: list[object] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = _start(*launch, *words, "--out", tmp_path / "two")
    assert two.wait() == 0, two.stdout.read() if two.stdout else ""
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        if tensor.is_floating_point():
            # steps of Adam are as long as the rate, 1e-3, and where a gradient is nearly 0 rounding decides their sign
            assert float((tensor - b[key]).abs().max()) <= 1e-5 * max(1.0, float(tensor.abs().max())), key
