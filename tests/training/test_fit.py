"""What makes two trainings the same one: a changed label, file, seed or start is another, a changed machine is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wsi_ips.config import ModelSettings
from wsi_ips.manifest import SlideRecord
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.fit import FitJob
from wsi_ips.training.targets import Cohort, Member


def _member(i: int, **more: object) -> Member:
    record = replace(SlideRecord(f"s{i}", f"/x/s{i}.svs", f"p{i}", site="A"), **more)  # type: ignore[arg-type]
    return Member(record, (float(i % 2),))


JOB = FitJob(
    "seed 0", Path("fit"), "test", Cohort((_member(0), _member(1)), (_member(2), _member(3)), (_member(4),), ()),
    ModelSettings(), TrainSettings(), False, False, "start", {f"s{i}": f"hash{i}" for i in range(5)},
)  # fmt: skip


def _side(job: FitJob, side: str, change: Callable[[Member], Member]) -> FitJob:
    members = getattr(job.cohort, side)
    return replace(job, cohort=replace(job.cohort, **{side: (change(members[0]), *members[1:])}))


def _other_label(m: Member) -> Member:
    return Member(m.record, (1.0 - m.targets[0],))


@pytest.mark.parametrize("change", [
    lambda j: _side(j, "train", _other_label),
    lambda j: _side(j, "val", _other_label),
    lambda j: _side(j, "train", lambda m: Member(replace(m.record, mpp=0.5), m.targets)),
    lambda j: _side(j, "train", lambda m: Member(replace(m.record, mask_path="m.geojson"), m.targets)),
    lambda j: replace(j, contents={**j.contents, "s0": "other"}),
    lambda j: replace(j, contents={**j.contents, "s2": "other"}),
    lambda j: replace(j, start_hash="other"),
    lambda j: replace(j, is_scratch=True),
    lambda j: replace(j, train=j.train.replace(seed=1)),
    lambda j: replace(j, settings=j.settings.replace(icc="srgb")),
])  # fmt: skip
def test_what_decides_the_weights_makes_another_training(change: Callable[[FitJob], FitJob]) -> None:
    """Labels, resolution, mask and content of slides that teach or choose; start, seed, settings."""
    assert change(JOB).identity != JOB.identity


@pytest.mark.parametrize("change", [
    lambda j: _side(j, "test", _other_label),
    lambda j: replace(j, contents={**j.contents, "s4": "other"}),
    lambda j: _side(j, "test", lambda m: Member(replace(m.record, site="B"), m.targets)),
])  # fmt: skip
def test_test_slides_decide_the_figures_and_not_the_weights(change: Callable[[FitJob], FitJob]) -> None:
    """Another test label, file or site: the same training, judged otherwise."""
    assert change(JOB).identity == JOB.identity
    assert change(JOB).judged_identity != JOB.judged_identity


def test_memory_and_moments_of_writing_do_not_make_another_training() -> None:
    """A restart with more memory goes on."""
    other = JOB.train.replace(memory_gb=3.0, micro_batch=7, checkpoint_seconds=1.0)
    assert replace(JOB, train=other).identity == JOB.identity
