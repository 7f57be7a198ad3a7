"""Who learns, who decides, who judges: splits and folds by patient, from the manifest's columns or made here.

A split made here depends on the seed and on who is in the cohort, not on the order of rows: patients (with `by_site`
whole sites) are dealt out in the order of a hash of their name, each to the side that lacks its kind most.

Shapes: G groups that stay whole, S strata, F sides (or folds).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from wsi_ips.errors import ConfigError, ManifestError, Note
from wsi_ips.recipe import SplitSettings
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.strata import absent_notes, absent_problems, refuse_absent, size_notes, strata_of
from wsi_ips.training.targets import Cohort, Member

__all__ = ["make_cohort_split", "make_folds"]

_SIDES = ("train", "val", "test")
Sides = dict[str, list[Member]]


def make_cohort_split(
    members: Sequence[Member], tasks: tuple[TaskSettings, ...], split: SplitSettings, seed: int
) -> Cohort:
    """Divide the labelled slides: by the column `split` where it is filled, else by a stratified draw.

    Args:
        members: slides that are not excluded; those without any label are left out and counted.
        tasks: the first one's labels are spread evenly over the sides.
        split: shares, and whether sites stay whole.
        seed: of the draw.

    Raises:
        ManifestError: a patient (or site) on two sides, each named; a class absent from training or validation; too
            few patients or sites.
    """
    usable, notes = _labelled(members)
    sides: Sides = {side: [] for side in _SIDES}
    has_column = any(m.record.split for m in usable)
    for m in usable:
        if side := m.record.split if has_column else "train":
            sides[side].append(m)
    _refuse_leaks({"": sides}, split)
    if split.test_fraction > 0.0 and not sides["test"]:
        sides["test"], sides["train"] = _hold_out(sides["train"], tasks[0], split.test_fraction, split, f"{seed} test")
        notes.append(_made("test", sides["test"], split, seed))
    notes += _with_val(sides, tasks, split, f"{seed} val", seed)
    refuse_absent(sides, tasks)
    notes += [*absent_notes(sides, tasks), *size_notes(sides["train"], sides["val"], sides["test"], tasks)]
    return Cohort(tuple(sides["train"]), tuple(sides["val"]), tuple(sides["test"]), tuple(notes))


def make_folds(
    members: Sequence[Member], tasks: tuple[TaskSettings, ...], split: SplitSettings, seed: int
) -> list[Cohort]:
    """Divide the labelled slides for cross-validation; each slide is tested once, unless the manifest says otherwise.

    The manifest's columns `fold_<k>` (the side in fold k) win over `fold` (the number of the fold that tests the slide;
    empty is unused), these over folds made here. Slides that a filled column `split` calls test, or leaves empty, stay
    out of folds by number and of folds made here.

    Args:
        members: slides that are not excluded; those without any label are left out and counted.
        tasks: the first one's labels are spread evenly over the folds.
        split: how many folds, share of validation, and whether sites stay whole.
        seed: of the draws.

    Returns:
        One cohort a fold, `test` being what the fold holds out.

    Raises:
        ManifestError: as `make_cohort_split`, for every fold; fewer patients or sites than folds. ConfigError: one fold.
    """
    usable, notes = _labelled(members)
    has_sides = any(key != "fold" and side for m in usable for key, side in m.record.folds.items())
    if has_sides:
        folds = _folds_from_columns(usable)
    else:
        pool = usable
        if any(m.record.split for m in usable):
            pool = [m for m in usable if m.record.split in ("train", "val")]
            tests = [m for m in usable if m.record.split == "test"]
            _refuse_leaks({"": {"train or val": pool, "test": tests}}, split)  # they would be judged by models that know them
            n = len(usable) - len(pool)
            if n:
                notes.append(Note("E_SPLIT_MADE", f"{n} slides that 'split' calls test or unused are in no fold"))
        folds = _folds_from_numbers(pool) or _folds_made(pool, tasks[0], split, seed)
        if not any(m.record.folds.get("fold") for m in pool):
            what = "sites" if split.by_site else "patients"
            text = f"{len(folds)} folds made here: {len(pool)} slides, by {what[:-1]}, seed {seed}"
            notes.append(Note("E_SPLIT_MADE", text))
    if split.n_folds not in (0, len(folds)):
        notes.append(Note("E_FOLDS_UNUSED", f"{split.n_folds} folds were asked for, the manifest's columns name {len(folds)}: "
                          "the columns are followed"))  # fmt: skip
    _refuse_leaks(folds, split)
    own: dict[str, list[Note]] = {}
    for name, sides in folds.items():
        own[name] = [*_with_val(sides, tasks, split, f"{seed} {name}", seed, name), *absent_notes(sides, tasks, name)]
    absent = [text for name, sides in folds.items() for text in absent_problems(sides, tasks, name)]
    if absent:
        raise ManifestError(absent)
    judged = {m.record.slide_id: m for sides in folds.values() for m in sides["test"]}
    smallest = {side: min((s[side] for s in folds.values()), key=len) for side in ("train", "val")}
    notes += size_notes(smallest["train"], smallest["val"], list(judged.values()), tasks)
    return [
        Cohort(tuple(s["train"]), tuple(s["val"]), tuple(s["test"]), (*notes, *own[name]), name)
        for name, s in folds.items()
    ]


def _labelled(members: Sequence[Member]) -> tuple[list[Member], list[Note]]:
    """Leave out slides without a label, in an order that does not depend on the manifest's rows."""
    usable = sorted((m for m in members if m.is_labelled), key=lambda m: m.record.slide_id)
    notes = []
    if len(usable) < len(members):
        notes.append(Note("E_NO_LABEL", f"{len(members) - len(usable)} slides without a label are not used"))
    if not usable:
        raise ManifestError(["no slide has a label; fill the label column, or name another one"])
    if any(m.record.patient_is_default for m in usable):
        notes.append(Note("E_NO_PATIENT", "some rows name no patient: each such slide counts as a patient of its own, "
                          "and slides of one patient may land on two sides"))  # fmt: skip
    return usable, notes


def _made(side: str, members: Sequence[Member], split: SplitSettings, seed: int, fold: str = "") -> Note:
    name = (f"{fold}, " if fold else "") + {"val": "validation"}.get(side, side)
    by = "site" if split.by_site else "patient"
    return Note("E_SPLIT_MADE", f"{name} split made here: {len(members)} slides, by {by}, seed {seed}")


def _with_val(
    sides: Sides, tasks: tuple[TaskSettings, ...], split: SplitSettings, salt: str, seed: int, fold: str = ""
) -> list[Note]:
    """Draw the validation slides from the training slides where none are named."""
    if sides["val"]:
        return []
    sides["val"], sides["train"] = _hold_out(sides["train"], tasks[0], split.val_fraction, split, salt)
    return [_made("val", sides["val"], split, seed, fold)]


def _folds_from_columns(members: Sequence[Member]) -> dict[str, Sides]:
    keys = sorted({key for m in members for key in m.record.folds if key != "fold"}, key=_by_number)
    folds = {}
    for key in keys:
        sides: Sides = {side: [m for m in members if m.record.folds.get(key) == side] for side in _SIDES}
        folds[key.replace("_", " ", 1)] = sides
    empty = [f"column {key!r}: no slide in {side}; write {side} into some rows, or remove the column"
             for key, sides in zip(keys, folds.values(), strict=True)
             for side in ("train", "test") if not sides[side]]  # fmt: skip
    twice = Counter(m.record.slide_id for sides in folds.values() for m in sides["test"])
    again = [slide for slide, n in sorted(twice.items()) if n > 1]
    if again:
        listed = ", ".join(again[:8]) + (" .." if len(again) > 8 else "")
        empty.append(f"columns {', '.join(keys)}: {len(again)} slides are test in more than one fold ({listed}); each slide "
                     "judges once, so train repeated splits one by one, each with a column 'split'")  # fmt: skip
    if empty:
        raise ManifestError(empty)
    return folds


def _folds_from_numbers(members: Sequence[Member]) -> dict[str, Sides]:
    numbered = [(m, int(number)) for m in members if (number := m.record.folds.get("fold"))]
    folds: dict[str, Sides] = {}
    for k in sorted({number for _, number in numbered}):
        rest = [m for m, number in numbered if number != k]
        folds[f"fold {k}"] = {"train": rest, "val": [], "test": [m for m, number in numbered if number == k]}
    if len(folds) == 1:
        raise ManifestError([f"column 'fold': all slides are in {next(iter(folds))}; two folds are needed"])
    return folds


def _folds_made(members: Sequence[Member], task: TaskSettings, split: SplitSettings, seed: int) -> dict[str, Sides]:
    n = split.n_folds
    if n < 2:
        raise ConfigError(f"split.n_folds is {n}; cross-validation needs 2 or more, or a column 'fold' in the manifest")
    side = _deal(members, task, [1.0 / n] * n, split, f"{seed} folds")
    folds: dict[str, Sides] = {}
    for k in range(n):
        rest = [m for m, s in zip(members, side, strict=True) if s != k]
        folds[f"fold {k}"] = {"train": rest, "val": [],
                              "test": [m for m, s in zip(members, side, strict=True) if s == k]}  # fmt: skip
    return folds


def _hold_out(
    members: Sequence[Member], task: TaskSettings, fraction: float, split: SplitSettings, salt: str
) -> tuple[list[Member], list[Member]]:
    """Hold out a share: (held, rest)."""
    side = _deal(members, task, [fraction, 1.0 - fraction], split, salt)
    held, rest = ([m for m, s in zip(members, side, strict=True) if s == k] for k in (0, 1))
    return held, rest


def _deal(
    members: Sequence[Member], task: TaskSettings, shares: Sequence[float], split: SplitSettings, salt: str
) -> list[int]:
    """Give every slide a side 0 .. F-1, patients or sites whole.

    A group goes where it brings the counts of patients by stratum closest to the shares in the least-squares sense;
    groups of one patient end within one of their share in every stratum. Large groups first, equal ones by hash.
    """
    strata = strata_of(members, task)  # by patient
    groups = _groups(members, split)
    by_group: dict[str, set[str]] = defaultdict(set)
    for m in members:
        by_group[groups[m.record.patient_id]].add(m.record.patient_id)
    if len(by_group) < len(shares):
        what, cure = ("sites", ", or split without by_site") if split.by_site else ("patients", "")
        listed = ", ".join(sorted(by_group)[:8]) + (", ..." if len(by_group) > 8 else "")
        raise ManifestError([f"{len(by_group)} {what} ({listed}) cannot fill {len(shares)} folds or splits, for each stands in "
                             f"one only; ask for {len(by_group)} or fewer{cure}"])  # fmt: skip
    kinds = sorted(set(strata.values()))
    counts = {g: np.array([sum(strata[p] == k for p in patients) for k in kinds]) for g, patients in by_group.items()}
    total = np.sum(list(counts.values()), axis=0)
    wanted = np.outer(shares, total)  # (F, S)
    if len(shares) == 2:  # a kind that has two patients has one on either side
        wanted[0] = np.where(total >= 2, np.clip(wanted[0], 1.0, np.maximum(total - 1.0, 1.0)), wanted[0])
        wanted[1] = total - wanted[0]
    order = sorted(by_group, key=lambda g: (-len(by_group[g]), int(np.argmax(counts[g])), _hash(salt, g)))
    side: dict[str, int] = {}
    have = np.zeros_like(wanted)
    for i, g in enumerate(order):
        lack = wanted - have
        cost = ((counts[g] ** 2 - 2.0 * counts[g] * lack) / np.maximum(total, 1)).sum(axis=1)
        cost -= 1e-6 * lack.sum(axis=1)  # among equals the side that lacks most of all kinds
        empty = [f for f in range(len(shares)) if not have[f].any()]
        allowed = empty if len(order) - i <= len(empty) else range(len(shares))
        side[g] = min(allowed, key=lambda f: (round(float(cost[f]), 12), f))
        have[side[g]] += counts[g]
    return [side[groups[m.record.patient_id]] for m in members]


def _groups(members: Sequence[Member], split: SplitSettings) -> dict[str, str]:
    """Name the group of every patient: itself, or with `by_site` its site (sites that share a patient are one)."""
    if not split.by_site:
        return {m.record.patient_id: m.record.patient_id for m in members}
    _refuse_no_site(members)
    root = {m.record.site: m.record.site for m in members}
    first: dict[str, str] = {}

    def top(site: str) -> str:
        while root[site] != site:
            site = root[site]
        return site

    for m in members:
        a, b = sorted((top(m.record.site), top(first.setdefault(m.record.patient_id, m.record.site))))
        root[b] = a
    return {patient: top(site) for patient, site in first.items()}


def _refuse_no_site(members: Sequence[Member]) -> None:
    without = [m.record.slide_id for m in members if not m.record.site]
    if without:
        listed = ", ".join(without[:8]) + (" .." if len(without) > 8 else "")
        raise ManifestError(
            [f"{len(without)} slides name no site ({listed}); fill column 'site', or set by_site false"]
        )


def _refuse_leaks(folds: Mapping[str, Sides], split: SplitSettings) -> None:
    """Refuse a patient, or with `by_site` a site, on two sides of a split; all of them are named."""
    keys: list[tuple[str, Callable[[Member], str]]] = [("patient", lambda m: m.record.patient_id)]
    if split.by_site:
        _refuse_no_site([m for sides in folds.values() for side in sides.values() for m in side])
        keys.append(("site", lambda m: m.record.site))
    leaks: dict[str, None] = {}
    for name, sides in folds.items():
        for what, key in keys:
            where: dict[str, set[str]] = defaultdict(set)
            for side, members in sides.items():
                for m in members:
                    where[key(m)].add(side)
            place = f"{name}: " if name else ""
            for k, s in sorted(where.items()):
                if len(s) > 1:
                    leaks[f"{place}{what} {k}: slides in {' and '.join(sorted(s))}; a {what} belongs on one side"] = (
                        None
                    )
    if leaks:
        raise ManifestError(leaks)


def _by_number(text: str) -> tuple[int, str]:
    digits = re.search(r"(\d+)$", text)
    return (int(digits[1]) if digits else 10**9, text)


def _hash(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}\n{name}".encode()).hexdigest()
