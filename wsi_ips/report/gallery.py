"""The offline gallery of a run: for each class, the tiles of all slides that speak for it most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wsi_ips.report.markup import escape, link, page
from wsi_ips.report.readout import RESEARCH_USE

__all__ = ["GalleryGroup", "GalleryTile", "gallery_html"]


class GalleryTile(NamedTuple):
    """One tile; files are named relative to the page."""

    slide_id: str
    picture: str
    report: str | None
    evidence: float  # towards the group's class
    rank: int  # among the selected of its slide, 1 is the best
    called: str  # "tumor, 0.93"


class GalleryGroup(NamedTuple):
    """Tiles that speak for one thing."""

    towards: str
    tiles: Sequence[GalleryTile]


def gallery_html(groups: Sequence[GalleryGroup], most_a_slide: int, index: str = "index.html") -> bytes:
    """Build gallery.html.

    Args:
        groups: what is shown, in order.
        most_a_slide: how many tiles of one slide a group may hold, for the words.
        index: the run's page.
    """
    title = "Tiles that spoke most"
    body = [
        f'<p class="back small"><a href="{escape(link(index))}">All slides of this run</a></p>',
        f"<h1>{title}</h1>",
        f'<p class="research">{escape(RESEARCH_USE)}</p>',
        '<p class="quiet">For each class the tiles, of the 16 that ranked highest in each slide, whose removal lowers its logit '
        f"most (evidence); at most {most_a_slide} of one slide. Whether a class was called right is not known here.</p>",
    ]
    body += [_group(group) for group in groups]
    return page(title, "\n".join(body))


def _group(group: GalleryGroup) -> str:
    items = "".join(_tile(tile) for tile in group.tiles)
    shown = f'<ul class="gallery">{items}</ul>' if items else '<p class="quiet">No tile speaks for it.</p>'
    return f"<section><h2>Towards {escape(group.towards)}</h2>{shown}</section>"


def _tile(tile: GalleryTile) -> str:
    name = escape(tile.slide_id)
    alt = escape(f"tile of rank {tile.rank} in slide {tile.slide_id}")
    picture = f'<img src="{escape(link(tile.picture))}" alt="{alt}" loading="lazy">'
    if tile.report:
        picture = f'<a href="{escape(link(tile.report))}">{picture}</a>'
    return (
        f"<li>{picture}<b>{name}</b><br>evidence {tile.evidence:+.3g}, rank {tile.rank}<br>"
        f'<span class="quiet">called {escape(tile.called)}</span></li>'
    )
