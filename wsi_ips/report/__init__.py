"""What people see: overlays and pages, from the run folder and the slides alone."""
