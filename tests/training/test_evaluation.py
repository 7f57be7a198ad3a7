"""One evaluation: who judges, exact answers on small cases, and numbers that fit in a file."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wsi_ips.errors import ConfigError
from wsi_ips.stats.intervals import Interval
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.assess import case_losses, risk_groups
from wsi_ips.training.cases import CaseTable, join_cases
from wsi_ips.training.evaluation import Evaluation, TaskEvaluation, evaluate_cases
from wsi_ips.training.evaluation_tables import evaluation_json, metrics_csv
from wsi_ips.training.wording import interval_text, remarks, sentence

BINARY = TaskSettings(name="tumor", classes=("normal", "tumor"))


def _cases(
    z: Any, y: Any, task: TaskSettings = BINARY, part: str = "test", seed: int = 0, prefix: str = "s", **more: Any
) -> CaseTable:
    outputs, targets = np.atleast_2d(np.asarray(z, float).T).T, np.atleast_2d(np.asarray(y, float).T).T
    n = len(outputs)
    ids = tuple(f"{prefix}{i}" for i in range(n))
    fields = {"patient_ids": ids, "sites": ("",) * n, "parts": (part,) * n, "seeds": (seed,) * n} | more
    return CaseTable(slide_ids=ids, outputs=outputs, targets=targets, tasks=(task,), **fields)


def _quick(table: CaseTable, n: int = 50) -> Evaluation:
    return evaluate_cases(table, n_resamples=n)


def _noisy(n: int = 60, seed: int = 0, **more: Any) -> CaseTable:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return _cases((2 * y - 1) + rng.normal(0, 1.5, n), y, **more)


def test_small_cases_have_their_exact_figures() -> None:
    """Three of four pairs in order are AUROC 0.75; called from 0.5 on, counts and rates follow by hand."""
    (t,) = _quick(_cases([-2, 0.5, 0.1, 3], [0, 0, 1, 1])).tasks
    assert t.headline.value == 0.75
    assert t.confusion is not None
    assert t.confusion.tolist() == [[1, 1], [0, 2]]
    assert t.metrics["sensitivity"].value == 1.0
    assert t.metrics["specificity"].value == 0.5
    assert (t.class_counts, t.n, t.n_patients) == ({"normal": 2, "tumor": 2}, 4, 4)


def test_the_test_part_judges_and_validation_slides_choose_the_thresholds() -> None:
    """With val and test, figures are those of test alone, and thresholds carry the name and the values of val."""
    val = _cases([-2, -1, 1, 2], [0, 0, 1, 1], part="val", prefix="v")
    test = _cases([-9, -1, 1, 9], [1, 0, 1, 0])
    found = _quick(join_cases([val, test]))
    (t,) = found.tasks
    assert (found.judged, t.n, t.headline.value) == ("test", 4, 0.25)
    youden = next(r for r in t.operating if r.name == "youden")
    assert youden.chosen_on == "val"
    assert 0.26 < youden.threshold < 0.74  # between the sigmoids of -1 and 1
    assert (youden.sensitivity.value, youden.specificity.value) == (0.5, 0.5)
    assert [p.name for p in t.parts] == ["test", "val"]


def test_folds_are_judged_together_and_each() -> None:
    """Out-of-fold cases are pooled; each fold has its line, in order of number, and the spread is over folds."""
    folds = [_noisy(12, seed=k, part=f"fold {k}", prefix=f"f{k}_") for k in (2, 10, 1)]
    found = _quick(join_cases(folds))
    (t,) = found.tasks
    assert (found.judged, t.n) == ("out-of-fold", 36)
    assert [p.name for p in t.parts] == ["fold 1", "fold 2", "fold 10"]
    values = [p.score.value for p in t.parts if p.score]
    assert t.fold_spread is not None
    assert t.fold_spread.mean == pytest.approx(np.mean(values))
    assert (t.fold_spread.low, t.fold_spread.high) == (min(values), max(values))


def test_of_several_seeds_the_first_is_judged_and_all_give_the_spread() -> None:
    """The bundle's own figures stand on top; AUROC 1, 0.75 and 0.5 spread by a quarter."""
    y = [0, 0, 1, 1]
    seeds = [_cases(z, y, seed=s) for s, z in ((7, [1, 2, 3, 4]), (8, [1, 3, 2, 4]), (9, [1, 4, 2, 3]))]
    (t,) = _quick(join_cases(seeds)).tasks
    assert (t.n, t.headline.value) == (4, 1.0)
    assert [(g.name, g.score.value) for g in t.seeds if g.score] == [("seed 7", 1.0), ("seed 8", 0.75), ("seed 9", 0.5)]
    assert t.seed_spread == (3, 0.75, 0.5, 1.0, 0.25)


def test_a_slide_judges_once() -> None:
    """A slide that stands twice among the judged is refused by name."""
    twice = join_cases([_noisy(6), _noisy(6)])
    with pytest.raises(ConfigError, match=r"slide s0 stands more than once .*\(test\)"):
        _quick(twice)


def test_a_task_that_no_judged_slide_has_a_label_of_is_left_out() -> None:
    """Two tasks, one without any known target: the other is judged as if it were alone."""
    alone = _noisy(20)
    tasks = (BINARY, TaskSettings(name="size", kind="regression"))
    both = CaseTable(alone.slide_ids, alone.patient_ids, alone.sites, alone.parts, np.tile(alone.outputs, 2),
                     np.column_stack([alone.targets, np.full(20, np.nan)]), tasks)  # fmt: skip
    (t,) = _quick(both).tasks
    assert t.task.name == "tumor"
    assert t.headline == _quick(alone).tasks[0].headline


def test_no_case_and_no_truth_are_refused() -> None:
    """Nothing to judge is an error, not an empty page."""
    with pytest.raises(ConfigError, match="no case"):
        _quick(_noisy(4).rows([]))
    with pytest.raises(ConfigError, match=r"'tumor'.*no case with a known target among 2"):
        _quick(_cases([0, 1], [np.nan, np.nan]))


def test_a_single_class_is_said_not_scored() -> None:
    """With one class there is no AUROC: the sentence says so, JSON has null, CSV an empty cell."""
    found = _quick(_cases([0, 1, 2], [1, 1, 1]))
    assert sentence(found, found.tasks[0]) == (
        "AUROC cannot be said on 3 test slides of 3 patients: it needs cases that differ in the truth."
    )
    assert evaluation_json(found)["tasks"]["tumor"]["metrics"]["auroc"]["value"] is None
    rows = list(csv.DictReader(io.StringIO(metrics_csv(found).decode())))
    assert (rows[0]["metric"], rows[0]["value"], rows[0]["n"]) == ("auroc", "", "3")


def test_sites_need_ten_cases_and_both_classes() -> None:
    """A small site and a site of one class have counts and a reason, the others an interval."""
    table = _noisy(36)
    sites = ("A",) * 20 + ("B",) * 8 + ("C",) * 8
    table = _cases(table.outputs, table.targets, sites=sites)
    found = {s.name: s for s in _quick(table).tasks[0].sites}
    assert found["A"].score is not None
    assert found["A"].score.low <= found["A"].score.value <= found["A"].score.high
    assert (found["B"].score, found["B"].why, found["B"].n) == (None, "fewer than 10 cases", 8)
    one = _cases(table.outputs, np.repeat([0, 1], 18), sites=("A",) * 18 + ("B",) * 18)
    assert {s.why for s in _quick(one).tasks[0].sites} == {"cannot be said of these cases"}


def test_the_worst_case_is_the_most_confident_mistake() -> None:
    """Cases are listed from the largest loss down, with truth, call and the probability of the truth."""
    (t,) = _quick(_cases([-2, 5, 1, 3], [0, 0, 1, 1])).tasks
    worst = t.worst[0]
    assert (worst.slide_id, worst.truth, worst.called) == ("s1", "normal", "tumor")
    assert worst.loss == pytest.approx(np.log1p(np.exp(5)))
    assert worst.number == pytest.approx(1 / (1 + np.exp(5)))
    assert [w.loss for w in t.worst] == sorted((w.loss for w in t.worst), reverse=True)


def test_calibration_is_told_before_and_after_the_temperature() -> None:
    """Logits that shout: half of them right at 0.98 is far off; a large temperature makes it 0.5 and right."""
    z, y = [4.0] * 10 + [-4.0] * 10, [0, 1] * 10
    (t,) = _quick(_cases(z, y, BINARY.replace(temperature=1000.0))).tasks
    assert t.calibration is not None
    assert t.calibration.ece_before == pytest.approx(1 / (1 + np.exp(-4)) - 0.5)
    assert t.calibration.ece_after == pytest.approx(0.0, abs=1e-2)
    assert sum(b.n for b in t.calibration.bins_after) == 20


def test_calibration_of_folds_is_that_of_their_own_logits() -> None:
    """Two folds of other temperatures: before calibration their logits count as trained, not as rescaled to the first."""
    z, y = [4.0] * 10 + [-4.0] * 10, [0, 1] * 10
    folds = [
        _cases(z, y, BINARY.replace(temperature=t), part=f"fold {i}", prefix=f"{i}_") for i, t in enumerate((2.0, 0.5))
    ]
    (t,) = _quick(join_cases(folds)).tasks
    assert t.calibration is not None
    assert t.calibration.temperatures == (2.0, 0.5)
    assert t.calibration.ece_before == pytest.approx(1 / (1 + np.exp(-4)) - 0.5)
    after = np.mean([1 / (1 + np.exp(-4 / each)) for each in (2.0, 0.5)]) - 0.5
    assert t.calibration.ece_after == pytest.approx(after)


def test_kaplan_meier_by_hand() -> None:
    """Times 1, 2+, 3 and 4: shares 3/4, 3/4, 3/8 and 0 by the product of what survives."""
    task = TaskSettings(name="life", kind="survival", event_column="dead", cuts=(2.5,), classes=("0", "1"))
    low = [[1, 1], [2, 0], [3, 1], [4, 1]]
    high = [[1, 1], [1, 1], [2, 1], [2, 1]]
    groups = risk_groups(np.array([[-1.0]] * 4 + [[1.0]] * 4), np.array(low + high, float), task)
    assert groups[0].time == (0.0, 1.0, 3.0, 4.0, 4.0)
    assert groups[0].share == pytest.approx((1.0, 3 / 4, 3 / 8, 0.0, 0.0))
    assert (groups[0].n_events, groups[0].censored) == (3, (2.0,))
    assert groups[1].share == pytest.approx((1.0, 0.5, 0.0, 0.0))


def test_errors_of_numbers_keep_their_unit() -> None:
    """Regression: the distance in the unit of the column, not in spreads."""
    task = TaskSettings(name="count", kind="regression", center=10.0, spread=4.0)
    assert case_losses(np.array([[0.0], [1.0]]), np.array([[13.0], [14.0]]), task).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel", "regression", "survival"])
def test_every_kind_is_judged_and_fits_in_json(kind: Any) -> None:
    """Each kind of task gets its primary metric first, worst cases, and a JSON without NaN; unknown targets are counted."""
    rng = np.random.default_rng(3)
    more: dict[str, Any] = {"classes": ("a", "b", "c")} if kind != "regression" else {}
    more |= {"cuts": (1.0, 2.0), "event_column": "e"} if kind == "survival" else {}
    task = TaskSettings(name="t", kind=kind, **more)
    n = 30
    y = rng.integers(0, 3, n)
    targets = {"multilabel": np.stack([y == 0, y != 2, y == 2], 1), "survival": np.stack([rng.random(n) * 3, y > 0], 1)}
    outputs = rng.normal(0, 1, (n, task.n_outputs))
    known = np.asarray(targets.get(kind, y[:, None]), float)
    known[0] = np.nan
    found = evaluate_cases(_cases(outputs, known, task), n_resamples=20)
    (t,) = found.tasks
    assert (t.n, t.n_unknown) == (29, 1)
    assert next(iter(t.metrics)) == t.primary
    assert len(t.worst) == 12
    json.dumps(evaluation_json(found), allow_nan=False)
    assert "on 29 test slides of 29 patients" in sentence(found, t)


def test_an_unknown_label_leaves_its_own_question_only() -> None:
    """Multilabel: a slide with one unknown label still judges the others."""
    task = TaskSettings(name="t", kind="multilabel", classes=("a", "b"))
    y = np.array([[0, 0], [1, 1], [0, 1], [1, 0], [np.nan, 1]], float)
    (t,) = _quick(_cases(np.where(y == 1, 1.0, -1.0), y, task)).tasks
    assert {c.name: c.n for c in t.curves} == {"a": 4, "b": 5}
    assert t.n == 5


def test_perfect_order_is_not_called_certain() -> None:
    """Every resample the same figure: the interval has no width, and the remark says what that means."""
    found = _quick(_cases(np.arange(40) - 20.0, np.arange(40) >= 20))
    (t,) = found.tasks
    assert (t.headline.low, t.headline.high) == (1.0, 1.0)
    assert any("not certainty" in r for r in remarks(found, t))
    assert "1.00" in sentence(found, t)


def test_figures_are_never_rounded_up_to_perfect() -> None:
    """0.9996 is not 1.00, however few digits there are."""
    found = _quick(_noisy()).tasks[0].headline
    assert interval_text(found._replace(value=0.9996, low=0.991, high=1.0), 2) == "0.9996 (0.99 to 1.00)"
    assert interval_text(found._replace(value=0.999999, low=float("nan")), 2) == "0.9999"


def test_the_same_cases_give_the_same_evaluation() -> None:
    """Seeded resampling: two evaluations are equal to the last digit, another seed moves the interval."""
    table = _noisy()
    assert json.dumps(evaluation_json(_quick(table))) == json.dumps(evaluation_json(_quick(table)))
    assert _quick(table).tasks[0].headline != evaluate_cases(table, n_resamples=50, seed=1).tasks[0].headline


def test_every_interval_resamples_patients_and_not_slides() -> None:
    """Each patient's slide twice: not one interval becomes narrower, of a metric, site, curve or threshold."""
    once = _noisy(40, sites=("A", "A", "B", "B") * 10)
    twice = once.rows(np.repeat(np.arange(40), 2))
    twice = replace(twice, slide_ids=tuple(f"{s}_{i % 2}" for i, s in enumerate(twice.slide_ids)))
    (a,), (b,) = _quick(once).tasks, _quick(twice).tasks
    assert (a.n_patients, b.n, b.n_patients) == (40, 80, 40)

    def all_of(t: TaskEvaluation) -> list[Interval]:
        rates = [i for r in t.operating for i in (r.sensitivity, r.specificity, r.ppv, r.npv)]
        return [*t.metrics.values(), *(s.score for s in t.sites if s.score), *(c.auroc for c in t.curves), *rates]

    assert len(t := all_of(a)) > 20
    assert np.allclose([i[:3] for i in t], [i[:3] for i in all_of(b)], atol=1e-12, equal_nan=True)
