"""How stable a label is, in sentences."""

from __future__ import annotations

from wsi_ips.refined import Change, Stability, TaskChange
from wsi_ips.report.readout import shown_number

__all__ = ["stability_sentences"]


def stability_sentences(found: Stability) -> list[str]:
    """Say what each change did to each task, one sentence each, in the order of the changes."""
    return [_sentence(change, task) for change in found.changes for task in change.tasks]


def _sentence(change: Change, task: TaskChange) -> str:
    size = "half a tile" if change.strength == 0.5 else f"{change.strength:g} tile widths"
    what = f"Shifting the grid by {size}" if change.kind == "shift" else f"Changing the stain by up to {100 * change.strength:.0f} %"
    before, after = _number(task, task.before), _number(task, task.after)
    did = f"leaves the {task.said} at {before}" if before == after else f"changes the {task.said} from {before} to {after}"
    is_itself = task.said.startswith("predicted ")  # a regression's call is the number
    call = "" if is_itself or task.called_before == task.called_after else f" and the call from {task.called_before} to {task.called_after}"
    maps = "one of the attention maps is constant, so they cannot be compared"
    if task.rank_correlation is not None:
        maps = f"the attention maps agree with a rank correlation of {task.rank_correlation:.2f}"
    return f"{what} {did}{call}; {maps}."


def _number(task: TaskChange, value: float) -> str:
    if not task.said.startswith("probability"):
        return shown_number(value)
    return f"{value:.2f}" if 0.005 <= value < 0.995 else f"{value:.4f}"  # 1.00 would claim certainty
