"""The same with 10,000 tenants: what a worker loses to their number."""

import contextlib
from statistics import median

from bench.figures import Figure
from bench.load import Producers, tenants
from bench.world import World
from bench.yardstick import Yardstick

FEW, MANY = 100, 10_000
ROUNDS = 3


async def run(world: World) -> list[Figure]:
    """Throughput over 100 and over 10,000 tenants, in turns on the same worker, so that both see the same machine."""
    many = max(2 * FEW, world.count(MANY))
    async with (
        world.log() as streams,
        Producers(streams, tenants(FEW)) as few_producers,
        Producers(streams, tenants(many)) as many_producers,
        contextlib.AsyncExitStack() as stack,
    ):
        # Every tenant has a log before the worker starts.
        await Yardstick(streams, tenants(many)).run(in_flight=128, tasks=many)
        await stack.enter_async_context(world.worker())
        await few_producers.ready()
        await few_producers.listen()
        await many_producers.listen()
        rates: dict[str, list[float]] = {"few": [], "many": []}
        for _ in range(1 if world.quick else ROUNDS):
            for name, producers in (("few", few_producers), ("many", many_producers)):
                measured = await producers.closed(in_flight=128, seconds=world.seconds(3))
                rates[name].append(measured.per_second)
        few, slower = median(rates["few"]), 1 - median(rates["many"]) / median(rates["few"])
        return [
            Figure(f"tasks over {many:,} tenants, 128 in flight", median(rates["many"]), "tasks/s"),
            Figure(f"tasks over {FEW} tenants beside it", few, "tasks/s"),
            Figure(f"slower with {many:,} tenants", slower * 100, "%", aim=20.0, better="lower"),
        ]
