"""What several commands share: options, reading a manifest, saying notes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wsi_ips.config import ModelSettings
    from wsi_ips.manifest import Manifest

ManifestArg = Annotated[str, typer.Argument(help="manifest (CSV or .xlsx) with a column slide_path, or one slide")]
SlideRoot = Annotated[
    str | None, typer.Option(
        help="folder or URI that relative paths start from; slides, masks and features outside it, also by links, are refused",
        rich_help_panel="Manifest",
    )
]
Ext = Annotated[
    str | None, typer.Option(help="file ending put behind slide ids without one, .svs say", rich_help_panel="Manifest")
]
MppOption = Annotated[float | None, typer.Option(help="µm per level-0 px, for a single slide that does not say")]
AllowMissing = Annotated[bool, typer.Option(help="a listed file that does not exist is a failed row, not a refusal")]
AllowMixed = Annotated[
    bool, typer.Option("--allow-mixed", help="go on with a run whose finished slides other versions have made")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:<i> or mps", rich_help_panel="Machine")]
EngineOption = Annotated[
    str,
    typer.Option(
        help="what encodes tiles: torch, openvino (fastest on CPUs with bfloat16; extra fast), module (the model just as it "
        "learned), or auto",
        rich_help_panel="Machine",
    ),
]
Decode = Annotated[
    str,
    typer.Option(
        help="where JPEG tiles are decoded: cpu, or gpu (with --device cuda, for few CPU cores; pixels differ slightly)",
        rich_help_panel="Machine",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        help="folder of the embedding cache, or off; default: WSI_IPS_CACHE, else the user's cache folder; holds 50 GB "
        "(WSI_IPS_CACHE_GB), then what was used least recently goes",
        rich_help_panel="Machine",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="know slides by all their bytes, not by samples", rich_help_panel="Machine")
]
Readers = Annotated[
    int, typer.Option(help="reader threads of a worker; 0 chooses", min=0, max=64, rich_help_panel="Machine")
]
Profile = Annotated[
    bool, typer.Option("--profile", help="say at the end where the time went, and what limits", rich_help_panel="Machine")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="never look at the network for weights", rich_help_panel="Machine")
]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
SettingsFile = Annotated[Path | None, typer.Option(help="YAML with settings that differ from the defaults")]


def read_manifest(path: str | Path, *, mpp: float | None = None, **options: Any) -> Manifest:
    """Read a manifest, or make that of a single slide."""
    from wsi_ips.manifest import manifest_or_slide

    return manifest_or_slide(str(path), mpp, **options)


def model_settings(model: Path | None) -> ModelSettings:
    """Settings of a bundle, or the defaults."""
    from wsi_ips.config import ModelSettings
    from wsi_ips.model.bundle_config import read_bundle_settings

    return read_bundle_settings(model) if model else ModelSettings()


def takes_features(model: Path | None) -> bool:
    """Tell whether a bundle takes features instead of slides; one that cannot be read is refused later."""
    from wsi_ips.errors import ModelError
    from wsi_ips.model.bundle_config import read_bundle_settings

    try:
        return model is not None and read_bundle_settings(model).encoder.name == "features"
    except ModelError:
        return False


def say_notes(notes: Any) -> None:
    """Print notes to stderr."""
    from wsi_ips.errors import printable

    for note in notes:
        print(f"note {note.code}: {printable(note.message)}", file=sys.stderr)
