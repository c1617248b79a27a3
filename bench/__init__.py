"""Microbenchmarks: `python -m bench --help`."""
