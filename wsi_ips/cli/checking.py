"""The command that checks a run's files against their records: audit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi_ips.engine.audit import AuditReport

_MOST_LINES = 200  # of a list; --json holds all


def audit(
    run: Annotated[Path, typer.Argument(help="run folder of classify")],
    strict: Annotated[
        bool, typer.Option("--strict", help="read slides whole that the run knows by all their bytes")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="also write everything found to this file, outside the run folder")] = None,
) -> None:
    """A run folder in; out to stdout: files that do not hold, and what would differ if the run were made again. Writes nothing into it.

    Exit status 0: everything holds. 1: something does not. 2: the folder is not a run.
    """
    from wsi_ips.engine.audit import audit_run
    from wsi_ips.engine.auditreport import report_json, report_lines
    from wsi_ips.errors import ConfigError
    from wsi_ips.files import write_whole

    if json is not None and run.resolve() in json.resolve().parents:
        raise ConfigError(f"--json {json}: lies inside the run folder, into which an audit writes nothing; give another place")
    report: AuditReport = audit_run(run, strict=strict, progress=_tell)
    print("\n".join(report_lines(report, _MOST_LINES)))
    if json is not None:
        write_whole(json.absolute(), report_json(report))
    if not report.holds:
        raise typer.Exit(1)


def _tell(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\raudit: {done} of {of} slides", end="\n" if done == of else "", file=sys.stderr, flush=True)
