"""What an answer owes to the order and the chunks in which tiles came: exact selection, and the paper's loop beside it.

    python tests/benchmarks/bench_order.py MODEL --data MNIST --canvases 300

MODEL is a bundle of pipelines/megapixel_mnist.py. Every canvas is labelled in every way by the same weights, tiles through an
encoder batch of one shape. Held against the first way, raster order in chunks of M: on how many canvases other tiles are
chosen, on how many an answer is another, and how far a probability moves at most. Exact selection is to show 0 in every
column, to the last bit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

BATCH = 16  # of the encoder, whatever the chunk


class Way(NamedTuple):
    """How the tiles of a canvas come."""

    chunk: int
    order: str  # raster, reversed or shuffled


def label(classifier: Any, tiles: np.ndarray, way: Way, number: int) -> dict[str, tuple[list[int], np.ndarray]]:
    """Label one canvas: for both modes the chosen rows, rising, and (40,) float32 logits."""
    from wsi_ips.model.selector import StreamingSelector

    n, m = len(tiles), classifier.settings.selection.memory_size
    rows = {"raster": np.arange(n), "reversed": np.arange(n)[::-1].copy(), "shuffled": np.random.default_rng(number).permutation(n)}[way.order]
    features = np.empty((n, classifier.dim), np.float32)
    found = {}
    for mode in ("exact", "ips"):
        selector = StreamingSelector(n, m, mode=mode, chunk_size=way.chunk)
        for start in range(0, n, way.chunk):
            some = rows[start : start + way.chunk]
            scan = classifier.scan(tiles[some], BATCH, some)
            features[some] = scan.features
            selector.add(some, scan.features, scan.logits)
        chosen = np.sort(selector.finish().rows)
        found[mode] = chosen.tolist(), classifier.read_out(features[chosen]).outputs
    return found


def table(found: dict[Way, list[dict[str, tuple[list[int], np.ndarray]]]], right: dict[Way, dict[str, np.ndarray]]) -> str:
    """Write what differs from the first way."""
    first, *_ = found
    lines = ["| chunk | order | selection | other tiles, % of canvases | other answers, % | probability moves by | majority right, % |", f"|{'---|' * 7}"]
    for way, canvases in found.items():
        for mode in ("exact", "ips"):
            pairs = [(a[mode], b[mode]) for a, b in zip(found[first], canvases, strict=True)]
            tiles = np.mean([a[0] != b[0] for a, b in pairs])
            answers = np.mean([not np.array_equal(_answers(a[1]), _answers(b[1])) for a, b in pairs])
            moved = max(float(np.abs(_probabilities(a[1]) - _probabilities(b[1])).max()) for a, b in pairs)
            is_same = all(a[0] == b[0] and a[1].tobytes() == b[1].tobytes() for a, b in pairs)
            lines.append(f"| {way.chunk} | {way.order} | {'paper' if mode == 'ips' else mode} | {100 * tiles:.1f} | {100 * answers:.1f} | "
                         f"{'0, every bit' if is_same else f'{moved:.3f}'} | {100 * right[way][mode].mean():.1f} |")  # fmt: skip
    return "\n".join(lines)


def _probabilities(outputs: np.ndarray) -> np.ndarray:
    z = np.asarray(outputs, np.float64).reshape(4, 10)
    soft = np.exp(z[:3] - z[:3].max(axis=1, keepdims=True))
    return np.concatenate([(soft / soft.sum(axis=1, keepdims=True)).ravel(), 1 / (1 + np.exp(-z[3]))])


def _answers(outputs: np.ndarray) -> np.ndarray:
    z = np.asarray(outputs).reshape(4, 10)
    return np.concatenate([z[:3].argmax(axis=1), z[3] >= 0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's training images and labels")
    parser.add_argument("--canvases", type=int, default=300)
    parser.add_argument("--canvas-px", type=int, default=600)
    parser.add_argument("--noise", type=int, default=8)
    a = parser.parse_args()
    from megapixel_mnist import is_right, make_parts
    from mnist_canvases import Rules, read_digits

    from wsi_ips import load_bundle

    canvases = make_parts(read_digits(a.data, "train"), Rules(canvas_px=a.canvas_px, n_noise=a.noise), None).test
    classifier = load_bundle(a.model).single
    side, m = classifier.settings.tile.size_px, classifier.settings.selection.memory_size
    across = a.canvas_px // side
    ways = [Way(chunk, order) for chunk in (m, m // 3, 2 * m, across**2) for order in ("raster", "reversed", "shuffled")]
    found: dict[Way, list[Any]] = {way: [] for way in ways}
    right: dict[Way, dict[str, Any]] = {way: {"exact": [], "ips": []} for way in ways}
    for number in range(a.canvases):
        with canvases.slide(number) as slide:
            pixels = slide.read_region(0, 0, 0, across * side, across * side).pixels
        tiles = pixels.reshape(across, side, across, side, -1).transpose(0, 2, 1, 3, 4).reshape(across**2, side, side, -1)
        for way in ways:
            found[way].append(label(classifier, np.ascontiguousarray(tiles), way, number))
            for mode, (_, outputs) in found[way][-1].items():
                right[way][mode].append(is_right(outputs, canvases[number])[0])
    print(f"{a.canvases} canvases of {a.canvas_px} px, {across**2} tiles, M = {m}\n")
    print(table(found, {way: {mode: np.array(some) for mode, some in modes.items()} for way, modes in right.items()}))


if __name__ == "__main__":
    main()
