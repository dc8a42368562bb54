"""`python -m bench`: run benchmarks on servers of their own; a table on stderr, JSON on stdout."""

import argparse
import asyncio
import importlib
import json
import logging
import pkgutil
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from rich.console import Console

import bench
from bench.figures import Figure, show
from bench.world import World
from headwater.embedded import EmbeddedServers

DEFAULT = ("tasks", "tenants", "appends", "footprint", "projected")
"""What runs when nothing is named: under five minutes in all."""

WIDTH = 170
"""Columns of the table, also where no terminal says how many there are."""

Benchmark = Callable[[World], Awaitable[list[Figure]]]


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark of this package, by the name of its module."""
    names = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.name != "__main__"]
    modules = {name: importlib.import_module(f"bench.{name}") for name in names}
    return {name: module.run for name, module in modules.items() if hasattr(module, "run")}


async def measure(world: World, chosen: Sequence[str], console: Console) -> list[Figure]:
    """Run the chosen benchmarks one after the other."""
    figures: list[Figure] = []
    known = benchmarks()
    for name in chosen:
        clock = time.perf_counter()
        figures += await known[name](world)
        console.print(f"{name}: {time.perf_counter() - clock:.0f} s", style="dim")
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 also when an aim was missed, for a miss is a result."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to run; default: {' '.join(DEFAULT)}")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="the same as a NAME")
    parser.add_argument("--quick", action="store_true", help="only show that everything works, in some seconds")
    parser.add_argument("--json", action="store_true", help="no table")
    given = parser.parse_args(arguments)
    chosen = [*given.names, *given.only] or list(DEFAULT)
    if unknown := [name for name in chosen if name not in benchmarks()]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(benchmarks())}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console(stderr=True, quiet=given.json, width=WIDTH)
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as data:
        # Servers that run as another user must get through to their data.
        Path(data).chmod(0o711)
        servers = EmbeddedServers(Path(data))
        with servers as endpoints:
            figures = asyncio.run(measure(World(endpoints, servers, given.quick), chosen, console))
    show(figures, console)
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "quick": given.quick,
        "figures": [figure.as_dict() for figure in figures],
    }
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
