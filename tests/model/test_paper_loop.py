"""The package against the published loop: mode `ips` is that loop to the last index; mode `exact` does not depend on how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_ips import PlainIPS

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.selector import Selection, StreamingSelector
from wsi_ips.tasks import probabilities, split_outputs
from wsi_ips.training.start import build_classifier

N, TEN = 83, [str(k) for k in range(10)]
TASKS = [{"name": n, "kind": "multiclass", "classes": TEN} for n in ("majority", "max", "top")]
KINDS = ["softmax", "softmax", "softmax", "sigmoid"]


def _settings(positions: int | None) -> ModelSettings:
    return load_settings(ModelSettings, {
        "encoder": {"name": "resnet18", "weights": "none", "stages": 2, "in_channels": 1, "kwargs": {"channels": [8, 16, 8, 8]}},
        "attention": {"dim": None, "n_heads": 4, "positions": positions},
        "tile": {"size_px": 32, "mpp": 1.0},
        "tasks": [*TASKS, {"name": "multi", "kind": "multilabel", "classes": TEN}],
    })  # fmt: skip


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    """Tiles of noise of different strength, so that no two score alike: (N, 32, 32, 1)."""
    rng = np.random.default_rng(4)
    drawn = rng.integers(0, 256, (N, 32, 32, 1)) * np.linspace(0.1, 1.0, N)[rng.permutation(N), None, None, None]
    return torch.from_numpy(drawn.astype(np.uint8))


def _models(positions: int | None) -> tuple[IPSClassifier, PlainIPS]:
    """The same weights twice, in float64; attention sharp enough that heads disagree."""
    classifier = build_classifier(_settings(positions), seed=2).double().eval()
    with torch.no_grad():
        classifier.attention.query.mul_(8.0)
        for name, p in classifier.encoder.net.named_parameters():
            if name.endswith("bn2.weight"):
                p.fill_(1.0)  # timm starts the last norm of a block at zero
    state = classifier.state_dict()
    weights = {k.removeprefix("attention."): v for k, v in state.items() if k.startswith(("attention.", "heads."))}
    net, mean, std = classifier.encoder.net, state["encoder.mean"], state["encoder.std"]

    def encode(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return net((x.double().permute(0, 3, 1, 2) / 255.0 - mean) / std)

    return classifier, PlainIPS(weights, 4, encode, _sinusoids(positions))


def _sinusoids(n: int | None) -> torch.Tensor | None:
    """sin and cos of row / 10000^(2 k / D) in turn."""
    if n is None:
        return None
    rows = [[(np.sin, np.cos)[c % 2](r / 10_000 ** (c // 2 * 2 / 16)) for c in range(16)] for r in range(n)]
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize("positions", [None, N], ids=["no places", "places"])
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize(("m", "i"), [(20, 20), (7, 13), (30, 53), (N, 10), (N + 5, 10)])
def test_the_published_loop_chunk_by_chunk(tiles: torch.Tensor, m: int, i: int, shuffled: bool, positions: int | None) -> None:
    """The same weights and order give the same memory after every chunk, the last one ragged, and the same four answers."""
    classifier, plain = _models(positions)
    order = np.random.default_rng(1).permutation(N) if shuffled else np.arange(N)
    scan = classifier.scan(tiles, 16, np.arange(N))
    selector = StreamingSelector(N, m, mode="ips", chunk_size=i)
    ends = [min(m, N), *range(min(m, N) + i, N, i), *([N] if m < N else [])]
    memories = []
    for start, stop in zip([0, *ends], ends, strict=False):
        rows = order[start:stop]
        selector.add(rows, scan.features[rows], scan.logits[rows])
        memories.append(set(selector.memory.tolist()))
    if m < N and (N - m) % i:
        selector.finish()  # a last chunk that is not full waits for the end
        memories[-1] = set(selector.memory.tolist())
    wanted = [set(rows.tolist()) for rows in plain.memories(tiles, m, i, torch.from_numpy(order))]
    assert memories[-len(wanted) :] == wanted
    assert len(memories) == len(wanted) + (m < N)  # ours also tells of the first M

    whole = StreamingSelector(N, m, mode="ips", chunk_size=i, order=order)  # any order of adding, the loop over the ledger
    whole.add(np.arange(N), scan.features, scan.logits)
    chosen = whole.finish()
    assert set(chosen.rows.tolist()) == wanted[-1]
    answers = plain.predict(tiles, torch.from_numpy(chosen.rows), KINDS)
    for ours, theirs in zip(_answers(classifier, chosen, scan.features), answers, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-5


def _answers(classifier: IPSClassifier, chosen: Selection, features: np.ndarray) -> list[np.ndarray]:
    outputs = classifier.read_out(features[chosen.rows]).outputs.astype(np.float64)
    tasks = classifier.settings.tasks
    return [probabilities(z, t) for z, t in zip(split_outputs(outputs, tasks), tasks, strict=True)]


def _select(classifier: IPSClassifier, tiles: torch.Tensor, mode: str, chunk: int, order: np.ndarray) -> tuple[list[int], bytes]:
    """Stream in some order and chunking through an encoder batch of one shape: rows, and the bits of the logits."""
    selector = StreamingSelector(N, 20, mode=mode, chunk_size=chunk)  # type: ignore[arg-type]
    kept = {}
    for start in range(0, N, chunk):
        rows = order[start : start + chunk]
        found = classifier.scan(tiles[torch.from_numpy(rows)], 16, rows)
        selector.add(rows, found.features, found.logits)
        kept |= dict(zip(rows.tolist(), found.features, strict=True))
    chosen = selector.finish()
    return chosen.rows.tolist(), classifier.read_out(np.stack([kept[r] for r in chosen.rows.tolist()])).outputs.tobytes()


def test_exact_selection_depends_on_no_chunk_and_no_order_where_the_published_loop_does(tiles: torch.Tensor) -> None:
    """With one shape of the encoder's batch the exact answer is the same to the last bit; the loop's is not."""
    classifier = _models(N)[0].float()
    shuffled = np.random.default_rng(3).permutation(N)
    ways = [(c, order) for c in (5, 20, 83) for order in (np.arange(N), np.arange(N)[::-1].copy(), shuffled)]
    found = {mode: [_select(classifier, tiles, mode, *way) for way in ways] for mode in ("exact", "ips")}
    assert all(one == found["exact"][0] for one in found["exact"])
    assert len({tuple(sorted(rows)) for rows, _ in found["ips"]}) > 1
    assert len({bits for _, bits in found["ips"]}) > 1
