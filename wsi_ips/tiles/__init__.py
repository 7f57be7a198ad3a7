"""Which squares of a slide, and how they flow; numpy only."""
