"""Small parts that both pages are made of: escaping, links, the frame of a page.

Everything that comes from a manifest, a slide or a model is text and goes through `escape` or `link`. A page is one
file, opens from disk, and may load nothing but pictures that lie beside it (its own policy says so).
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from urllib.parse import quote

from wsi_ips.report.readout import RESEARCH_USE

__all__ = ["asset", "cards", "data_uri", "escape", "facts_table", "link", "page", "status_badge"]

_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


@lru_cache(maxsize=4)
def asset(name: str) -> str:
    """Read a style sheet or script of this package."""
    return (resources.files("wsi_ips.report") / "assets" / name).read_text(encoding="utf-8")


def escape(text: object) -> str:
    """Make any text safe in an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def link(relative_path: str) -> str:
    """Make a relative path of this run a safe link: quoted, and never a scheme or an absolute path.

    >>> link("slides/a b#1/a b#1.overlay.png")
    './slides/a%20b%231/a%20b%231.overlay.png'
    >>> link("javascript:x.png")
    './javascript%3Ax.png'

    Raises:
        ValueError: the path is absolute.
    """
    if relative_path.startswith(("/", "\\")):
        raise ValueError(f"a page links to files of its own run only, not to {relative_path!r}")
    return "./" + quote(relative_path, safe="/")


def data_uri(picture: bytes, kind: str = "png") -> str:
    """Carry a picture inside the page; kind is "png" or "jpeg"."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")


def status_badge(status: str) -> str:
    """Show a status as a coloured word."""
    known = {"ok", "ok_with_warnings", "no_tissue", "failed", "not_run"}
    return f'<span class="status {status if status in known else "not_run"}">{escape(status.replace("_", " "))}</span>'


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """Show (name, value) pairs as a row of cards; nothing for none."""
    items = "".join(
        f'<li><span class="value">{escape(value)}</span><span class="name">{escape(name)}</span></li>'
        for name, value in figures
    )
    return f'<ul class="cards">{items}</ul>' if items else ""


def facts_table(facts: Sequence[tuple[str, str]]) -> str:
    """Show (name, value) pairs as a table of two columns; empty values are left out."""
    rows = "".join(f'<tr><th scope="row">{escape(n)}</th><td class="mono">{escape(v)}</td></tr>' for n, v in facts if v)
    return f'<div class="tablewrap"><table class="facts"><tbody>{rows}</tbody></table></div>' if rows else ""


def page(title: str, body: str, *, script: str = "") -> bytes:
    """Frame a page: policy, style, the sentence on research use, script. `body` is trusted HTML; `title` is text."""
    code = f"<script>\n{asset(script)}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{asset('report.css')}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n<footer>{escape(RESEARCH_USE)} Not for diagnosis. Made by wsi-ips; this page loads nothing from a network.</footer>\n"
        f"</main>\n{code}</body>\n</html>\n"
    ).encode()
