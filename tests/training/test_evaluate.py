"""`evaluate`: a run against labels; every slide judges or is listed with the reason why not."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.results import SCHEMA_VERSION
from wsi_ips.runfolder import RunFolder
from wsi_ips.tasks import TaskSettings
from wsi_ips.training import evaluation_report
from wsi_ips.training.evaluate import EvaluateOptions, evaluate_run

LABEL = TaskSettings(name="label", classes=("normal", "tumor"), temperature=2.0)
QUICK = EvaluateOptions(n_resamples=100)
IDENTITY = {"model_hash": "m" * 64, "settings_hash": "s" * 64}


@pytest.fixture
def with_figures() -> None:
    """For the tests that look at figures; the others do without, for drawing takes a second."""


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_figures" not in request.fixturenames:
        monkeypatch.setattr(evaluation_report, "_task_figures", lambda t, i: [])


def _run(
    folder: Path, logits: Mapping[str, Sequence[float]], tasks: Sequence[TaskSettings] = (LABEL,),
    other: Mapping[str, tuple[str, str]] | None = None,
) -> Path:  # fmt: skip
    """Write a finished run: logits by slide, and (status, reason) of slides without."""
    run = RunFolder(folder)
    for name, z in logits.items():
        record = {
            "status": "ok",
            "reason": "",
            "message": "",
            "cells": {},
            "outputs_logits": list(z),
            "identity": IDENTITY,
        }
        run.write_slide(name, {f"{name}.overlay.png": b"x", f"{name}.report.html": b"x"}, record)
    for name, (status, reason) in (other or {}).items():
        if status != "not_run":
            run.write_slide(
                name, {}, {"status": status, "reason": reason, "message": "", "cells": {}, "identity": IDENTITY}
            )
    slides = {name: {"patient_id": f"run {name}"} for name in (*logits, *(other or {}))}
    settings = {"tasks": [t.model_dump(mode="json") for t in tasks]}
    run.write_json(
        "run.json",
        {"schema_version": SCHEMA_VERSION, "model": IDENTITY | {"model_settings": settings}, "slides": slides},
    )
    rows = [{"slide_id": n, "status": s, "reason": r} for n, (s, r) in (other or {}).items()]
    run.write_table("predictions.csv", ["slide_id", "status", "reason"], [*rows, {"slide_id": "filler"}])
    return folder


def _labels(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, ["slide_path", *columns])
        writer.writeheader()
        writer.writerows({"slide_path": f"{row['slide_id']}.svs"} | dict(row) for row in rows)
    return path


def _four(tmp_path: Path, **more: Any) -> tuple[Path, Path]:
    run = _run(tmp_path / "run", {"a": [-2.0], "b": [0.5], "c": [0.1], "d": [3.0]}, **more)
    truth = {"a": "normal", "b": "normal", "c": "tumor", "d": "tumor"}
    return run, _labels(tmp_path / "m.csv", [{"slide_id": s, "label": t} for s, t in truth.items()])


@pytest.mark.usefixtures("with_figures")
def test_the_figures_are_those_of_the_logits(tmp_path: Path) -> None:
    """Three of four pairs in order: AUROC 0.75 in the summary, in metrics.json, in metrics.csv and on the page."""
    run, manifest = _four(tmp_path)
    found = evaluate_run(run, manifest, QUICK)
    assert found.evaluation.tasks[0].headline.value == 0.75
    assert "AUROC 0.75 (95 % interval" in found.text()
    folder = run / "evaluation"
    assert found.page == folder / "index.html"
    assert json.loads((folder / "metrics.json").read_text())["tasks"]["label"]["metrics"]["auroc"]["value"] == 0.75
    first = next(csv.DictReader((folder / "metrics.csv").open()))
    assert (first["metric"], first["value"], first["n"]) == ("auroc", "0.75", "4")
    page = found.page.read_text()
    assert "AUROC 0.75" in page
    assert "../slides/b/b.report.html" in page  # the worst case leads to its slide
    cases = list(csv.DictReader((folder / "cases.csv").open()))
    assert [(c["slide_id"], c["label_logit_0"]) for c in cases] == [
        ("a", "-2.0"),
        ("b", "0.5"),
        ("c", "0.1"),
        ("d", "3.0"),
    ]
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".svg", ".png"}


def test_nobody_is_dropped_in_silence(tmp_path: Path) -> None:
    """Unlabelled, excluded, failed, unreached and unlisted slides are counted, named and in metrics.json."""
    run, _ = _four(tmp_path, other={"torn": ("failed", "E_TRUNCATED"), "glass": ("no_tissue", "E_NO_TISSUE"),
                                    "late": ("not_run", "E_NOT_REACHED"), "out": ("not_run", "E_EXCLUDED"), "unlisted": ("failed", "E_MPP")})  # fmt: skip
    rows = [{"slide_id": s, "label": t} for s, t in
            {"a": "normal", "b": "", "c": "tumor", "torn": "tumor", "glass": "normal", "late": "tumor", "out": "tumor",
             "never": "normal", "empty": ""}.items()]  # fmt: skip
    manifest = _labels(tmp_path / "m.csv", [*rows, {"slide_id": "bad", "label": "tumor", "exclude": "yes"}])
    found = evaluate_run(run, manifest, QUICK)
    assert found.cases.slide_ids == ("a", "c")
    assert dict(found.left_out) == {
        "bad": "excluded by the manifest", "b": "no label", "torn": "labelled, but failed in the run (E_TRUNCATED)",
        "glass": "labelled, but no tissue in the run (E_NO_TISSUE)", "late": "labelled, but not reached by the run",
        "out": "labelled, but excluded from the run", "never": "labelled, but not in the run",
        "empty": "no label, and not in the run", "d": "in the run, but not in the manifest",
        "unlisted": "in the run, but not in the manifest (failed in the run (E_MPP))",
    }  # fmt: skip
    whole = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert sum(whole["not_judged"].values()) == len(whole["not_judged_slides"]) == 10
    assert "not judged: 1 (no label)" in found.text()
    assert "5 labelled slides have no finished prediction" in found.page.read_text()


def test_the_test_split_judges_unless_another_is_asked_for(tmp_path: Path) -> None:
    """By default test rows alone judge; `all` judges everybody and warns of training slides."""
    run, _ = _four(tmp_path)
    sides = {"a": ("normal", "train"), "b": ("normal", "test"), "c": ("tumor", "test"), "d": ("tumor", "val")}
    manifest = _labels(tmp_path / "m.csv", [{"slide_id": s, "label": t, "split": p} for s, (t, p) in sides.items()])
    assert evaluate_run(run, manifest, QUICK).cases.slide_ids == ("b", "c")
    everyone = evaluate_run(run, manifest, EvaluateOptions(split="all", n_resamples=100))
    assert everyone.cases.parts == ("train", "test", "test", "val")
    assert (everyone.evaluation.n, everyone.evaluation.judged) == (4, "all")
    assert "2 of the judged slides belong to the split train or val" in everyone.page.read_text()
    with pytest.raises(ConfigError, match="--split tset"):
        evaluate_run(run, manifest, EvaluateOptions(split="tset"))


def test_a_missing_column_names_the_columns_and_the_cure(tmp_path: Path) -> None:
    """A task whose column is absent is refused with the columns there are; --label points to one of them."""
    run, _ = _four(tmp_path)
    rows = [{"slide_id": s, "diagnosis": t} for s, t in (("a", "normal"), ("d", "tumor"))]
    manifest = _labels(tmp_path / "m.csv", rows)
    with pytest.raises(
        ConfigError, match=r"no column 'label' for task 'label'; it has slide_path, slide_id, diagnosis.*--label label="
    ):
        evaluate_run(run, manifest, QUICK)
    for text in ("diagnosis", "label=diagnosis"):
        found = evaluate_run(run, manifest, EvaluateOptions(labels=(text,), n_resamples=100))
        assert found.evaluation.tasks[0].headline.value == 1.0
    with pytest.raises(ConfigError, match="no task 'grade', it has label"):
        evaluate_run(run, manifest, EvaluateOptions(labels=("grade=diagnosis",)))


def test_an_unknown_class_is_told_with_line_value_and_cure(tmp_path: Path) -> None:
    """A label that the model does not know stops the evaluation before any figure."""
    run, _ = _four(tmp_path)
    manifest = _labels(tmp_path / "m.csv", [{"slide_id": "a", "label": "normal"}, {"slide_id": "c", "label": "Tumor"}])
    with pytest.raises(ManifestError, match=r"line 3, column 'label': 'Tumor'.*did you mean 'tumor'"):
        evaluate_run(run, manifest, QUICK)
    assert not (run / "evaluation").exists()


def test_no_slide_in_common_shows_ids_of_both_sides(tmp_path: Path) -> None:
    """Other ids on either side: the message shows one of each."""
    run, _ = _four(tmp_path)
    manifest = _labels(tmp_path / "m.csv", [{"slide_id": "TCGA-1", "label": "normal"}])
    with pytest.raises(ConfigError, match=r"4 finished slides \(a, ..\).*1 labelled slides \(TCGA-1"):
        evaluate_run(run, manifest, QUICK)


def test_slides_of_another_model_do_not_judge(tmp_path: Path) -> None:
    """A record left from an earlier model in the same folder is listed, not used."""
    run, manifest = _four(tmp_path)
    path = run / "slides" / "d" / "state.json"
    record = json.loads(path.read_text())
    record["identity"]["model_hash"] = "other"
    path.write_text(json.dumps(record))
    found = evaluate_run(run, manifest, QUICK)
    assert found.cases.slide_ids == ("a", "b", "c")
    assert "another model" in dict(found.left_out)["d"]


def test_patients_come_from_the_labels_else_from_the_run(tmp_path: Path) -> None:
    """patient_id of the labels' manifest wins; without one the run's own stands in."""
    run, manifest = _four(tmp_path)
    assert evaluate_run(run, manifest, QUICK).cases.patient_ids == ("run a", "run b", "run c", "run d")
    named = _labels(
        tmp_path / "n.csv",
        [{"slide_id": s, "label": t, "patient_id": "P"} for s, t in (("a", "normal"), ("d", "tumor"))],
    )
    assert evaluate_run(run, named, QUICK).cases.patient_ids == ("P", "P")


def test_two_runs_are_compared_on_the_same_slides(tmp_path: Path) -> None:
    """AUROC 0.75 against 1.0 on slides that both finished: the difference, by DeLong and by resampling."""
    rng = np.random.default_rng(0)
    truth = np.arange(40) % 2
    names = [f"s{i:02d}" for i in range(40)]
    good, poor = 3.0 * truth + rng.normal(0, 1, 40), 0.5 * truth + rng.normal(0, 1, 40)
    a = _run(tmp_path / "good", {n: [v] for n, v in zip(names, good, strict=True)})
    b = _run(tmp_path / "poor", {n: [v] for n, v in list(zip(names, poor, strict=True))[:38]})
    manifest = _labels(
        tmp_path / "m.csv", [{"slide_id": n, "label": LABEL.classes[t]} for n, t in zip(names, truth, strict=True)]
    )
    found = evaluate_run(a, manifest, EvaluateOptions(against=b, n_resamples=200, out=tmp_path / "out"))
    assert [c.test for c in found.comparisons] == ["DeLong", "patients resampled"]
    one, two = (c.found for c in found.comparisons)
    assert (one.n, two.n) == (38, 38)
    assert one.difference == pytest.approx(two.difference)
    assert one.difference > 0.15
    assert one.low > 0
    assert one.p < 0.05
    assert two.p < 0.05
    assert "Against another run" in (tmp_path / "out" / "index.html").read_text()
    same = evaluate_run(a, manifest, EvaluateOptions(against=a, n_resamples=100))
    assert {(c.found.difference, c.found.p) for c in same.comparisons} == {(0.0, 1.0)}


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    """Other classes, or no slide in common, end with a reason."""
    run, manifest = _four(tmp_path)
    turned = _run(tmp_path / "turned", {"a": [1.0]}, [LABEL.replace(classes=("tumor", "normal"))])
    with pytest.raises(ConfigError, match="not the same in both runs"):
        evaluate_run(run, manifest, EvaluateOptions(against=turned, n_resamples=100))
    strangers = _run(tmp_path / "strangers", {"z": [1.0]})
    with pytest.raises(ConfigError, match="no judged slide in common"):
        evaluate_run(run, manifest, EvaluateOptions(against=strangers, n_resamples=100))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """A missing run.json, a newer one, and logits that do not fit the tasks are errors with the folder's name."""
    _, manifest = _four(tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        evaluate_run(tmp_path, manifest, QUICK)
    run = _run(tmp_path / "odd", {"a": [1.0, 2.0]})
    with pytest.raises(ConfigError, match="slide a: 2 logits, the model's tasks need 1"):
        evaluate_run(run, manifest, QUICK)
    (run / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(ConfigError, match="newer wsi-ips"):
        evaluate_run(run, manifest, QUICK)


def test_several_tasks_read_a_column_each(tmp_path: Path) -> None:
    """A second task with its own column, regression here, is judged beside the first."""
    count = TaskSettings(name="count", kind="regression", center=10.0, spread=5.0)
    run = _run(tmp_path / "run", {"a": [-2.0, 0.0], "b": [2.0, 1.0]}, [LABEL, count])
    manifest = _labels(
        tmp_path / "m.csv",
        [{"slide_id": "a", "label": "normal", "count": "10"}, {"slide_id": "b", "label": "tumor", "count": "15"}],
    )
    first, second = evaluate_run(run, manifest, QUICK).evaluation.tasks
    assert (first.headline.value, second.metrics["r2"].value, second.metrics["mae"].value) == (1.0, 1.0, 0.0)


def test_the_command_needs_neither_torch_nor_pyplot_and_prints_a_table(tmp_path: Path) -> None:
    """`wsi-ips evaluate` answers on stdout and loads neither torch nor pyplot, whose figures stay open."""
    run, manifest = _four(tmp_path)
    code = ("import sys; from wsi_ips.cli import app; app(sys.argv[1:], standalone_mode=False); "
            "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)")  # fmt: skip
    command = [sys.executable, "-c", code, "evaluate", str(run), "--manifest", str(manifest), "--resamples", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "AUROC 0.75" in done.stdout
    assert "balanced accuracy" in done.stdout
