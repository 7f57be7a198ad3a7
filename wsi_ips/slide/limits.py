"""What a slide's header may state before any decoder is asked; each is several times what the largest scanners write.

A decoder believes a header: a few bytes that state a huge side, profile or text make it ask for memory that the machine
does not have. These numbers are compared with our own reading of the header (`tiffheader`, `dicom`, `mirax`). What a
header does not show, as a tile that swells when it is decoded, meets the decoders' own size checks (`tilecodes`,
`streamsize`) and, last, the memory limit of the worker process.
"""

from __future__ import annotations

__all__ = ["MAX_ENTRIES", "MAX_HEADER_BYTES", "MAX_ICC_BYTES", "MAX_IMAGES", "MAX_INDEX_BYTES", "MAX_LEVEL0_PX", "MAX_LEVELS",
           "MAX_SIDE_PX", "MAX_TEXT_BYTES", "MAX_TILES", "MAX_TILE_PX"]  # fmt: skip

MAX_SIDE_PX = 2_000_000  # the largest scanners write some 300,000 px
MAX_LEVEL0_PX = 500_000_000_000  # a whole brain at 0.25 µm per px has half of it
MAX_TILE_PX = 8_192
MAX_TILES = 20_000_000  # of an image: the largest sides in tiles of 512 px
MAX_LEVELS = 256  # sizes of tiled images; several regions on a slide have pyramids of their own
MAX_IMAGES = 1_000  # directories of a TIFF, label, focal planes and sub-images included
MAX_ENTRIES = 4_096  # of a directory
MAX_TEXT_BYTES = 16 << 20  # of a text property; OME-XML of real plates reaches a few MiB
MAX_ICC_BYTES = 16 << 20
MAX_HEADER_BYTES = 256 << 20  # that our own parser reads of a file's directories in all
MAX_INDEX_BYTES = 8 << 20  # of a MIRAX Slidedat.ini
