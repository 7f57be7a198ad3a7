"""Commands on files of models: model import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def model() -> None:
    """Files of weights."""


@app.command("import")
def import_weights(
    file: Annotated[
        Path, typer.Argument(help="weights of an encoder: .pt, .pth, .bin, .ckpt or .safetensors; its content decides")
    ],
    out: Annotated[Path, typer.Option(help="folder, or file that ends in .safetensors; none is overwritten")],
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="you know where a torch file (a pickle) comes from. It is read by torch's restricted unpickler, which makes "
            "tensors and plain values; never by the full one, so nothing in it is run. Without --trust it is refused",
        ),
    ] = False,
    key: Annotated[str, typer.Option(help="which part of a checkpoint, where it holds several: teacher, say")] = "",
) -> None:
    """A file of weights in; safetensors and its SHA-256 out, for `encoder.weights`. Wrappers' names are taken off and said.

    The only way by which weights come out of a pickle; no other command takes them from one.
    """
    from wsi_ips.model.pickles import import_weights

    made = import_weights(file, out, trusts=trust, key=key)
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{made.path}  {made.n_tensors} tensors  sha256 {made.sha256}\nuse it by the setting encoder.weights: {made.path}"
    )
