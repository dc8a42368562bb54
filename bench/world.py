"""What every benchmark runs on: real servers of its own, worker processes, and their CPU clocks."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil

from headwater.embedded import EmbeddedServers, Endpoints
from headwater.embedded.process import die_with_parent
from projections.db import Pool, connect, migrate
from streams.connection import Streams, open_streams

SHARDS = 16
"""As by default."""


@dataclass(frozen=True, slots=True)
class World:
    """The servers, and how long to measure: `quick` only shows that everything still works."""

    endpoints: Endpoints
    servers: EmbeddedServers
    quick: bool

    def seconds(self, full: float) -> float:
        """How long to measure what takes `full` seconds in a full run."""
        return min(full, 0.3) if self.quick else full

    def count(self, full: int) -> int:
        """How many of something that is `full` in a full run."""
        return max(1, full // 50) if self.quick else full

    @contextlib.asynccontextmanager
    async def log(self, database: int = 0) -> AsyncIterator[Streams]:
        """An empty log in Redis database `database`; what is in the others stays."""
        url = f"{self.endpoints.redis_url}?db={database}"
        streams = await open_streams(url, shards=SHARDS)
        await streams.redis.flushdb()
        await streams.close()
        streams = await open_streams(url, shards=SHARDS)
        try:
            yield streams
        finally:
            await streams.close()

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[Pool]:
        """An empty, migrated database."""
        name = f"bench_{os.urandom(6).hex()}"
        admin = await asyncpg.connect(self.endpoints.database_url)
        await admin.execute(f"CREATE DATABASE {name}")
        pool = await connect(urlunsplit(urlsplit(self.endpoints.database_url)._replace(path=f"/{name}")))
        try:
            await migrate(pool)
            yield pool
        finally:
            await pool.close()
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await admin.close()

    @contextlib.asynccontextmanager
    async def worker(self, database: int = 0, *, profile: Path | None = None) -> AsyncIterator["Clock"]:
        """One worker process on the log in `database`, and its CPU clock. The caller waits until it answers.

        With `profile`, it writes there at its end where its time went.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.worker", f"{self.endpoints.redis_url}?db={database}"),
            *([] if profile is None else [str(profile)]),
            cwd=Path(__file__).parent.parent,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        try:
            yield Clock(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()

    def redis_clock(self) -> "Clock":
        """Redis' CPU clock."""
        assert self.servers.redis is not None
        pid = self.servers.redis.process.pid
        assert pid is not None
        return Clock(pid)


class Clock:
    """CPU seconds of a process: the figure that other processes on the machine disturb least."""

    def __init__(self, pid: int | None = None) -> None:
        self._process = psutil.Process(pid)
        self._from = 0.0

    def start(self) -> None:
        """Measure from here."""
        self._from = self._now()

    def seconds(self) -> float:
        """CPU seconds since `start`."""
        return self._now() - self._from

    def _now(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
