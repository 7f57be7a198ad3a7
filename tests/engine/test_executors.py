"""Supervised workers: a slide that kills, hangs or swells costs itself alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_workers
import psutil
import pytest

from wsi_ips.engine import executors, tuning
from wsi_ips.engine.executors import Job, LocalExecutor, Outcome, WorkerLimits
from wsi_ips.engine.watching import Patience
from wsi_ips.errors import ConfigError, ModelError, StoppedError

FAST = WorkerLimits(stall_seconds=5.0)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    made = LocalExecutor("fake_workers:Worker", [{"folder": str(tmp_path)}] * 2, FAST)
    yield made
    made.close()


def _run(executor: LocalExecutor, *todo: dict[str, Any]) -> dict[str, Outcome]:
    jobs = [Job(f"s{i}", payload) for i, payload in enumerate(todo)]
    return {o.id: o for o in executor.run(jobs, lambda p: None)}


def test_every_job_is_done_once_and_in_another_process(executor: LocalExecutor) -> None:
    """All jobs come back, from children, never from the leader."""
    found = _run(executor, *({"do": "value", "value": i} for i in range(7)))
    assert {o.result["value"] for o in found.values() if o.result} == set(range(7))
    assert all(o.result and o.result["pid"] != os.getpid() for o in found.values())


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [("kill", "E_WORKER_DIED", "SIGKILL"), ("abort", "E_WORKER_DIED", "SIGABRT"), ("raise", "E_WORKER_DIED", "unexpected error"),
     ("hang", "E_TIMEOUT", "no progress")],
)  # fmt: skip
def test_fault_093_a_slide_that_ends_its_worker_fails_alone(executor: LocalExecutor, kind: str, code: str, words: str) -> None:
    """Death, abort, defect and hang are tried twice and reported; the others do not notice."""
    found = _run(
        executor, {"do": "value", "value": 1}, {"do": kind}, {"do": "value", "value": 2}, {"do": "value", "value": 3}
    )
    bad = found.pop("s1")
    assert (bad.result, bad.code, bad.attempts) == (None, code, 2)
    assert words in bad.message
    assert sorted(o.result["value"] for o in found.values() if o.result) == [1, 2, 3]


def test_fault_098_what_cannot_be_sent_costs_its_slide_alone(executor: LocalExecutor) -> None:
    """An error or a result that does not pickle, an error that cannot be printed: nobody waits for ever, errors cross as text."""
    found = _run(executor, {"do": "unpicklable"}, {"do": "value", "value": 1}, {"do": "result"}, {"do": "unprintable"}, {"do": "value", "value": 2})
    for name in ("s0", "s2", "s3"):
        assert (found[name].code, found[name].attempts) == ("E_WORKER_DIED", 2)
        assert "unexpected error" in found[name].message
    assert [(found[name].result or {})["value"] for name in ("s1", "s4")] == [1, 2]


def test_fault_099_and_135_workers_share_nothing_with_the_leader_and_leave_no_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are spawned: what the leader has in memory or holds open is not theirs. No memory image of a crash is written."""
    monkeypatch.setattr(fake_workers, "MARK", "of the leader")
    held = [(tmp_path / str(i)).open("w") for i in range(50)]
    executor = LocalExecutor("fake_workers:Worker", [{"folder": str(tmp_path)}], FAST)
    try:
        method, mark, n_open, core = (_run(executor, {"do": "tell"})["s0"].result or {})["value"]
    finally:
        executor.close()
        for f in held:
            f.close()
    assert (method, mark, core) == ("spawn", "as imported", 0)
    assert n_open < 50


def test_fault_012_a_worker_that_grows_too_large_is_ended(tmp_path: Path) -> None:
    """Memory above the limit ends the worker with E_MEMORY."""
    executor = LocalExecutor("fake_workers:Worker", [{"folder": str(tmp_path)}], WorkerLimits(30.0, 400 * 2**20))
    try:
        found = _run(executor, {"do": "grow"}, {"do": "value", "value": 5})
    finally:
        executor.close()
    assert found["s0"].code == "E_MEMORY"
    assert (found["s1"].result or {}).get("value") == 5


def test_fault_012_workers_share_the_machine_unless_a_limit_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four fifths of the memory in equal parts, 4 GiB at least where there is as much; what is stated goes before that."""
    for machine_gib, n_workers, gib in ((100, 1, 80), (100, 4, 20), (100, 40, 4), (2, 2, 1.6)):
        monkeypatch.setattr(tuning, "machine_memory", lambda machine_gib=machine_gib: machine_gib << 30)
        executor = LocalExecutor("fake_workers:Worker", [{}] * n_workers, WorkerLimits())
        assert executor.memory_bytes == int(gib * 2**30)
    assert LocalExecutor("fake_workers:Worker", [{}], WorkerLimits(memory_bytes=5)).memory_bytes == 5


def test_fault_029_what_libraries_print_is_the_slides_and_not_the_terminals(
    executor: LocalExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each slide has its own lines, printable, a flood in short, and the last words of a worker that died."""
    todo = [{"do": "noise"}, {"do": "value"}, {"do": "noise", "lines": 30_000}, {"do": "last words"}, {"do": "raise"}]
    found = _run(executor, *todo)
    assert found["s0"].noise == "TIFFReadDirectory: Warning?[31m, tag 65426"
    assert found["s1"].noise == ""
    assert "bytes left out" in found["s2"].noise
    assert len(found["s2"].noise) < 4_100
    assert "libtiff: I give up" in found["s3"].noise
    assert found["s4"].noise.endswith("RuntimeError: a defect")
    executor.close()
    assert capfd.readouterr().err == ""


def test_fault_029_with_debug_it_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--debug` leaves stderr alone."""
    monkeypatch.setenv("WSI_IPS_DEBUG", "1")
    executor = LocalExecutor("fake_workers:Worker", [{"folder": str(tmp_path)}], FAST)
    try:
        assert _run(executor, {"do": "noise"})["s0"].noise == ""
    finally:
        executor.close()
    assert "TIFFReadDirectory" in capfd.readouterr().err


def test_fault_093_a_worker_that_died_by_chance_gets_a_second_try(executor: LocalExecutor) -> None:
    """One death is forgiven, and counted."""
    found = _run(executor, {"do": "once", "value": 8})
    assert (found["s0"].result or {}).get("value") == 8
    assert found["s0"].attempts == 2


def _foresee(tmp_path: Path, n_workers: int, *todo: dict[str, Any], limits: WorkerLimits = FAST) -> dict[str, Outcome]:
    """Do named jobs with workers that look ahead."""
    executor = LocalExecutor("fake_workers:ForesightedWorker", [{"folder": str(tmp_path)}] * n_workers, limits)
    try:
        executor.ready()
        jobs = [Job(payload["name"], payload) for payload in todo]
        return {o.id: o for o in executor.run(jobs, lambda p: None)}
    finally:
        executor.close()


def _value(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "do": "value", "value": name} | more


def test_a_child_is_told_its_next_job_and_gets_it(tmp_path: Path) -> None:
    """One worker: each job is announced beside the one before it, and the last has none beside it."""
    found = _foresee(tmp_path, 1, *(_value(name) for name in "abcd"))
    assert [(o.result or {})["ahead"] for o in found.values()] == ["b", "c", "d", ""]
    assert list(found) == list("abcd")


def test_a_reserved_job_is_taken_by_another_child_when_nothing_else_is_left(tmp_path: Path) -> None:
    """A long job keeps nobody waiting: what its child has reserved is done by the one that is idle."""
    found = _foresee(tmp_path, 2, _value("long", after=3), _value("b"), _value("c"), _value("d"), limits=WorkerLimits(60.0))
    results = {name: o.result or {} for name, o in found.items()}
    assert list(found) == ["b", "d", "c", "long"]
    assert results["long"]["ahead"] == "c"
    assert results["long"]["pid"] not in {results[name]["pid"] for name in "bcd"}


@pytest.mark.parametrize(("do", "code"), [("kill", "E_WORKER_DIED"), ("hang", "E_TIMEOUT")])
def test_a_job_that_kills_while_it_is_prepared_costs_itself_alone(tmp_path: Path, do: str, code: str) -> None:
    """The job at work beside it ends well, though its child died with it; the bad one fails in its own turn, as ever."""
    bad = {"name": "bad", "do": do, "ahead": do}
    found = _foresee(tmp_path, 1, _value("a"), bad, _value("c"), _value("d"), limits=WorkerLimits(2.0))
    verdicts = {name: (o.code, (o.result or {}).get("value")) for name, o in found.items()}
    assert verdicts == {"a": ("", "a"), "bad": (code, None), "c": ("", "c"), "d": ("", "d")}
    assert "tried 2 times" in found["bad"].message
    assert (found["a"].result or {})["ahead"] == ""  # nothing beside a second try


def test_a_death_beside_a_preparation_counts_against_nobody(tmp_path: Path) -> None:
    """A job that dies once by itself has its second try even where its neighbour has killed it before."""
    bad = {"name": "bad", "do": "kill", "ahead": "kill"}
    found = _foresee(tmp_path, 1, {"name": "a", "do": "once", "value": "a"}, bad)
    assert ((found["a"].result or {}).get("value"), found["a"].attempts) == ("a", 3)
    assert (found["bad"].code, found["bad"].attempts) == ("E_WORKER_DIED", 2)


@pytest.mark.parametrize(
    ("factory", "error", "words"),
    [("fake_workers:refuse_model", ModelError, "torn"), ("fake_workers:refuse_config", ConfigError, "meant"),
     ("old_worker:make", ConfigError, r"OpenSlide 4\.0\.0 is too old, at least 4\.0\.1 is needed")],
)  # fmt: skip
def test_fault_022_a_refused_set_up_refuses_the_run(factory: str, error: type[Exception], words: str) -> None:
    """What the worker cannot start with, libraries of known faults included, is the leader's error, before any job."""
    executor = LocalExecutor(factory, [{}], FAST)
    try:
        with pytest.raises(error, match=words):
            executor.ready()
    finally:
        executor.close()


def test_a_stopped_environment_stops_the_run(executor: LocalExecutor) -> None:
    """A full disk is not a failed slide."""
    with pytest.raises(StoppedError, match="disk is full"):
        _run(executor, {"do": "stop"})


def test_a_script_without_a_main_guard_is_told_about_it(tmp_path: Path) -> None:
    """Workers import the script that started them; without the guard each would start the work again."""
    script = tmp_path / "leader.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from wsi_ips.engine.executors import LocalExecutor, WorkerLimits\n"
        "LocalExecutor('fake_workers:Worker', [{'folder': ''}], WorkerLimits(60.0)).ready()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parent)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert 'inside if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_fault_083_a_process_that_hangs_in_the_kernel_is_left_behind_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL does not end what waits for a dead mount: the batch goes on without it, and the row says why."""
    executor = LocalExecutor("fake_workers:Worker", [{"folder": str(tmp_path)}], WorkerLimits(stall_seconds=1.5))
    executor.ready()
    kind = type(executor._children[0].process)
    left: list[Any] = []
    for name in ("kill", "join"):
        monkeypatch.setattr(kind, name, lambda self, *args: left.append(self))
    try:
        found = _run(executor, {"do": "hang"}, {"do": "value", "value": 3})
    finally:
        monkeypatch.undo()
        executor.close()
        for process in left:
            process.kill()
    assert (found["s0"].code, (found["s1"].result or {})["value"]) == ("E_TIMEOUT", 3)
    assert "does not end: it waits for a disk" in found["s0"].message


def test_fault_096_a_leader_that_slept_does_not_blame_its_workers() -> None:
    """Stopped for an hour, or suspended with the machine, it has heard nothing, and its patience is what it was."""
    clock = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: clock[0])
        patience = Patience()
        before = patience.now()
        for _ in range(10):
            clock[0] += 0.2
            patience.now()
        clock[0] += 3600.0
        after = patience.now()
    assert after - before == pytest.approx(4.0)


def _leader_and_worker(folder: Path, then: str) -> tuple[subprocess.Popen[str], int]:
    """Start a process that starts a worker, whose id it gives, and then does something more with its executor `e`."""
    script = folder / "leader.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from wsi_ips.engine.executors import LocalExecutor, WorkerLimits, Job\n"
        "if __name__ == '__main__':\n"
        "    e = LocalExecutor('fake_workers:Worker', [{'folder': ''}], WorkerLimits(60.0))\n"
        "    print(e.ready()['pid'], flush=True)\n" + then
    )
    leader = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    return leader, int(leader.stdout.readline())


@pytest.mark.skipif(sys.platform != "linux", reason="sends SIGSTOP")
def test_fault_096_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Leader and worker are stopped for longer than a stall may last, as by Ctrl-Z; no slide fails for that."""
    leader, worker = _leader_and_worker(
        tmp_path,
        "    e._limits = WorkerLimits(3.0)\n"
        "    print([o.code for o in e.run([Job('a', {'do': 'short'})], lambda p: print(p.stage, flush=True))], flush=True)\n"
        "    e.close()\n",
    )
    assert leader.stdout is not None
    pids = [worker, leader.pid]
    assert leader.stdout.readline() == "tiles\n"  # at work
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.0)
    for pid in pids[::-1]:
        os.kill(pid, signal.SIGCONT)
    said, _ = leader.communicate(timeout=30)
    assert said.splitlines()[-1] == "['']"


@pytest.mark.parametrize("do", ["steps", "hang"])
def test_fault_095_workers_that_are_told_to_end_put_their_slide_by(
    tmp_path: Path, do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At their next sign of progress; one that gives none is killed after some seconds."""
    monkeypatch.setattr(executors, "_PARK_SECONDS", 2.0)
    executor = LocalExecutor("fake_workers:Worker", [{"folder": str(tmp_path)}], FAST)
    pid = executor.ready()["pid"]
    outcomes = executor.run([Job("s", {"do": do})], _interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    asked = time.monotonic()
    executor.close()
    assert time.monotonic() - asked < 5.0
    assert (tmp_path / "put-by").exists() == (do == "steps")
    assert not psutil.pid_exists(pid)


def _interrupt(progress: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end children with their parent")
def test_fault_094_workers_end_with_their_leader(tmp_path: Path) -> None:
    """A killed leader leaves no orphan behind."""
    leader, child = _leader_and_worker(tmp_path, "    list(e.run([Job('a', {'do': 'hang'})], lambda p: None))\n")
    leader.kill()
    leader.wait()
    deadline = time.monotonic() + 5.0
    while (
        psutil.pid_exists(child)
        and psutil.Process(child).status() != psutil.STATUS_ZOMBIE
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
