"""The command that looks at a finished run: view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    run: Annotated[Path, typer.Argument(help="run folder")],
    host: Annotated[str, typer.Option(help="address to listen on; any but this machine's own needs the printed token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port; 0 takes any free one", min=0, max=65535)] = 8123,
    slide_root: Annotated[Path | None, typer.Option(help="where the slides are now, if they have moved")] = None,
    reviewer: Annotated[str, typer.Option(help="who marks; else the page asks")] = "",
    show_patients: Annotated[bool, typer.Option("--show-patients", help="show patient ids in the list")] = False,
    browser: Annotated[bool, typer.Option("--browser", help="open the page in the browser")] = False,
) -> None:
    """A run folder in; out to stdout: the address of a web page with its slides and maps, served until Ctrl-C."""
    from wsi_ips.report.viewer.start import StartOptions, serve_run

    serve_run(run, StartOptions(host, port, slide_root, reviewer, show_patients, browser))
