"""Finetune a classifier on a cohort of labelled slides, from pixels.

    python pipelines/finetune_cohort.py cohort.csv --out model --config pipelines/configs/finetune.yaml

In: a manifest with labels, patients and, if you have one, a split (data_manifests/README.md). Out: a bundle with a
model card, and beside it a folder with checkpoints, cases and the report. Slides of split `test` are read once, at the
end. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wsi_ips import FinetuneOptions, WsiIpsError, exit_status, finetune_manifest, load_manifest


def main() -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="CSV or .xlsx with columns slide_path, patient_id and labels")
    parser.add_argument("--out", required=True, help="bundle (folder) to write")
    parser.add_argument("--config", type=Path, help="YAML with settings that differ from the defaults")
    parser.add_argument("--label", nargs="+", default=["label"], help="label columns, one task each")
    parser.add_argument("--folds", type=int, help="cross-validate in so many folds")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    columns = tuple(arguments.label)
    try:
        manifest = load_manifest(arguments.manifest, label_columns=columns)
        options = FinetuneOptions(label_columns=columns, settings=arguments.config, folds=arguments.folds,
                                  device=arguments.device)  # fmt: skip
        print(finetune_manifest(manifest, arguments.out, options).text())
    except WsiIpsError as error:
        print(error, file=sys.stderr)
        return exit_status(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
