"""Does the map say what the label rests on? Curves of the call while tiles are taken away, or are all there is.

Deletion takes the first k selected tiles of an order out of the bag, insertion keeps them alone; attention is
renormalised, no substitute is admitted, and every number is the head's own answer for that bag. An order that means
something bends the curve away from random orders. Unselected tiles never enter (the label is not read from them).

Source: Samek et al., IEEE Trans. Neural Netw. Learn. Syst. 28(11), 2017 (region perturbation); Petsiuk et al., RISE,
BMVC 2018 (deletion and insertion). Shapes: m selected tiles, T tasks, O orders, C counts.
"""

from __future__ import annotations

import numpy as np

from wsi_ips.model.ensemble import Classifier
from wsi_ips.results import Faithfulness, Pooled
from wsi_ips.tasks import call_value, evidence_towards, split_outputs

__all__ = ["N_RANDOM", "measure_faithfulness", "removal_counts"]

N_RANDOM = 20  # random orders
_FIRST = 16  # counts 1, 2, ... so far; then powers of two


def removal_counts(m: int) -> np.ndarray:
    """Choose how many of m tiles are taken away: 1 to 16, then 32, 64, ..., and all m.

    >>> removal_counts(40).tolist()[-3:]
    [16, 32, 40]
    """
    powers = [2**j for j in range(5, 32) if 2**j < m]
    return np.array(sorted({*range(1, min(_FIRST, m) + 1), *powers, m} - {0}), dtype=np.int64)


def measure_faithfulness(
    classifier: Classifier, features: np.ndarray, context: Pooled | None, attention: np.ndarray, evidence: np.ndarray,
    outputs: np.ndarray,
) -> Faithfulness:  # fmt: skip
    """Measure deletion and insertion by attention, by evidence and in 20 random orders, the same for every slide.

    Args:
        classifier: whose head is asked.
        features: (m, D) float32 of the selected tiles.
        context: the pooled unselected tiles, for a model whose label uses them; they always stay.
        attention: (m, T), of the selected tiles.
        evidence: (m, P), of the selected tiles.
        outputs: (P,), the slide's logits.
    """
    tasks, m = classifier.settings.tasks, len(features)
    counts = removal_counts(m)
    random = np.random.default_rng(0)
    shared = [random.permutation(m) for _ in range(N_RANDOM)]
    whole, curves = [], {"deletion": [], "insertion": []}  # type: ignore[var-annotated]
    for t, task in enumerate(tasks):
        of = split_outputs(outputs, tasks)[t]
        towards = evidence_towards(split_outputs(evidence, tasks)[t], task, of)
        orders = [np.argsort(-attention[:, t], kind="stable"), np.argsort(-towards, kind="stable"), *shared]
        first = _first_of_each(orders, counts)  # (O, C, m)
        whole.append(call_value(of, task, of))
        for name, kept in (("deletion", ~first), ("insertion", first)):
            logits = classifier.label_subsets(features, kept.reshape(-1, m), context)
            values = call_value(split_outputs(logits, tasks)[t], task, of)
            curves[name].append(values.reshape(len(orders), len(counts)))
    names = ("attention", "evidence", *["random"] * N_RANDOM)
    deletion, insertion = (np.array(curves[name], np.float32) for name in ("deletion", "insertion"))
    return Faithfulness(names, counts, np.array(whole, np.float32), deletion, insertion)


def _first_of_each(orders: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Mark the first so many tiles of each order: (O, C, m) bool."""
    rank = np.argsort(np.stack(orders), axis=1)  # place of each tile in each order
    return rank[:, None, :] < counts[None, :, None]
