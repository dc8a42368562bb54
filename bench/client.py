"""A `headwater` command in a process of its own: how long it takes, and the most memory that it holds."""

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from typing import NamedTuple

from bench.figures import Figure

MAX_MB = 300.0
"""What replaying a tenant of a million events may hold."""
# The kernel's own peak of this program: that of getrusage() begins with what the parent process held.
_MEASURED = """
import pathlib, sys, time
from headwater.cli import main
try:
    main()
finally:
    status = pathlib.Path("/proc/self/status").read_text()
    sys.stderr.write(f"\\nmeasured {time.process_time()} {status.split('VmHWM:')[1].split()[0]}\\n")
"""


class Cost(NamedTuple):
    """What a command cost, with the start of its process. What the servers need is not in it."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    printed: str

    def figures(self, name: str) -> list[Figure]:
        """As figures, the memory held against its aim."""
        return [
            Figure(f"{name}, peak memory", self.peak_mb, "MB", aim=MAX_MB, better="lower"),
            Figure(f"{name}", self.seconds, "s", note=f"{self.cpu_seconds:.1f} s of CPU in the command's process"),
        ]


async def headwater(*arguments: str, env: Mapping[str, str] | None = None) -> Cost:
    """Run a command. Raises `RuntimeError` with what it said if it fails."""
    clock = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _MEASURED, *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=os.environ | (env or {}),
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{arguments}: {err.decode()[-2000:]}")
    cpu_seconds, peak_kb = map(float, err.decode().rsplit("measured ", 1)[1].split())
    return Cost(time.perf_counter() - clock, cpu_seconds, peak_kb / 1024, out.decode())
