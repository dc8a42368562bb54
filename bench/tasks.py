"""Whole tasks through one worker process, over 100 tenants, beside the bare loop."""

from bench.figures import Figure
from bench.load import Measured, Producers, tenants
from bench.world import Clock, World
from bench.yardstick import Yardstick

IN_FLIGHT = (1, 16, 128)
TENANTS = 100


async def run(world: World) -> list[Figure]:
    """Throughput at 1, 16 and 128 in flight, CPU per task, latency when idle and at half load."""
    names = tenants(TENANTS)
    async with (
        world.log() as streams,
        world.log(1) as apart,
        world.worker() as worker_cpu,
        Producers(streams, names) as producers,
    ):
        await producers.ready()
        yardstick = Yardstick(apart, names)
        # Before and after, because the machine's speed may change in between.
        bare, loop_us = [], []

        async def run_yardstick() -> None:
            loop, redis = Clock(), world.redis_clock()
            loop.start()
            redis.start()
            bare.append(await yardstick.run(in_flight=128, seconds=world.seconds(3)))
            loop_us.append((loop.seconds() / yardstick.done * 1e6, redis.seconds() / yardstick.done * 1e6))

        await run_yardstick()
        await producers.closed(in_flight=128, seconds=world.seconds(2))
        figures, best = [], 0.0
        for in_flight in IN_FLIGHT:
            clocks = {"the worker": worker_cpu, "Redis": world.redis_clock(), "the producers": Clock()}
            for clock in clocks.values():
                clock.start()
            measured = await producers.closed(in_flight=in_flight, seconds=world.seconds(5))
            spent = {who: clock.seconds() / measured.tasks * 1e6 for who, clock in clocks.items()}
            best = max(best, measured.per_second)
            figures.append(_throughput(in_flight, measured))
        figures += [Figure(f"CPU of {who} per task, 128 in flight", us, "µs") for who, us in spent.items()]
        await run_yardstick()
        yardstick_rate = sum(bare) / len(bare)
        figures += [
            Figure("bare redis-py loop, 128 in flight", yardstick_rate, "tasks/s", note="the yardstick"),
            Figure("CPU of the bare loop per task", sum(us for us, _ in loop_us) / 2, "µs"),
            Figure("CPU of Redis per task of the bare loop", sum(us for _, us in loop_us) / 2, "µs"),
            Figure("share of the yardstick", best / yardstick_rate, "", aim=1 / 3),
        ]
        idle = await producers.paced(per_second=20, seconds=world.seconds(10))
        figures += _latency("idle", idle, aim_ms=5.0)
        half = await producers.paced(per_second=best / 2, seconds=world.seconds(5))
        figures += _latency(f"half load ({best / 2:,.0f} tasks/s)", half)
        return figures


def _throughput(in_flight: int, measured: Measured) -> Figure:
    note = f"p50 {measured.ms(0.5):.1f} ms, p99 {measured.ms(0.99):.1f} ms"
    aim = 2000.0 if in_flight == 128 else None
    return Figure(f"tasks, {in_flight} in flight", measured.per_second, "tasks/s", aim=aim, note=note)


def _latency(when: str, measured: Measured, aim_ms: float | None = None) -> list[Figure]:
    return [
        Figure(f"submit to result, {when}, p50", measured.ms(0.5), "ms", aim=aim_ms, better="lower"),
        Figure(f"submit to result, {when}, p99", measured.ms(0.99), "ms"),
    ]
