"""The projections: how fast they follow the log, and how fast they are made again from the archive."""

import asyncio
import time

from bench.figures import Figure
from bench.load import tenants
from bench.world import Clock, World
from bench.yardstick import Yardstick
from headwater.runtime import add_projector, make_broker
from headwater.settings import Settings
from projections.db import Pool
from projections.rebuild import digests, rebuild, rebuildable
from projections.runner import Runner
from streams.connection import Streams

TASKS = 6_000
CAUGHT_UP_S = 120.0
_LEAST = "SELECT coalesce(min(n), 0) FROM (SELECT sum(events) AS n FROM positions GROUP BY projection) p"
"""Events that every projection has applied."""


async def run(world: World) -> list[Figure]:
    """Events a second through all projections, live and on a rebuild, on one projector process."""
    async with world.log() as streams, world.database() as pool:
        # The bare loop's facts are real ones, and it writes them before the clock starts.
        await Yardstick(streams, tenants(100)).run(in_flight=128, tasks=world.count(TASKS))
        events = await _events(streams)
        cpu, redis_cpu = Clock(), world.redis_clock()
        cpu.start()
        redis_cpu.start()
        seconds = await _follow(world, streams, pool, events)
        figures = [
            Figure("projected events", events / seconds, "events/s", aim=20_000.0, note=f"{events:,} events"),
            Figure("CPU of the projector per event", cpu.seconds() / events * 1e6, "µs"),
            Figure("CPU of Redis per projected event", redis_cpu.seconds() / events * 1e6, "µs"),
        ]
        before = await digests(pool)
        clock = time.perf_counter()
        await rebuild(pool, rebuildable())
        seconds = time.perf_counter() - clock
        if await digests(pool) != before:
            raise RuntimeError("a rebuild changed a digest: the figure would be of wrong rows")
        note = f"{', '.join(rebuildable())} from {events:,} events"
        return [*figures, Figure("rebuilt events", events / seconds, "events/s", aim=50_000.0, note=note)]


async def _events(streams: Streams) -> int:
    pipeline = streams.redis.pipeline(transaction=False)
    for tenant in tenants(100):
        pipeline.xlen(streams.keys.log(tenant))
    return sum(await pipeline.execute())


async def _follow(world: World, streams: Streams, pool: Pool, events: int) -> float:
    """Seconds until the projector has applied everything."""
    broker = make_broker(world.endpoints.redis_url, streams)
    add_projector(broker, streams, Runner(pool, streams.log), Settings())
    clock = time.perf_counter()
    await broker.start()
    try:
        async with asyncio.timeout(CAUGHT_UP_S):
            while await pool.fetchval(_LEAST) < events:  # noqa: ASYNC110  # another connection's rows ring no bell
                await asyncio.sleep(0.02)
        return time.perf_counter() - clock
    finally:
        await broker.stop()
