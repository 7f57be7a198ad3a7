"""How good a model is: metrics, intervals, calibration, comparison; numbers in, numbers out."""
