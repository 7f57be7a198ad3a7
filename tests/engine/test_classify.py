"""A batch from manifest to run folder: one row a slide, whatever becomes of it, and a second start that goes on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_ips.engine import classify as classify_module
from wsi_ips.engine.audit import audit_run
from wsi_ips.engine.classify import ClassifyOptions
from wsi_ips.engine.executors import WorkerLimits
from wsi_ips.engine.tuning import worker_memory
from wsi_ips.errors import ConfigError
from wsi_ips.manifest import manifest_of_slide
from wsi_ips.model.bundle import load_bundle
from wsi_ips.report.provenance import provenance
from wsi_ips.results import read_ledger, read_predictions
from wsi_ips.synthetic import PyramidPlan, array_source, write_pyramid

TIMED = {"state.json", "run.json", "log.jsonl", "timings.csv"}


def _cli(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsi_ips.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def _rows(run: Path) -> dict[str, dict[str, str]]:
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as f:
        return {row["slide_id"]: row for row in csv.DictReader(f)}


def _hashes(run: Path) -> dict[str, str]:
    return {p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(run.rglob("*")) if p.is_file() and p.name not in TIMED}  # fmt: skip


@pytest.fixture(scope="module")
def batch(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest: two sound slides of one patient, a cut one, bare glass, one excluded, one missing."""
    folder = tmp_path_factory.mktemp("batch")
    sound = sorted((cohort.parent / "slides").glob("*.tif"))[:2]
    for name, source in zip(("a", "b"), sound, strict=True):
        shutil.copy(source, folder / f"{name}.tif")
    (folder / "cut.tif").write_bytes(sound[0].read_bytes()[: sound[0].stat().st_size // 2])
    rng = np.random.default_rng(0)
    glass = rng.normal(243, 1.5, (700, 1100, 3)).astype(np.uint8)
    write_pyramid(folder / "glass.tif", array_source(glass), PyramidPlan(1100, 700))
    (folder / "m.csv").write_text(
        "slide_path,patient_id,label,exclude,status\n"
        "a.tif,P1,positive,,fresh\nb.tif,P1,negative,,old\ncut.tif,P2,positive,,old\nglass.tif,P3,negative,,old\n"
        "b2.tif,P4,negative,yes,old\ngone.tif,P5,negative,,old\n"
    )
    return folder / "m.csv"


@pytest.fixture(scope="module")
def run(batch: Path, tiny_bundle: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = batch.parent / "run"
    return out, _cli("classify", batch, "--model", tiny_bundle, "--out", out, "--allow-missing")


def test_one_bad_slide_is_one_row_with_a_reason(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """P1, P7: every manifest row is a row; the batch goes on; the exit status tells."""
    out, done = run
    assert done.returncode == 1, done.stderr
    rows = _rows(out)
    assert {k: (r["status"], r["reason"]) for k, r in rows.items()} == {
        "a": ("ok", ""), "b": ("ok", ""), "cut": ("failed", "E_TRUNCATED"), "glass": ("no_tissue", "E_NO_TISSUE"),
        "b2": ("not_run", "E_EXCLUDED"), "gone": ("failed", "E_MISSING"),
    }  # fmt: skip
    assert rows["a"]["manifest_status"] == "fresh"
    assert rows["a"]["label"] == "positive"
    assert abs(float(rows["a"]["prob_negative"]) + float(rows["a"]["prob_positive"]) - 1.0) < 2e-6
    assert rows["cut"]["prob_positive"] == ""
    assert "encoding on " in done.stderr  # the device was left to be chosen
    assert "2 ok" in done.stdout
    assert "GiB" in done.stdout


def test_each_slide_has_its_files_and_the_page_its_links(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Ledger, overlay, tiles, page and record; index.html leads to them without a network."""
    out, _ = run
    files = {p.name for p in (out / "slides" / "a").iterdir()}
    assert {"a.ledger.h5", "a.overlay.png", "a.top_tiles", "a.report.html", "state.json"} <= files
    assert (out / "slides" / "glass" / "glass.overlay.png").exists()
    page = (out / "index.html").read_text()
    assert "slides/a/a.report.html" in page
    assert "E_TRUNCATED" in page
    assert "://" not in page


def test_the_row_says_what_the_ledger_says(
    run: tuple[Path, subprocess.CompletedProcess[str]], tiny_bundle: Path
) -> None:
    """P4: probability and count in the table come from the pass whose ledger lies beside."""
    out, _ = run
    p = read_ledger(out / "slides" / "b" / "b.ledger.h5")
    row = _rows(out)["b"]
    bundle = load_bundle(tiny_bundle)
    outputs = bundle.classifier.read_out(p.values).outputs
    assert np.array_equal(outputs, p.outputs)
    assert float(row["prob_positive"]) == pytest.approx(1 / (1 + np.exp(-float(outputs[0]))), abs=1e-6)
    assert (row["n_tiles"], row["model_hash"]) == (str(p.n_tiles), bundle.hash)


def test_patients_get_the_mean_logit_of_their_slides(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The stated rule, on the patient with two slides."""
    out, _ = run
    logits = [float(read_ledger(out / "slides" / s / f"{s}.ledger.h5").outputs[0]) for s in ("a", "b")]
    with (out / "patients.csv").open(newline="") as f:
        patients = {r["patient_id"]: r for r in csv.DictReader(f)}
    assert patients["P1"]["n_slides"] == "2"
    assert float(patients["P1"]["prob_positive"]) == pytest.approx(1 / (1 + np.exp(-np.mean(logits))), abs=1e-6)


def test_fault_131_no_path_of_a_slide_leaves_the_journal(run: tuple[Path, subprocess.CompletedProcess[str]], batch: Path) -> None:
    """Paths stand in run.json and log.jsonl only."""
    out, _ = run
    for path in out.rglob("*"):
        if path.is_file() and path.name not in ("run.json", "log.jsonl"):
            assert str(batch.parent).encode() not in path.read_bytes(), path.name


@pytest.fixture(scope="module")
def watched(batch: Path, tiny_bundle: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run over a sound slide with a stated mpp and a cut one, which prints what its leader has loaded; both with the hash of the sound one."""
    folder = batch.parent
    digest = hashlib.sha256((folder / "a.tif").read_bytes()).hexdigest()
    (folder / "w.csv").write_text(f"slide_path,mpp,sha256\na.tif,1.25,{digest}\ncut.tif,,{digest}\n")
    code = (
        "import sys\n"
        "from wsi_ips.engine.classify import ClassifyOptions, classify\n"
        "from wsi_ips.manifest import load_manifest\n"
        "summary = classify(load_manifest(sys.argv[1]), *sys.argv[2:], ClassifyOptions(device='cpu', workers=1))\n"
        "print(summary.has_failures, {'openslide', 'tiffslide', 'torch'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, str(folder / "w.csv"), str(tiny_bundle), str(folder / "watched")]
    return folder / "watched", subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_the_leader_never_decodes_a_slide(watched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """P7: after a whole run no slide library and no torch is loaded in the process that keeps the books."""
    assert watched[1].stdout == "True set()\n", watched[1].stderr


def test_the_manifests_mpp_is_the_readers(watched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """P10: a stated µm per px goes before the file's own, and tiles are cut by it."""
    row = _rows(watched[0])["a"]
    assert (row["mpp"], row["mpp_source"]) == ("1.25", "manifest")
    p = read_ledger(watched[0] / "slides" / "a" / "a.ledger.h5")
    assert p.extent0 == (32 * 4.0 / 1.25, 32 * 4.0 / 1.25)


def test_fault_085_a_slide_unlike_its_manifests_hash_is_one_failed_row(
    watched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """The row says so before a pixel is read; the slide with the right hash is labelled."""
    rows = _rows(watched[0])
    assert (rows["a"]["status"], rows["cut"]["status"], rows["cut"]["reason"]) == ("ok", "failed", "E_CHECKSUM")
    assert "cut.tif: its sha256 is" in rows["cut"]["message"]
    assert "sha256" not in rows["a"]


def test_limits_of_the_command_reach_the_workers(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7: `--memory-gb` and `--stall-seconds` are what supervision uses, one set-up a worker."""
    asked: list[tuple[object, ...]] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise ConfigError("seen")

    monkeypatch.setattr(classify_module, "LocalExecutor", refuse)
    (tmp_path / "a.tif").touch()
    options = ClassifyOptions(device="cpu", workers=3, memory_gb=1.5, stall_seconds=7.0)
    with pytest.raises(ConfigError, match="seen"):
        classify_module.classify(manifest_of_slide(tmp_path / "a.tif", None), str(tiny_bundle), tmp_path / "o", options)
    ((_, setups, limits),) = asked
    assert len(setups) == 3
    assert limits == WorkerLimits(stall_seconds=7.0, memory_bytes=3 * 2**29)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_files(
    run: tuple[Path, subprocess.CompletedProcess[str]], batch: Path, tiny_bundle: Path
) -> None:
    """P8: SIGKILL after the first slide, then the same command: byte for byte the undisturbed run; finished work is kept."""
    whole, _ = run
    out = batch.parent / "killed"
    words = ["classify", str(batch), "--model", str(tiny_bundle), "--out", str(out), "--allow-missing"]
    leader = subprocess.Popen(
        [sys.executable, "-m", "wsi_ips.cli", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (out / "slides" / "a" / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    leader.send_signal(signal.SIGKILL)
    leader.wait()
    before = (out / "slides" / "a" / "state.json").read_bytes()
    done = _cli(*words)
    assert done.returncode == 1, done.stderr
    assert "a: ok (kept)" in done.stderr
    assert (out / "slides" / "a" / "state.json").read_bytes() == before
    assert _hashes(out) == _hashes(whole)


@pytest.mark.slow
def test_labels_never_influence_tiling(cohort: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """P11: the same slide under two labels has the same ledger, byte for byte."""
    slide = sorted((cohort.parent / "slides").glob("*.tif"))[2]
    (tmp_path / "m.csv").write_text(f"slide_path,slide_id,label\n{slide},x,positive\n")
    (tmp_path / "n.csv").write_text(f"slide_path,slide_id,label\n{slide},x,negative\n")
    for name in ("m", "n"):
        assert (
            _cli("classify", tmp_path / f"{name}.csv", "--model", tiny_bundle, "--out", tmp_path / name).returncode == 0
        )
    ledgers = [(tmp_path / name / "slides" / "x" / "x.ledger.h5").read_bytes() for name in ("m", "n")]
    assert ledgers[0] == ledgers[1]
    done = _cli("heatmap", tmp_path / "m", "--scale", "percentile")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / "slides" / "x" / "x.evidence.png").exists()
    assert (tmp_path / "m" / "slides" / "x" / "x.ledger.h5").read_bytes() == ledgers[0]


@pytest.mark.slow
def test_evidence_of_the_whole_bag_is_added_when_it_is_asked_for(
    run: tuple[Path, subprocess.CompletedProcess[str]], batch: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A finished slide without it is done again from the cache; label, logits and attention keep every bit."""
    without = read_ledger(run[0] / "slides" / "a" / "a.ledger.h5")
    assert without.bag_evidence is None
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    before = json.loads((out / "slides" / "a" / "state.json").read_text())["identity"]
    assert "evidence" not in before
    words = ["classify", batch, "--model", tiny_bundle, "--out", out, "--allow-missing", "--only", "a"]
    assert "a: ok (kept)" in _cli(*words).stderr
    done = _cli(*words, "--evidence", "bag")
    record = json.loads((out / "slides" / "a" / "state.json").read_text())
    assert done.returncode in (0, 1), done.stderr
    assert record["identity"] == before | {"evidence": "bag"}
    assert record["n_encoded"] == 0
    p = read_ledger(out / "slides" / "a" / "a.ledger.h5")
    assert p.bag_evidence is not None
    assert (p.bag_evidence.shape, p.bag_evidence.dtype) == ((p.n_tiles, 1), np.float32)
    for name in ("logits", "attention", "selected", "values", "evidence", "outputs"):
        assert np.array_equal(getattr(p, name), getattr(without, name)), name
    assert (_rows(out)["a"]) == _rows(run[0])["a"]
    assert "a: ok (kept)" in _cli(*words, "--evidence", "bag").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["classify", "{m}", "--model", "{bundle}", "--out", "{out}", "--evidence", "all"], "expected selected or bag"),
        (["classify", "{m}", "--model", "{no}", "--out", "{out}"], "config.json: missing"),
        (["classify", "{bad}", "--model", "{no}", "--out", "{out}"], "line 2, column 'slide_path': no such file"),
        (["classify", "{m}", "--model", "{bundle}", "--out", "{out}", "--only", "zz"], "--only: no slide zz"),
        (["classify", "{m}", "--model", "{bundle}", "--out", "{m}/x"], "--out"),
        (["heatmap", "{no}"], "not a run folder"),
        (["classify", "{m}", "--model", "{bundle}"], "--out"),
    ],
)
def test_fault_052_what_cannot_be_meant_is_refused_before_the_first_slide(
    words: list[str], said: str, tmp_path: Path, cohort: Path, tiny_bundle: Path
) -> None:
    """Exit 2 with a sentence that names the thing."""
    (tmp_path / "bad.csv").write_text("slide_path\nnothing.svs\n")
    names = {
        "m": cohort,
        "no": tmp_path / "nothing",
        "bad": tmp_path / "bad.csv",
        "out": tmp_path / "o",
        "bundle": tiny_bundle,
    }
    done = _cli(*(w.format(**names) for w in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_help_answers_at_once_and_says_what_goes_in_and_out() -> None:
    """`--help` loads nothing heavy; every command says what it takes and gives."""
    env = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-m", "wsi_ips.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    for heavy in ("torch", "numpy", "pandas", "cv2", "pydantic"):
        assert f" {heavy}\n" not in done.stderr
    for name in ("inspect", "manifest", "plan", "classify", "heatmap", "finetune", "demo", "doctor"):
        assert " in; " in " ".join(_cli(name, "--help").stdout.split())


def test_predictions_read_as_a_table_for_analysis(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Ids stay text, probabilities are numbers, a slide without a label has none."""
    table = read_predictions(run[0]).set_index("slide_id")
    assert table.loc["a", "prob_positive"] + table.loc["a", "prob_negative"] == pytest.approx(1.0, abs=2e-6)
    assert np.isnan(table.loc["cut", "prob_positive"])
    assert table.loc["cut", "patient_id"] == "P2"


@pytest.mark.slow
def test_fault_055_a_changed_row_is_not_reported_as_done(
    run: tuple[Path, subprocess.CompletedProcess[str]], batch: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A row that asks for something else than its record is `not_run` until it is done; carried cells never pose as calls."""
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    text = "slide_path,slide_id,mpp,pred,prob_positive\na.tif,a,0.4,positive,0.99\nb.tif,b,,positive,0.99\n"
    manifest = batch.parent / "changed.csv"
    manifest.write_text(text)
    assert _cli("classify", manifest, "--model", tiny_bundle, "--out", out, "--only", "b").returncode == 0
    rows = _rows(out)
    assert rows.keys() == {"a", "b"}  # rows that are gone leave the table
    assert (rows["a"]["status"], rows["a"]["pred"], rows["a"]["prob_positive"]) == ("not_run", "", "")
    assert (rows["a"]["manifest_pred"], rows["b"]["status"]) == ("positive", "ok")


@pytest.mark.slow
def test_a_second_run_elsewhere_encodes_nothing_and_gives_the_same_files(
    run: tuple[Path, subprocess.CompletedProcess[str]], batch: Path, tiny_bundle: Path
) -> None:
    """The cache is used without being asked: 0 tiles through the encoder, and every file that is not timed is the same."""
    out = batch.parent / "again"
    done = _cli("classify", batch, "--model", tiny_bundle, "--out", out, "--allow-missing")
    assert done.returncode == 1, done.stderr
    for folder, is_cached in ((run[0], "no"), (out, "yes")):
        with (folder / "timings.csv").open(newline="") as f:
            rows = {r["slide_id"]: (int(r["n_encoded"]), r["cached"]) for r in csv.DictReader(f)}
        for name in ("a", "b"):
            assert (rows[name][0] > 0, rows[name][1]) == (is_cached == "no", is_cached)
        assert rows["cut"] == (0, "no")
    assert "(0 encoded)" in done.stdout
    assert _hashes(out) == _hashes(run[0])


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_one_line_of_the_log(cohort: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The slides are labelled all the same."""
    (tmp_path / "cache").write_text("a file")
    words = ["--limit", 2, "--cache", tmp_path / "cache", "--strict", "--out", tmp_path / "o"]
    done = _cli("classify", cohort, "--model", tiny_bundle, *words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    warnings = [line["message"] for line in lines if line["event"] == "warning"]
    assert len([w for w in warnings if "the embedding cache cannot be written" in w]) == 1
    # OpenVINO's converted encoder lies beside the embeddings
    assert all("the embedding cache cannot" in w or "the converted encoder cannot be kept" in w for w in warnings)
    assert len(warnings) <= 2
    state = json.loads(next((tmp_path / "o" / "slides").glob("*/state.json")).read_text())
    assert "full sha256" in state["identity"]["file"]["method"]


@pytest.mark.slow
def test_fault_088_a_damaged_slide_is_found_by_audit_and_mended_by_the_same_command(
    run: tuple[Path, subprocess.CompletedProcess[str]], batch: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A flipped byte in a ledger: audit names it and the cure; classify does that slide again, alone; audit is clean."""
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    assert audit_run(out).holds
    ledger = out / "slides" / "a" / "a.ledger.h5"
    data = bytearray(ledger.read_bytes())
    data[len(data) // 2] ^= 1
    ledger.write_bytes(data)
    (finding,) = audit_run(out).findings
    assert (finding.what, finding.name) == ("changed", "slides/a/a.ledger.h5")
    assert "run the same classify command again" in finding.text
    done = _cli("classify", batch, "--model", tiny_bundle, "--out", out, "--allow-missing")
    assert done.returncode == 1, done.stderr
    assert "b: ok (kept)" in done.stderr
    assert "a: ok (kept)" not in done.stderr
    report = audit_run(out)
    assert report.holds, report.findings
    assert [d for d in report.differences if not d.name.startswith("code")] == []  # somebody may be editing this checkout
    assert _hashes(out) == _hashes(run[0])


def test_run_json_records_what_results_depend_on(
    run: tuple[Path, subprocess.CompletedProcess[str]], batch: Path
) -> None:
    """Versions, settings, model and manifest by hash; command line, machine, times; outputs carry what has no place or time."""
    facts = json.loads((run[0] / "run.json").read_text())
    environment, words = facts["environment"], facts["command_line"]
    assert words[-6:] == ["classify", str(batch), "--model", facts["model"]["path"], "--out", str(run[0]), "--allow-missing"][-6:]
    assert environment["libraries"]["openslide"] in environment["packages"]["openslide-bin"]
    assert environment["deterministic"]["deterministic_algorithms"] is True
    assert all(environment[k] for k in ("cpu", "hdf5", "python", "cores"))
    assert facts["started"] <= facts["ended"]
    assert facts["counts"] == {"ok": 2, "failed": 2, "no_tissue": 1, "not_run": 1}
    state = json.loads((run[0] / "slides" / "a" / "state.json").read_text())
    assert state["made_with"]["torch"] == environment["packages"]["torch"]
    p = read_ledger(run[0] / "slides" / "a" / "a.ledger.h5")
    assert p.file == state["identity"]["file"]
    assert state["identity"]["mtime_ns"] == (batch.parent / "a.tif").stat().st_mtime_ns
    assert str(p.file["sha256"]) in (run[0] / "slides" / "a" / "a.report.html").read_text()
    with Image.open(run[0] / "slides" / "a" / "a.overlay.png") as picture:
        assert json.loads(picture.info["Description"]) == provenance(p)
    with Image.open(run[0] / "slides" / "a" / "a.attention.tif") as picture:
        assert p.settings_hash in picture.tag_v2[270]
    assert facts["environment"]["packages"]["torch"]
    assert facts["environment"]["worker_memory_bytes"] == worker_memory(1)
    assert facts["model"]["model_settings"]["tile"] == {"size_px": 32, "mpp": 4.0, "overlap_px": 0}
    assert len(facts["manifest"]["sha256"]) == 64
