"""Label every slide of a manifest with a trained bundle.

    python pipelines/classify_slides.py slides.csv --model model --out run --config pipelines/configs/classify.yaml

In: a manifest (data_manifests/README.md) and a bundle. Out: a run folder with predictions.csv, patients.csv, index.html
and, for each slide, ledger, overlay and page. A second start goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import sys

from wsi_ips import ClassifyOptions, ReadSettings, WsiIpsError, classify, exit_status, load_manifest, load_settings


def main() -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="CSV or .xlsx with a column slide_path")
    parser.add_argument("--model", required=True, help="bundle (folder)")
    parser.add_argument("--out", required=True, help="run folder")
    parser.add_argument("--config", help="YAML with read settings that differ from the defaults")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="auto", help="what encodes tiles: auto, torch, openvino, module")
    parser.add_argument("--profile", action="store_true", help="say at the end where the time went, and what limits")
    arguments = parser.parse_args()
    try:
        read = load_settings(ReadSettings, arguments.config)
        options = ClassifyOptions(device=arguments.device, engine=arguments.engine, read=read, profile=arguments.profile)
        summary = classify(load_manifest(arguments.manifest), arguments.model, arguments.out, options)
    except WsiIpsError as error:
        print(error, file=sys.stderr)
        return exit_status(error)
    print(summary.text())
    return int(summary.has_failures)


if __name__ == "__main__":
    sys.exit(main())
