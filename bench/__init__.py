"""Measurements, printed as JSON and a table: `make bench`."""
