"""Megapixel MNIST: canvases by the paper's rules, from a seed; the program from IDX files to four accuracies."""

from __future__ import annotations

import gzip
import importlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from wsi_ips import WsiIpsError

ROOT = Path(__file__).resolve().parents[2]
SIDE = 28


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The generator."""
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    return importlib.import_module("mnist_canvases")


@pytest.fixture
def program(mnist: Any) -> Any:
    """The program."""
    return importlib.import_module("megapixel_mnist")


def _digits(mnist: Any, n: int = 60) -> Any:
    """Digit k is a square of brightness 20 k + 20 with the image's number in its corner: known at sight."""
    labels = np.arange(n, dtype=np.uint8) % 10
    images = np.zeros((n, SIDE, SIDE), np.uint8)
    images[:, 4:24, 4:24] = (20 * labels + 20)[:, None, None]
    images[:, 0, 0] = np.arange(n) + 1
    return mnist.Digits(images, labels)


def _write_idx(folder: Path, digits: Any, *, zipped: bool, beginning: str = "train") -> Path:
    folder.mkdir()
    for kind, array in (("images-idx3", digits.images), ("labels-idx1", digits.labels)):
        raw = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        path = folder / f"{beginning}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


def test_every_canvas_follows_the_rules(mnist: Any) -> None:
    """Three digits of one class, two of others; none over another, all inside; majority, top, max, multi as one would say."""
    canvases = mnist.Canvases(_digits(mnist), mnist.Rules(400, SIDE, 12, seed=5), "train")
    majorities, tops = set(), set()
    for i in range(200):
        c = canvases[i]
        assert len(c.pieces) == 12 + 5
        corners = np.array([(x, y) for x, y, _ in c.pieces[12:]])
        numbers = [int(p[14, 14, 0] - 20) // 20 for _, _, p in c.pieces[12:]]
        assert numbers == c.numbers.tolist()
        assert (corners >= 0).all()
        assert (corners <= 400 - SIDE).all()
        gaps = np.abs(corners[:, None] - corners[None])[np.triu_indices(5, 1)]
        assert (gaps.max(axis=1) >= SIDE).all()
        assert sorted(np.bincount(numbers, minlength=10))[-1] == 3 == numbers.count(c.majority)
        assert (c.max, c.multi) == (max(numbers), tuple(sorted(set(numbers))))
        assert c.top == numbers[int(np.argmin(corners[:, 1]))]
        strokes = np.array([(x, y) for x, y, _ in c.pieces[:12]])
        assert (strokes >= SIDE).all()
        assert (strokes <= 400 - 2 * SIDE).all()
        majorities.add(c.majority)
        tops.add(c.top == c.majority)
    assert majorities == set(range(10))
    assert tops == {True, False}


def test_a_canvas_comes_from_seed_part_and_number_alone(mnist: Any) -> None:
    """In any order and any set size the same; another seed, part, number or noise gives another one."""

    def made(i: int, part: str = "train", **rules: int) -> bytes:
        slide = mnist.Canvases(_digits(mnist), mnist.Rules(**({"canvas_px": 300, "n_noise": 6, "seed": 1} | rules)), part).slide(i)
        return slide.read_region(0, 0, 0, 300, 300).pixels.tobytes()

    assert made(7) == made(7)
    canvases = mnist.Canvases(_digits(mnist), mnist.Rules(300, SIDE, 6, seed=1), "train")
    assert [canvases.slide(i).read_region(0, 0, 0, 300, 300).pixels.tobytes() for i in (9, 7)] == [made(9), made(7)]
    assert len({made(7), made(8), made(7, "val"), made(7, "test"), made(7, seed=2), made(7, n_noise=5)}) == 6
    assert canvases.address(7) != canvases.address(8)


def test_sparse_is_what_one_would_paint(mnist: Any) -> None:
    """Strokes first, digits over them; digits of another size are resized, strokes are bright lines on black."""
    for digit_px in (SIDE, 20, 42):
        canvases = mnist.Canvases(_digits(mnist), mnist.Rules(400, digit_px, 30, seed=2), "val")
        painted = np.zeros((400, 400, 1), np.uint8)
        for x, y, pixels in canvases[3].pieces:
            painted[y : y + digit_px, x : x + digit_px] = pixels
        slide = canvases.slide(3)
        assert np.array_equal(slide.read_region(0, 0, 0, 400, 400).pixels, painted)
        assert (slide.mpp.x, slide.n_channels) == (1.0, 1)
    lines = mnist.strokes(9, SIDE, np.random.default_rng(0))
    shares = (lines > 0).mean(axis=(1, 2, 3))
    assert lines[lines > 0].min() >= 204
    assert (shares > 0.02).all()
    assert (shares < 0.2).all()
    assert len({one.tobytes() for one in lines}) == 9


def test_idx_files_are_read_zipped_or_not_and_doubted(mnist: Any, tmp_path: Path) -> None:
    """The same digits both ways; the test's own names first; a short file, another type and other pictures are refused."""
    digits = _digits(mnist)
    for zipped in (True, False):
        found = mnist.read_digits(_write_idx(tmp_path / f"z{zipped}", digits, zipped=zipped), "train")
        assert all(np.array_equal(a, b) for a, b in zip(found, digits, strict=True))
    both = _write_idx(tmp_path / "both", digits, zipped=True)
    few = mnist.Digits(digits.images[:20], digits.labels[:20])
    for path in _write_idx(tmp_path / "t10k", few, zipped=False, beginning="t10k").iterdir():
        path.rename(both / path.name)
    assert len(mnist.read_digits(both, "test").labels) == 20
    assert len(mnist.read_digits(tmp_path / "zTrue", "test").labels) == 60
    path = both / "t10k-labels-idx1-ubyte"
    for content, words in ((path.read_bytes()[:-1], "says 20 values and holds 19"), (b"PNG", "is no IDX file"),
                           (b"\x00\x00\x0d" + path.read_bytes()[3:], "is no IDX file")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(WsiIpsError, match=words):
            mnist.read_digits(both, "test")


def test_who_learns_and_who_judges_share_no_image(program: Any, mnist: Any) -> None:
    """Of 60,000 images 50,000 teach, 5,000 choose and 5,000 judge, or those that are given; here of 120: 100, 10, 10."""
    digits = _digits(mnist, 120)
    rules = mnist.Rules(300, SIDE, 4)
    parts = program.make_parts(digits, rules, None)
    seen = [{int(p[0, 0, 0]) for i in range(80) for _, _, p in part[i].pieces[4:]} for part in parts]
    assert [(min(s), max(s)) for s in seen] == [(1, 100), (101, 110), (111, 120)]
    others = mnist.Digits(digits.images[::-1][:30], digits.labels[::-1][:30])
    judged = program.make_parts(digits, rules, others).test
    assert {int(p[0, 0, 0]) for i in range(80) for _, _, p in judged[i].pieces[4:]} <= set(range(91, 121))


def test_answers_are_right_when_one_would_say_so(program: Any, mnist: Any) -> None:
    """The largest of ten logits for the three questions; multi only when all ten signs are right."""
    canvas = mnist.Canvas([], np.array([4, 4, 4, 9, 0]), 4, 9, 0, (0, 4, 9))
    outputs = np.full((4, 10), -1.0)
    for task, right in enumerate(([4], [9], [0], [0, 4, 9])):
        outputs[task, right] = 1.0
    assert program.is_right(outputs.ravel(), canvas) == [True] * 4
    outputs[3, 5] = 0.5
    outputs[1, 8] = 2.0
    assert program.is_right(outputs.ravel(), canvas) == [True, False, True, False]
    found = program.accuracies({0: np.array([[1, 0, 1, 0], [1, 1, 1, 0]], bool), 1: np.array([[1, 0, 0, 0], [1, 1, 1, 0]], bool)})
    assert [found[t]["value"] for t in program.TASKS] == [1.0, 0.5, 0.75, 0.0]
    assert found["seed_1"] == {"majority": 1.0, "max": 0.5, "top": 0.5, "multi": 0.0}


def test_a_folder_without_digits_is_a_sentence_and_exit_2(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 2; the sentence names the files that are wanted and the option."""
    monkeypatch.setattr(sys, "argv", ["megapixel_mnist", str(tmp_path / "work"), "--data", str(tmp_path / "nothing")])
    assert program.main() == 2
    said = capsys.readouterr().err
    assert "train-images-idx3-ubyte" in said
    assert "--data" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("asked", [("--epochs", "0"), ("--memory-size", "0"), ("--seeds", "0"), ("--test-size", "none"), ("--study", "-5")])
def test_a_number_that_makes_no_sense_is_refused_by_its_option(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: tuple[str, str]
) -> None:
    """None is taken for "not given", and none gets as far as a training."""
    monkeypatch.setattr(sys, "argv", ["megapixel_mnist", str(tmp_path / "work"), "--data", str(tmp_path), *asked])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert f"argument {asked[0]}: '{asked[1]}': expected a whole number, 1 or more" in capsys.readouterr().err


def test_settings_are_the_papers_and_the_grid_decides_positions(program: Any) -> None:
    """M = I = 100, 150 epochs, N = 900 and 3600, two stages of ResNet-18; the small encoder takes at most 3 MFLOP a tile."""
    import argparse

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from wsi_ips.model.encoder import build_encoder

    for name, n in (("small", 144), ("paper", 900), ("paper_3000", 3600)):
        a = argparse.Namespace(setting=name, config=None, mode=None, loading="eager", epochs=None, memory_size=None)
        settings = program.settings_of(a, program.SETTINGS[name], None)
        assert (settings.model.attention.positions, settings.read.loading) == (n, "batch")
        assert [t.kind for t in settings.model.tasks] == ["multiclass"] * 3 + ["multilabel"]
        chosen = settings.model.selection
        if name == "small":
            encoder = build_encoder(settings.model.encoder, 50)
            with FlopCounterMode(display=False) as counted:
                encoder(torch.zeros((1, 50, 50, 1), dtype=torch.uint8))
            assert counted.get_total_flops() <= 3e6
            assert chosen.memory_size == 24
        else:
            assert (chosen.mode, chosen.memory_size, chosen.chunk_size, settings.train.epochs) == ("ips", 100, 100, 150)
            assert (settings.model.encoder.name, settings.model.encoder.stages) == ("resnet18", 2)
        plain = program.settings_of(a, program.SETTINGS[name], "plain")
        assert (plain.model.selection.mode, plain.model.selection.order, plain.train.elastic) == ("ips", "shuffled", 1.0)
        assert plain.train.random_epochs == 0
    a = argparse.Namespace(setting="small", config=None, mode="ips", loading=None, epochs=20, memory_size=30)
    short = program.settings_of(a, program.SETTINGS["small"], "frozen")
    assert (short.model.selection.memory_size, short.model.selection.chunk_size) == (30, 30)
    assert (short.train.epochs, short.train.random_epochs, short.train.head_last, short.model.selection.mode) == (20, 6, 6, "ips")


def test_the_program_from_idx_files_to_accuracies(
    program: Any, mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two epochs on 12 canvases; metrics.json and a table; judged again by other digits from the models that are there."""
    data = _write_idx(tmp_path / "data", _digits(mnist, 120), zipped=True)
    config = yaml.safe_load((ROOT / "pipelines" / "configs" / "megapixel_mnist_small.yaml").read_text())
    config["model"]["selection"]["memory_size"] = 8
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    base = ["megapixel_mnist", str(tmp_path / "work"), "--data", str(data), "--config", str(tmp_path / "c.yaml"), "--canvas-px", "250",
            "--noise", "3", "--train-size", "12", "--val-size", "4", "--test-size", "6", "--epochs", "2", "--mode", "ips"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", base)
    assert program.main() == 0
    assert "| all seeds |" in capsys.readouterr().out
    found = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert (found["canvas_px"], found["n_train"], found["majority"]["n"]) == (250, 12, 6)
    assert set(found["seed_0"]) == set(program.TASKS)
    others = _write_idx(tmp_path / "others", _digits(mnist, 50), zipped=False, beginning="t10k")
    monkeypatch.setattr(sys, "argv", [*base, "--only", "judge", "--judge", str(others)])
    assert program.main() == 0
    monkeypatch.setattr(sys, "argv", [*base[:1], str(tmp_path / "none"), *base[2:], "--only", "judge"])
    assert program.main() == 2
    assert "train first" in capsys.readouterr().err
