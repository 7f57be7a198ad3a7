"""Small honest slides with known tissue, lesions and labels; and huge files for stress, from a palette of tiles.

`painting` makes pixels, `lesions` knows where the lesions are, `pyramid` writes files of any size in bounded memory,
`cohort` and `grading` put slides, labels and a manifest into a folder, `mosaic` lays given tiles on a slide, `twin`
writes a computed slide as a file. No slide is ever square, so swapped axes show.
"""

from wsi_ips.synthetic.cohort import make_cohort
from wsi_ips.synthetic.grading import make_grading_cohort
from wsi_ips.synthetic.lesions import lesion_fraction, read_lesions, write_lesions
from wsi_ips.synthetic.mosaic import MosaicPlan, make_mosaic
from wsi_ips.synthetic.painting import PaintedSlide, SlideRecipe, paint_slide
from wsi_ips.synthetic.pyramid import PaletteSource, PyramidPlan, StripSource, array_source, write_pyramid
from wsi_ips.synthetic.twin import write_twin

__all__ = [
    "MosaicPlan",
    "PaintedSlide",
    "PaletteSource",
    "PyramidPlan",
    "SlideRecipe",
    "StripSource",
    "array_source",
    "lesion_fraction",
    "make_cohort",
    "make_grading_cohort",
    "make_mosaic",
    "paint_slide",
    "read_lesions",
    "write_lesions",
    "write_pyramid",
    "write_twin",
]
