"""The command line: thin, and quick to answer; everything heavy is imported inside the command that needs it.

Results go to files, tables to stdout, progress to stderr. Exit status: docs/failures.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated, Any

import typer

import wsi_ips
from wsi_ips.cli import checking, heatmaps, models, slides, training, viewing

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Whole-slide pathology: labels, heatmaps and finetuning by Iterative Patch Selection. Research use only.")  # fmt: skip


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"wsi-ips {wsi_ips.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", help="print the version and end", callback=_print_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    if debug:
        os.environ["WSI_IPS_DEBUG"] = "1"


for _command in (
    slides.inspect,
    slides.manifest,
    slides.plan,
    slides.classify,
    heatmaps.heatmap,
    heatmaps.selftest,
    checking.audit,
    training.finetune,
    training.evaluate,
    training.demo,
    viewing.view,
):
    app.command()(_command)
app.add_typer(models.app, name="model")


@app.command()
def doctor() -> None:
    """Nothing in; out to stdout: versions, devices, readable formats, known bad combinations and their cures."""
    from wsi_ips.engine.doctor import examine

    findings = examine()
    for f in findings:
        print(f"{'ok  ' if f.is_good else 'BAD '} {f.subject:<18} {f.text}")
    if not all(f.is_good for f in findings):
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; errors of this package become one message and an exit status."""
    from wsi_ips.cli.output import forgive_streams, printable_lines
    from wsi_ips.errors import WsiIpsError, exit_status

    forgive_streams()
    if "--debug" in sys.argv[1:]:  # before or behind the command
        sys.argv.remove("--debug")
        os.environ["WSI_IPS_DEBUG"] = "1"

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    # before torch is loaded: threads that spin at barriers collapse when anything else runs on the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (WsiIpsError, OSError) as error:
        if os.environ.get("WSI_IPS_DEBUG"):
            raise
        print(f"wsi-ips: {printable_lines(str(error))}", file=sys.stderr)
        sys.exit(exit_status(error) if isinstance(error, WsiIpsError) else 2)
    except _SignalledError as error:
        what = "interrupted" if error.number == signal.SIGINT else "terminated"
        print(f"wsi-ips: {what}; what is done is kept, the same command goes on", file=sys.stderr)
        sys.exit(128 + error.number)


class _SignalledError(BaseException):
    """Ctrl-C or SIGTERM; no library takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, frame: Any) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_DFL)  # a second signal ends at once; workers end with this process
    with contextlib.suppress(OSError):  # not print: it may be in the middle of one
        os.write(2, b"\nwsi-ips: ending; what is in work is put by (once more ends at once)\n")
    raise _SignalledError(number)
