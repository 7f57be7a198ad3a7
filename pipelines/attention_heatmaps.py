"""Attention heatmap of one slide, in a few lines of Python: the pieces a notebook would use.

    python pipelines/attention_heatmaps.py slide.svs --model model --out slide.png
    python pipelines/attention_heatmaps.py RUN            redraws all overlays of a finished run, without the model

In: a slide and a bundle, or a run folder. Out: a PNG with attention over the slide, colour bar and scale bar.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wsi_ips import (
    DrawOptions,
    PredictJob,
    SlidePrediction,
    WsiIpsError,
    exit_status,
    load_bundle,
    open_cache,
    open_slide,
    overlay_png,
    predict_slide,
    redraw_run,
)


def draw_slide(path: str, model: str, out: Path, mpp: float | None) -> SlidePrediction:
    """Label a slide and draw its attention."""
    bundle = load_bundle(model)
    with open_slide(path, mpp, icc=bundle.settings.icc) as slide:
        prediction = predict_slide(slide, bundle, PredictJob(slide_id=Path(path).stem), cache=open_cache())
        out.write_bytes(overlay_png(slide, prediction))
    return prediction


def main() -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a slide, or the run folder of classify")
    parser.add_argument("--model", help="bundle (folder), for a slide")
    parser.add_argument("--out", type=Path, help="PNG to write, for a slide")
    parser.add_argument("--mpp", type=float, help="µm per level-0 px, for a slide that does not say")
    parser.add_argument("--scale", default="uniform", choices=["uniform", "percentile"], help="for a run folder")
    arguments = parser.parse_args()
    try:
        if (Path(arguments.source) / "run.json").is_file():
            counts = redraw_run(arguments.source, options=DrawOptions(scale=arguments.scale))
            print(f"{counts.drawn} slides drawn, {counts.failed} could not be")
            return int(counts.failed > 0)
        if not arguments.model or not arguments.out:
            parser.error("a slide needs --model and --out")
        prediction = draw_slide(arguments.source, arguments.model, arguments.out, arguments.mpp)
    except WsiIpsError as error:
        print(error, file=sys.stderr)
        return exit_status(error)
    print(f"{prediction.n_tiles} tiles, {len(prediction.selected)} used for the label; see {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
