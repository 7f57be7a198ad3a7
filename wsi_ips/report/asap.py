"""Top regions as XML for ASAP: level-0 px of the whole slide, whatever its bounds.

Groups: "top regions" (the selected tiles, joined where they touch), "top tiles" (the first 16 by rank), "tissue" and
"holes in tissue" (ASAP's polygons have no holes of their own). Every group that an annotation names is declared: ASAP
throws a file away that names an unknown one.

Source: ASAP, annotation/XmlRepository.cpp.
"""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import shapely

from wsi_ips.report.provenance import provenance_text
from wsi_ips.report.vectors import merged_tiles, tile_boxes, tissue_polygons
from wsi_ips.results import SlidePrediction

__all__ = ["asap_xml"]

_COLOURS = {"top regions": "#d55e00", "top tiles": "#e69f00", "tissue": "#3d6b4c", "holes in tissue": "#7f8c84"}
_N_TOP = 16


def asap_xml(p: SlidePrediction) -> bytes:
    """Write the regions of the selected tiles, the top tiles and the tissue as ASAP annotations."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    by_sum = sorted(merged_tiles(p, p.selected), key=lambda r: -float(p.attention[r.rows].sum()))
    for i, region in enumerate(by_sum, start=1):
        _add(annotations, f"region {i} ({len(region.rows)} tiles)", "Polygon", "top regions", region.shape.exterior)
    for rank, box in enumerate(tile_boxes(p, p.selected[:_N_TOP]), start=1):
        _add(annotations, f"top {rank}", "Rectangle", "top tiles", box.exterior)
    for i, piece in enumerate(tissue_polygons(p.outline), start=1):
        _add(annotations, f"tissue {i}", "Polygon", "tissue", piece.exterior)
        for hole in piece.interiors:
            _add(annotations, f"hole in tissue {i}", "Polygon", "holes in tissue", hole)
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    for name, colour in _COLOURS.items():
        group = ElementTree.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=colour)
        ElementTree.SubElement(group, "Attributes")
    root.insert(0, ElementTree.Comment(provenance_text(p).replace("--", "-\\u002d")))  # a comment must not hold "--"
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)


def _add(parent: ElementTree.Element, name: str, kind: str, group: str, ring: shapely.LinearRing) -> None:
    one = ElementTree.SubElement(parent, "Annotation", Name=name, Type=kind, PartOfGroup=group, Color=_COLOURS[group])
    places = ElementTree.SubElement(one, "Coordinates")
    for i, (x, y) in enumerate(np.asarray(ring.coords)[:-1].tolist()):  # the ring is closed by the reader
        ElementTree.SubElement(places, "Coordinate", Order=str(i), X=f"{x:.2f}", Y=f"{y:.2f}")
