"""What a task leaves in Redis when it has ended."""

from collections import Counter

from bench.figures import Figure
from bench.load import Producers, tenants
from bench.world import World
from streams.connection import Streams

TASKS = 2_000
SAMPLE = 0
"""MEMORY USAGE … SAMPLES 0 looks at every element."""


async def run(world: World) -> list[Figure]:
    """Bytes per task by the server's own count, and by kind of key."""
    async with world.log() as streams, world.worker(), Producers(streams, tenants(100)) as producers:
        await producers.ready()
        await producers.closed(in_flight=64, tasks=100)
        before, keys_before = await _used(streams), await _by_kind(streams)
        measured = await producers.closed(in_flight=64, tasks=world.count(TASKS))
        after, keys_after = await _used(streams), await _by_kind(streams)
        figures = [Figure("Redis memory per task", (after - before) / measured.tasks, "bytes", 8192, "lower")]
        for kind, size in (keys_after - keys_before).most_common():
            figures.append(Figure(f"of it in {kind}", size / measured.tasks, "bytes"))
        return figures


async def _used(streams: Streams) -> int:
    info = await streams.redis.info("memory")
    return int(info["used_memory_dataset"])


async def _by_kind(streams: Streams) -> Counter[str]:
    sizes: Counter[str] = Counter()
    async for name in streams.redis.scan_iter(match="hw:{*", count=1000):
        # hw:{s07}:tenant:log, …:dedup:<key>
        parts = name.decode().split(":")
        kind = parts[3] if len(parts) > 3 and parts[2].startswith("tenant-") else f"{parts[2]} of the shard"
        sizes[kind] += int(await streams.redis.memory_usage(name, samples=SAMPLE) or 0)
    return sizes
