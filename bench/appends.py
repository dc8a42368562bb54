"""Submissions alone: from a `NewTask` to its place in the log."""

import asyncio
import itertools
import time

from bench.figures import Figure, percentile
from bench.load import tenants
from bench.team import TEXT
from bench.world import World
from schemas.task import NewTask
from streams.bus import TenantEventBus


async def run(world: World) -> list[Figure]:
    """Submissions a second from one process, and how long a single one takes."""
    async with world.log() as streams:
        buses = [TenantEventBus(streams, tenant) for tenant in tenants(100)]
        turn = itertools.cycle(buses)
        latencies: list[float] = []

        async def submit(until: float) -> None:
            while (clock := time.perf_counter()) < until:
                bus = next(turn)
                await bus.submit(NewTask(tenant=bus.tenant_id, session="s1", text=TEXT))
                latencies.append((time.perf_counter() - clock) * 1000)

        seconds = world.seconds(3)
        await submit(time.perf_counter() + seconds / 3)
        single_ms = percentile(latencies, 0.5)
        latencies.clear()
        clock = time.perf_counter()
        await asyncio.gather(*(submit(clock + seconds) for _ in range(128)))
        rate = len(latencies) / (time.perf_counter() - clock)
        return [
            Figure("appends, 128 at once", rate, "appends/s"),
            Figure("one append, p50", single_ms, "ms"),
        ]
