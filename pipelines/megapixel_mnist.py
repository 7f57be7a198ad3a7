"""The method's own experiment: four questions about five digits on a large canvas, answered from the tiles that matter.

    python pipelines/megapixel_mnist.py WORK --data MNIST                      small canvases, for two cores
    python pipelines/megapixel_mnist.py WORK --data MNIST --setting paper      1500 px, M = I = 100, 150 epochs (or paper_3000)
    python pipelines/megapixel_mnist.py WORK --data MNIST --seeds 2 --only judge    models that are there; --judge TEST: other digits
    python pipelines/megapixel_mnist.py WORK --data MNIST --study 200 400 1000 2000    training sizes, plain against ours

In: a folder of MNIST's training images and labels as IDX files, gzipped or not; of its images a sixth (10,000) is never
learned from: one half chooses the epoch, the other judges, unless --judge names a folder of others. Out, in WORK: a model a
seed, and metrics.json: accuracy of majority, max, top and multi (all ten right), with intervals that resample canvases.

Source: Bergner et al., Iterative Patch Selection for High-Resolution Image Recognition, ICLR 2023 (2210.13007).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from benchmarking import at_least, ended, figure, write_rows
from mnist_canvases import N_CLASSES, Canvas, Canvases, Digits, Rules, read_digits

from wsi_ips import (
    FinetuneOptions,
    FinetuneSettings,
    PredictJob,
    WsiIpsError,
    finetune_manifest,
    load_bundle,
    load_manifest,
    load_settings,
    predict_slide,
)

TASKS = ("majority", "max", "top", "multi")
LOADING = {"eager": "batch", "eager-sequential": "slide", "lazy": "lazy"}  # the paper's names, and ours
_CONFIGS = Path(__file__).parent / "configs"


class Setting(NamedTuple):
    """A size of the experiment; its settings are `configs/megapixel_mnist_<name>.yaml`."""

    rules: Rules
    n_train: int
    n_val: int
    n_test: int


SETTINGS = {
    "small": Setting(Rules(canvas_px=600, n_noise=8), 2000, 300, 1000),
    "paper": Setting(Rules(canvas_px=1500), 5000, 300, 1000),
    "paper_3000": Setting(Rules(canvas_px=3000), 5000, 300, 1000),
}
# what is tried against few canvases: plain is the paper's method, ours has what the setting's file says and more
_OURS = {"elastic": 1.5, "mask_top": 0.1, "explore": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"model": {"selection": {"mode": "ips", "order": "shuffled"}}, "train": {"random_epochs": 0}},
    "exact": {},
    "ours": {"train": _OURS},
    "context": {"model": {"selection": {"context": True}}, "train": _OURS},
    "frozen": {"train": _OURS | {"head_last": 15}},
}


class Parts(NamedTuple):
    """Canvases to learn from, to choose by and to judge by."""

    train: Canvases
    val: Canvases
    test: Canvases

    def slide_of(self, slide_id: str) -> Any:
        """Make the slide of a row."""
        part, _, index = slide_id.rpartition("_")
        return getattr(self, part).slide(int(index))


def make_parts(digits: Digits, rules: Rules, judges: Digits | None) -> Parts:
    """Divide the images: five sixths to learn from, the rest in halves, of which the second judges if nobody else does."""
    n = len(digits.labels)
    held = n // 6
    sides = [Digits(*(column[rows] for column in digits)) for rows in
             (slice(0, n - held), slice(n - held, n - held // 2), slice(n - held // 2, n))]  # fmt: skip
    return Parts(*(Canvases(d, rules, p) for d, p in zip((*sides[:2], judges or sides[2]), ("train", "val", "test"), strict=True)))


def rows_of(canvases: Canvases, part: str, n: int) -> list[dict[str, str]]:
    """Rows of a manifest for the first n canvases of a part."""
    rows = []
    for i in range(n):
        c, name = canvases[i], f"{part}_{i}"
        answers = {"majority": str(c.majority), "max": str(c.max), "top": str(c.top), "multi": ";".join(map(str, c.multi))}
        rows.append({"slide_id": name, "patient_id": name, "slide_path": canvases.address(i), "split": part, "mpp": "1"} | answers)
    return rows


def learn(parts: Parts, out: Path, settings: FinetuneSettings, sizes: tuple[int, int], seed: int, device: str) -> Path:
    """Train on the first canvases of two parts; returns the bundle. A second start goes on, or finds it done.

    Args:
        parts: canvases.
        out: folder of model, manifest and report.
        settings: all of them, tasks included.
        sizes: how many canvases teach, and how many choose.
        seed: of weights and draws; the canvases have their own.
        device: "auto", "cpu" or "cuda".
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = rows_of(parts.train, "train", sizes[0]) + rows_of(parts.val, "val", sizes[1])
    manifest = load_manifest(write_rows(out / "manifest.csv", rows), label_columns=TASKS, check_files=False)
    options = FinetuneOptions(label_columns=TASKS, settings=settings, seed=seed, device=device, cache="off", n_resamples=200,
                              opener=lambda record: parts.slide_of(record.slide_id))  # fmt: skip
    # the settings name the tasks
    finetune_manifest(manifest, out / "model", replace(options, label_columns=("label",)))
    return out / "model"


def judge(bundle: Path, canvases: Canvases, n: int, settings: FinetuneSettings) -> np.ndarray:
    """Label n canvases: (n, 4) bool, whether majority, max, top and multi are right; multi when all ten answers are."""
    model = load_bundle(bundle)
    right = np.zeros((n, len(TASKS)), bool)
    for i in range(n):
        with canvases.slide(i) as slide:
            found = predict_slide(slide, model, PredictJob(f"test_{i}", read=settings.read, with_faithfulness=False))
        right[i] = is_right(found.outputs, canvases[i])
    return right


def is_right(outputs: np.ndarray, canvas: Canvas) -> list[bool]:
    """Hold the (40,) logits of one canvas against its answers."""
    by_task = np.asarray(outputs).reshape(len(TASKS), N_CLASSES)
    wanted = np.isin(np.arange(N_CLASSES), canvas.multi)
    one = [int(by_task[i].argmax()) == getattr(canvas, name) for i, name in enumerate(TASKS[:3])]
    return [*one, bool(((by_task[3] >= 0.0) == wanted).all())]


def accuracies(runs: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Accuracy of each question over seeds, (n, 4) bool each of the same canvases, intervals from resampling canvases."""
    by_canvas = np.mean(list(runs.values()), axis=0)
    names = [str(i) for i in range(len(by_canvas))]
    found: dict[str, Any] = {t: figure(lambda rows, k=k: float(by_canvas[rows, k].mean()), names) for k, t in enumerate(TASKS)}
    for seed, right in runs.items():
        found[f"seed_{seed}"] = {t: round(float(right[:, k].mean()), 4) for k, t in enumerate(TASKS)}
    return found


def table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write accuracies as a table, a row each."""
    lines = [f"| {title} | {' | '.join(TASKS)} |", f"|---|{'---|' * len(TASKS)}"]
    for name, found in rows.items():
        cells = [f"{found[t]['value']:.3f} ({found[t]['low']:.3f} to {found[t]['high']:.3f})" for t in TASKS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for models and metrics.json")
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's training images and labels, IDX files")
    parser.add_argument("--judge", type=Path, help="folder of other digits to judge by (t10k or test, else train)")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="small", help="size of the experiment and its settings")
    parser.add_argument("--config", type=Path, help="YAML with finetune settings instead of the setting's own")
    parser.add_argument("--method", choices=sorted(METHODS), help="change the settings to this method's")
    parser.add_argument("--only", choices=["judge"], help="judge the models that are in WORK")
    parser.add_argument("--study", type=at_least(1), nargs="+", metavar="N", help="training sizes to sweep, each by several methods")
    parser.add_argument("--methods", choices=sorted(METHODS), nargs="+", default=["plain", "ours"], help="of the sweep")
    parser.add_argument("--mode", choices=["exact", "ips"], help="selection: exact top M, or the paper's loop")
    parser.add_argument("--loading", choices=sorted(LOADING), help="how bags are loaded while learning")
    for name, least, text in (
        ("canvas-px", 1, "side of a canvas"), ("digit-px", 1, "side of a digit"), ("noise", 0, "strokes a canvas"),
        ("train-size", 1, "canvases to learn from"), ("val-size", 1, "canvases that choose"), ("test-size", 1, "canvases that judge"),
        ("epochs", 1, "instead of the settings' own"), ("memory-size", 1, "M, likewise"), ("canvas-seed", 0, "of what is on the canvases"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=at_least(least), metavar="N", help=text)
    parser.add_argument("--seeds", type=at_least(1), default=1, help="trainings that differ by seed alone")
    parser.add_argument("--first-seed", type=at_least(0), default=0, help="of these, so that each core can have its own")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()
    return ended(lambda: _run(arguments))


def _run(a: argparse.Namespace) -> None:
    digits = read_digits(a.data, "train")
    setting = _setting(a)
    parts = make_parts(digits, setting.rules, read_digits(a.judge, "test") if a.judge else None)
    a.work.mkdir(parents=True, exist_ok=True)
    if a.study:
        rows = {}
        for n in a.study:
            for method in a.methods:
                found = _seeds(a, parts, setting._replace(n_train=n), a.work / f"{method}_{n}", method)
                rows[f"{n}, {method}"] = found
                (a.work / "study.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(table("canvases, method", rows))
        return
    found = _seeds(a, parts, setting, a.work, a.method)
    about = {"setting": a.setting, **setting.rules.__dict__, "n_train": setting.n_train, "n_test": setting.n_test, "n_seeds": a.seeds}
    (a.work / "metrics.json").write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
    print(table(f"{a.setting}, {setting.n_train} canvases", {"all seeds": found}))


def _seeds(a: argparse.Namespace, parts: Parts, setting: Setting, out: Path, method: str | None) -> dict[str, Any]:
    settings = settings_of(a, setting, method)
    runs = {}
    for seed in range(a.first_seed, a.first_seed + a.seeds):
        folder = out / f"seed_{seed}"
        bundle = folder / "model"
        if a.only != "judge":
            bundle = learn(parts, folder, settings, (setting.n_train, setting.n_val), seed, a.device)
        elif not (bundle / "config.json").is_file():
            raise WsiIpsError(f"{bundle}: no model to judge; train first, without --only")
        runs[seed] = judge(bundle, parts.test, setting.n_test, settings)
    return accuracies(runs)


def settings_of(a: argparse.Namespace, setting: Setting, method: str | None) -> FinetuneSettings:
    """Read the setting's file and change what method and options say; the grid decides how many positions there are."""
    path = a.config or _CONFIGS / f"megapixel_mnist_{a.setting}.yaml"
    load_settings(FinetuneSettings, path)  # says what is wrong in terms of the file
    given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if method:
        given = _merged(given, METHODS[method])
    if a.mode:
        given = _merged(given, {"model": {"selection": {"mode": a.mode}}})
    if a.loading:
        given = _merged(given, {"read": {"loading": LOADING[a.loading]}})
    if a.epochs:
        given = _merged(given, {"train": _shortened(given.get("train", {}), a.epochs)})
    if a.memory_size:
        given = _merged(given, {"model": {"selection": {"memory_size": a.memory_size}}})
    model = load_settings(FinetuneSettings, given).model
    if model.selection.mode == "ips":  # M = I, as the paper has it
        given = _merged(given, {"model": {"selection": {"chunk_size": model.selection.memory_size}}})
    tile = model.tile
    across = (setting.rules.canvas_px - tile.size_px) // (tile.size_px - tile.overlap_px) + 1
    if given.get("model", {}).get("attention", {}).get("positions"):
        given = _merged(given, {"model": {"attention": {"positions": across**2}}})
    return load_settings(FinetuneSettings, given)


def _shortened(train: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Another number of epochs, with the same share of them on random tiles and for the head alone."""
    usual = train.get("epochs", epochs)
    parts = {k: train[k] * epochs // usual for k in ("random_epochs", "head_first", "head_last") if train.get(k)}
    return {"epochs": epochs} | parts


def _setting(a: argparse.Namespace) -> Setting:
    own = SETTINGS[a.setting]
    rules = {"canvas_px": a.canvas_px, "digit_px": a.digit_px, "n_noise": a.noise, "seed": a.canvas_seed}
    sizes = {"n_train": a.train_size, "n_val": a.val_size, "n_test": a.test_size}
    changed = own._replace(**{k: v for k, v in sizes.items() if v is not None})
    return changed._replace(rules=replace(own.rules, **{k: v for k, v in rules.items() if v is not None}))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Put one nested mapping over another."""
    both = dict(base)
    for key, value in over.items():
        both[key] = _merged(both.get(key) or {}, value) if isinstance(value, Mapping) else value
    return both


if __name__ == "__main__":
    sys.exit(main())
