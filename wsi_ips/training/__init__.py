"""Learning: labelled slides in, a model and the proof of what it is worth out."""
