"""Label cells into tasks and targets; what cannot be learned from is refused, all of it at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.manifest import Manifest, SlideRecord, load_manifest
from wsi_ips.recipe import SplitSettings
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.cohort import members_of, resolve_tasks, tasks_of
from wsi_ips.training.splits import make_folds


def _manifest(cells: Mapping[str, Iterable[str]]) -> Manifest:
    """A manifest with these label columns; rows from line 2."""
    rows = list(zip(*cells.values(), strict=True))
    records = tuple(
        SlideRecord(f"s{i}", f"/x/s{i}.svs", f"p{i}", labels=dict(zip(cells, row, strict=True)), row=i + 2)
        for i, row in enumerate(rows)
    )
    return Manifest(records, Path("m.csv"), ("slide_id", *cells), "0")


def _problems(cells: Mapping[str, Iterable[str]], *asked: TaskSettings) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        resolve_tasks(_manifest(cells), asked)
    return caught.value.problems


def test_two_labels_make_a_binary_task_in_stated_order() -> None:
    """Sorted by default, and as asked otherwise; the last class is the positive one."""
    manifest = _manifest({"label": ["tumor", "normal", "tumor", ""]})
    assert tasks_of(manifest, ["label"])[0].classes == ("normal", "tumor")
    asked = tasks_of(manifest, ["label"], {"label": ("tumor", "normal")})[0]
    assert (asked.kind, asked.classes) == ("binary", ("tumor", "normal"))


def test_numbers_are_ordered_by_value_and_numbered_names_by_number() -> None:
    """Grade 10 comes after grade 9, G10 after G9."""
    manifest = _manifest({"a": ["10", "9", "2"], "b": ["G10", "G9", "G2"]})
    one, two = tasks_of(manifest, ["a", "b"], kinds={"b": "ordinal"})
    assert (one.kind, one.classes) == ("multiclass", ("2", "9", "10"))
    assert (two.kind, two.classes) == ("ordinal", ("G2", "G9", "G10"))


def test_ordinal_words_need_their_order_said() -> None:
    """Letters do not tell that low is below medium; a stated order is taken."""
    manifest = _manifest({"risk": ["low", "medium", "high"]})
    with pytest.raises(ManifestError, match="the order of high, low, medium cannot be told"):
        tasks_of(manifest, ["risk"], kinds={"risk": "ordinal"})
    order = ("low", "medium", "high")
    assert tasks_of(manifest, ["risk"], {"risk": order}, {"risk": "ordinal"})[0].classes == order


def test_fault_054_a_label_that_is_no_class_is_named_with_line_count_and_cure() -> None:
    """One sentence for all rows that hold it."""
    manifest = _manifest({"label": ["tumour", "normal", "tumour"]})
    with pytest.raises(ManifestError) as caught:
        tasks_of(manifest, ["label"], {"label": ("normal", "tumor")})
    assert caught.value.problems == (
        "m.csv: line 2, column 'label': 'tumour' is none of the classes normal, tumor; did you mean 'tumor'? "
        "(and 1 more row)",
    )


@pytest.mark.parametrize(
    ("cells", "kind", "text"),
    [
        (["tumor", "tumor"], "multiclass", "column 'label': learning needs two classes, found tumor"),
        (["", ""], "binary", "learning needs two classes, found no label"),
        (["a", "b", "c"], "binary", "kind binary has two classes, found 3"),
        (["a", "b", "NA"], "multiclass", "line 4, column 'label': 'NA' looks like a gap"),
        (["Tumor", "tumor", "x"], "multiclass", "'Tumor' and 'tumor' look like one class"),
        (["1", "1.0", "0"], "multiclass", "'1' and '1.0' look like one class"),
        ([f"{i}.5" for i in range(31)], "multiclass", "31 different numbers"),
        (["", "-", "none"], "multilabel", "learning needs a class, found no label"),
        (["a;none", "b"], "multilabel", "'none' stands for no class"),
        (["3", "3"], "regression", "needs two different numbers in training, found 3 only"),
    ],
)
def test_fault_054_columns_that_cannot_be_learned_from_are_refused(cells: list[str], kind: str, text: str) -> None:
    """The message names what was found and the cure."""
    assert text in "\n".join(_problems({"label": cells}, TaskSettings(kind=kind)))  # type: ignore[arg-type]


def test_every_problem_of_every_task_is_told_at_once() -> None:
    """Four bad cells in three columns: four sentences with line and column."""
    cells = {"age": ["51", "old", "1,234", "60"], "months": ["5", "-2", "7", "8"], "dead": ["1", "0", "yes", "1"]}
    survival = TaskSettings(name="s", kind="survival", column="months", event_column="dead")
    problems = _problems(cells, TaskSettings(name="age", kind="regression"), survival)
    places = [p.split(": ")[1] for p in problems]
    assert sorted(places) == [
        "line 3, column 'age'",
        "line 3, column 'months'",
        "line 4, column 'age'",
        "line 4, column 'dead'",
    ]
    assert any("'1,234' could be 1234 or 1.234" in p for p in problems)
    assert any("write 1 for seen, 0 for not seen" in p for p in problems)


def test_half_a_survival_is_refused() -> None:
    """A time without an event is neither known nor unknown."""
    task = TaskSettings(kind="survival", column="months", event_column="dead")
    problems = _problems({"months": ["5", "6", ""], "dead": ["1", "", "1"]}, task)
    assert "line 3, column 'dead': is empty while 'months' is filled" in problems[0]
    assert "line 4, column 'months': is empty while 'dead' is filled" in problems[1]


def test_a_column_that_was_not_read_is_named() -> None:
    """A task's column must be there, and survival must name two."""
    assert (
        "column 'grade': no such column to take labels from; found: slide_id, label"
        in _problems({"label": ["a", "b"]}, TaskSettings(name="grade", kind="ordinal"))[0]
    )
    assert "--event label=COLUMN" in _problems({"label": ["1", "2"]}, TaskSettings(kind="survival"))[0]


def test_two_tasks_of_one_name_are_refused() -> None:
    """Outputs are told apart by task name."""
    assert "there are 2 tasks named 'label'" in _problems({"label": ["a", "b"]}, TaskSettings(), TaskSettings())[0]


def test_classes_that_a_kind_cannot_have_are_a_config_error() -> None:
    """Three classes do not make a binary task."""
    with pytest.raises(ConfigError, match="is binary and has 3 classes"):
        tasks_of(_manifest({"label": ["a", "b"]}), ["label"], {"label": ("a", "b", "c")}, {"label": "binary"})


def test_targets_of_each_kind() -> None:
    """Class number, 0 or 1 a label, value with a decimal comma, time and event; NaN where the cell is empty."""
    manifest = _manifest({
        "y": ["b", "a", ""], "set": ["q; p", "-", ""], "v": ["2,5", "1e1", ""], "t": ["3", "0", ""], "e": ["1.0", "FALSE", ""],
    })  # fmt: skip
    kinds = {"set": "multilabel", "v": "regression", "t": "survival"}
    tasks = tasks_of(manifest, ["y", "set", "v", "t"], kinds=kinds, events={"t": "e"})  # type: ignore[arg-type]
    assert [t.kind for t in tasks] == ["binary", "multilabel", "regression", "survival"]
    assert (tasks[2].center, tasks[3].cuts) == (0.0, ())  # these wait for the training slides
    tasks = resolve_tasks(manifest, tasks)
    assert tasks[2].center == 6.25
    first, second, third = members_of(manifest, tasks)
    assert first.targets == (1.0, 1.0, 1.0, 2.5, 3.0, 1.0)
    assert second.targets == (0.0, 0.0, 0.0, 10.0, 0.0, 0.0)
    assert all(math.isnan(t) for t in third.targets)
    assert len(third.targets) == 6
    assert [m.is_labelled for m in (first, second, third)] == [True, True, False]


def test_intervals_are_cut_by_seen_events_of_training_alone() -> None:
    """Quantiles of the events at 1 .. 8 of the records given; censored times and other slides have no part."""
    times = [*map(str, range(1, 9)), "900", "1000"]
    manifest = _manifest({"t": times, "e": ["1"] * 8 + ["0", "1"]})
    asked = TaskSettings(kind="survival", column="t", event_column="e", n_intervals=4)
    (task,) = resolve_tasks(manifest, [asked], manifest.records[:9])
    assert task.cuts == (2.75, 4.5, 6.25)
    assert task.classes == ("0-2.75", "2.75-4.5", "4.5-6.25", "6.25 or later")
    (leaky,) = resolve_tasks(manifest, [asked])
    assert leaky.cuts != task.cuts


def test_intervals_that_were_set_stay_and_are_named() -> None:
    """Cuts at 12 and 24 months give three names."""
    manifest = _manifest({"t": ["1", "2"], "e": ["1", "0"]})
    (task,) = resolve_tasks(manifest, [TaskSettings(kind="survival", column="t", event_column="e", cuts=(12.0, 24.0))])
    assert task.classes == ("0-12", "12-24", "24 or later")


def test_cuts_that_fall_together_are_one_and_no_event_is_refused() -> None:
    """Ties make fewer intervals; without a seen event there is nothing to cut by."""
    asked = TaskSettings(kind="survival", column="t", event_column="e")
    (task,) = resolve_tasks(_manifest({"t": ["5", "5", "5", "9"], "e": ["1", "1", "1", "0"]}), [asked])
    assert (task.cuts, task.classes) == ((5.0,), ("0-5", "5 or later"))
    assert "needs seen events after time 0" in _problems({"t": ["5", "0"], "e": ["0", "1"]}, asked)[0]


def test_scale_of_a_regression_comes_from_training_alone() -> None:
    """Mean and standard deviation of the records given; what was set stays."""
    manifest = _manifest({"v": ["1", "3", "", "1000"]})
    (task,) = resolve_tasks(manifest, [TaskSettings(name="v", kind="regression")], manifest.records[:3])
    assert (task.center, task.spread) == (2.0, 1.0)
    (kept,) = resolve_tasks(manifest, [TaskSettings(name="v", kind="regression", center=50.0, spread=10.0)])
    assert (kept.center, kept.spread) == (50.0, 10.0)


def test_tasks_do_not_depend_on_the_order_of_rows() -> None:
    """Bit for bit the same classes, cuts and scale after a shuffle."""
    rng = np.random.default_rng(0)
    cells = {"v": [f"{x:.3f}" for x in rng.normal(3.0, 1.0, 40)], "e": ["1"] * 40, "c": [str(i % 3) for i in range(40)]}
    order = rng.permutation(40)
    shuffled = {name: [column[i] for i in order] for name, column in cells.items()}
    asked = [TaskSettings(name="v", kind="regression"), TaskSettings(name="c", kind="multiclass"),
             TaskSettings(name="s", kind="survival", column="v", event_column="e")]  # fmt: skip
    assert resolve_tasks(_manifest(cells), asked) == resolve_tasks(_manifest(shuffled), asked)


def test_excluded_rows_name_no_class_and_have_no_targets() -> None:
    """A row the manifest excludes has no part in anything."""
    manifest = _manifest({"label": ["a", "b", "c"]})
    out = SlideRecord("x", "/x.svs", "px", labels={"label": "c"}, is_excluded=True, row=9)
    manifest = Manifest((*manifest.records[:2], out), Path("m.csv"), (), "0")
    tasks = tasks_of(manifest, ["label"])
    assert tasks[0].classes == ("a", "b")
    assert len(members_of(manifest, tasks)) == 2


def test_a_file_goes_all_the_way_to_targets_and_folds(tmp_path: Path) -> None:
    """Columns as people write them: time and event in two label columns, sides in fold columns."""
    path = tmp_path / "m.csv"
    rows = "".join(f"s{i}.svs,p{i},{i + 1},{int(i % 2 == 0)},{('train', 'val', 'test')[i % 3]}\n" for i in range(12))
    path.write_text("slide_path,case_id,Months,Dead,fold_0\n" + rows + "s99.svs,p99,,,train\n")
    asked = TaskSettings(name="survival", kind="survival", column="Months", event_column="Dead", n_intervals=2)
    manifest = load_manifest(path, label_columns=asked.columns, check_files=False)
    tasks = resolve_tasks(manifest, [asked])
    (fold,) = make_folds(members_of(manifest, tasks), tasks, SplitSettings(), seed=0)
    assert sorted(m.targets for m in fold.test) == [(3.0, 1.0), (6.0, 0.0), (9.0, 1.0), (12.0, 0.0)]
    (final,) = resolve_tasks(manifest, [asked], [m.record for m in fold.train])
    assert final.cuts == (4.0,)  # seen events of rows 0, 3, 6, 9: at 1 and 7 months
    assert "E_NO_LABEL" in [n.code for n in fold.notes]


def test_a_mistyped_kind_is_guessed(tmp_path: Path) -> None:
    """The option, the column and the nearest kind are named."""
    (tmp_path / "m.csv").write_text("slide_path,label\na.svs,1\nb.svs,2\n")
    manifest = load_manifest(tmp_path / "m.csv", check_files=False)
    with pytest.raises(ConfigError, match=r"--kind label=ordnal: no such kind of task; did you mean 'ordinal'\?"):
        tasks_of(manifest, ("label",), kinds={"label": "ordnal"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="there are binary, multiclass"):
        tasks_of(manifest, ("label",), kinds={"label": "xyz"})  # type: ignore[dict-item]
