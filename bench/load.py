"""Producers: they submit tasks and wait for the outcomes, as a program with a `Headwater` does."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import percentile
from bench.team import TEXT
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.outcomes import Outcomes

READY_S = 60.0


def tenants(count: int) -> list[str]:
    """Names for `count` tenants."""
    return [f"tenant-{n:05}" for n in range(count)]


@dataclass(frozen=True, slots=True)
class Measured:
    """How many tasks ended, in what time, and how long each took from the submission to the result in hand."""

    tasks: int
    seconds: float
    latencies_ms: list[float]

    @property
    def per_second(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds

    def ms(self, share: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        return percentile(self.latencies_ms, share)


class Producers:
    """Submits tasks of `tenants` in turn. Use it as a context manager."""

    def __init__(self, streams: Streams, tenants: Sequence[str]) -> None:
        self._buses = [TenantEventBus(streams, tenant) for tenant in tenants]
        self._next = itertools.cycle(self._buses)
        self._outcomes = Outcomes(streams)

    async def __aenter__(self) -> "Producers":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._outcomes.close()

    async def one(self) -> float:
        """One task, from the submission to the result: milliseconds."""
        bus = next(self._next)
        clock = time.perf_counter()
        outcome = await self._outcomes.submit_and_wait(bus, NewTask(tenant=bus.tenant_id, session="s1", text=TEXT))
        if outcome.status != "completed":
            raise RuntimeError(f"task {outcome.task_id} of {outcome.tenant_id} {outcome.status}: {outcome.error}")
        return (time.perf_counter() - clock) * 1000

    async def ready(self) -> None:
        """Wait until a worker answers."""
        async with asyncio.timeout(READY_S):
            await self.one()

    async def listen(self) -> None:
        """Subscribe to the ends of every tenant's tasks, so that no first task of a tenant has to."""
        for bus in self._buses:
            async with self._outcomes.expect(bus.tenant_id, "none"):
                pass

    async def closed(self, *, in_flight: int, seconds: float = 1e9, tasks: int = 10**9) -> Measured:
        """Keep `in_flight` tasks on their way for so long, or until so many were begun."""
        left = itertools.repeat(None, tasks)
        latencies: list[float] = []
        clock = time.perf_counter()

        async def producer() -> None:
            for _ in left:
                latencies.append(await self.one())
                if time.perf_counter() - clock > seconds:
                    return

        await asyncio.gather(*(producer() for _ in range(in_flight)))
        return Measured(len(latencies), time.perf_counter() - clock, latencies)

    async def paced(self, *, per_second: float, seconds: float) -> Measured:
        """Begin tasks at a fixed rate, whatever the others do. Latency counts from when a task was due."""
        clock = time.perf_counter()

        async def due(at: float) -> float:
            late_ms = (time.perf_counter() - at) * 1000
            return late_ms + await self.one()

        running: list[asyncio.Task[float]] = []
        for n in range(int(per_second * seconds)):
            at = clock + n / per_second
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            running.append(asyncio.create_task(due(at)))
        latencies = await asyncio.gather(*running)
        return Measured(len(latencies), time.perf_counter() - clock, latencies)
