"""The local web viewer of a run: a small server over the run folder and its slides, and the pages it hands out."""
