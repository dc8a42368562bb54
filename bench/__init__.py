"""Measurements, printed as JSON and a table: `make bench`, or `python -m bench NAME …`.

A module of this package with a coroutine `run(world: World) -> list[Figure]` is a benchmark, and its name is its
command. Those in `bench.__main__.DEFAULT` make up the default run; the others run when they are named.
"""
