"""Pixels out of a file: one protocol, several readers, nothing invented."""
