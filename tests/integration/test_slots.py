"""An agent's `max_concurrent_tasks` over several workers, and what happens to a run that is cancelled or lost."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from faststream.redis import RedisBroker
from structlog.testing import capture_logs

from headwater.embedded import Endpoints
from headwater.runtime import make_broker
from headwater.simulator import FaultRule, SimulatorConfig, SimulatorProcess, load_prices
from schemas.bodies import AgentCancelled, AgentCompleted, AgentStarted, EventBody
from schemas.call import Call
from schemas.errors import UnavailableError
from schemas.event import AgentEvent
from schemas.ids import derived_id, new_id
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.functions import Commit, Delivery, Fields, Functions, NewCall
from streams.log import readable
from streams.subscriber import CallSubscriber, TakenCall
from tests.chaos.conftest import PRICES
from tests.chaos.conftest import worker_env as worker_env  # a fixture
from tests.conftest import SHARDS
from tests.processes import HeadwaterProcess, until

LIMITS = {"writer": 5, "reader": 3}
TENANTS = [f"tenant-{n}" for n in range(12)]
LEASE_MS = 5_000


def a_call(tenant: str, agent: str) -> Call:
    call_id = new_id()
    return Call(
        call_id=call_id,
        ordered_by=derived_id(call_id),
        agent_id=agent,
        tenant_id=tenant,
        session_id="s",
        task_id=derived_id(call_id, "task"),
        priority="normal",
        call_chain=("user", "supervisor", agent),
        task_type="note",
        text="x",
    )


async def order(streams: Streams, calls: Sequence[Call]) -> None:
    """Put calls on their tenants' queues, as a decider does."""
    values = ["task.submitted", "1", "s", "t", "normal", "user", "user", "", "2026-01-01T00:00:00Z", "{}"]
    tenants = sorted({call.tenant_id for call in calls})
    await asyncio.gather(
        *(
            streams.functions.append(
                tenant, key=new_id(), fingerprint="f", ttl_ms=60_000, task_id="t", fact=[new_id(), *values], blobs={}
            )
            for tenant in tenants
        )
    )
    leased = await streams.functions.lease(range(SHARDS), "decider", lease_ms=9_000, max_tenants=99, max_entries=999)
    batches = [batch for batches in leased for batch in batches]
    assert {batch.tenant_id for batch in batches} >= set(tenants)
    commits = [
        Commit(
            calls=[
                NewCall(call.call_id, call.agent_id, 2, call.model_dump_json().encode())
                for call in calls
                if call.tenant_id == batch.tenant_id
            ]
        )
        for batch in batches
    ]
    assert all(await streams.functions.commit("decider", list(zip(batches, commits, strict=True))))


@dataclass
class Counted:
    """Runs at once, by agent, over all workers."""

    now: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    by_worker: Counter[str] = field(default_factory=Counter)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    done: set[str] = field(default_factory=set)

    async def run(self, taken: TakenCall) -> list[AgentEvent]:
        agent = taken.call.agent_id
        self.now[agent] += 1
        self.most[agent] = max(self.most[agent], self.now[agent])
        self.by_worker[taken.delivery.worker] += 1
        try:
            await asyncio.wait_for(self.hold.wait(), 30)
            await asyncio.sleep(0.002)
        finally:
            self.now[agent] -= 1
        self.done.add(taken.call.call_id)
        return [an_event(taken, AgentCompleted)]


def an_event(taken: TakenCall, kind: type[EventBody]) -> AgentEvent:
    call = taken.call
    return AgentEvent(
        id=derived_id(call.call_id, "end"),
        tenant_id=call.tenant_id,
        session_id=call.session_id,
        task_id=call.task_id,
        source_agent_id=call.agent_id,
        call_chain=call.call_chain,
        parent_event_id=call.ordered_by,
        at=datetime.now(UTC),
        body=kind(agent_id=call.agent_id, call_id=call.call_id, delivery=taken.delivery.delivery, duration_us=1),  # type: ignore[call-arg]  # both kinds take these
    )


@asynccontextmanager
async def worker(
    streams: Streams,
    endpoints: Endpoints,
    name: str,
    handler: Callable[[TakenCall], Any],
    *,
    functions: type[Functions] = Functions,
    lease_ms: int = LEASE_MS,
) -> AsyncIterator[CallSubscriber]:
    """A worker with a pipeline, a broker and a lease of its own, as another process has."""
    own = replace(streams, functions=functions(streams.redis, streams.keys))
    broker: RedisBroker = make_broker(endpoints.redis_url, own)
    subscriber = CallSubscriber(broker, own, name, lease_ms=lease_ms, capacity=LIMITS)

    @subscriber
    async def handle(taken: TakenCall) -> list[AgentEvent]:
        return await handler(taken)  # type: ignore[no-any-return]

    await broker.start()
    try:
        yield subscriber
    finally:
        await broker.stop()
        await own.functions.close()


async def slots_in_use(streams: Streams) -> dict[str, int]:
    """What the server has lent out, by agent."""
    found = {}
    for agent in LIMITS:
        found[agent] = sum(int(n) for n in await streams.redis.hvals(f"hw:{{agents}}:slots:{agent}"))
    return found


async def test_the_limit_holds_over_workers_and_shards_and_is_reached(streams: Streams, endpoints: Endpoints) -> None:
    counted = Counted()
    calls = [a_call(tenant, agent) for tenant in TENANTS for agent in LIMITS for _ in range(8)]
    async with contextlib.AsyncExitStack() as stack:
        for n in range(3):
            await stack.enter_async_context(worker(streams, endpoints, f"worker-{n}", counted.run))
        await order(streams, calls)

        async def full() -> bool:
            return counted.now == LIMITS

        await until(full, "every slot of both agents runs a call")
        assert await slots_in_use(streams) == LIMITS
        counted.hold.set()

        async def all_done() -> bool:
            return len(counted.done) == len(calls)

        await until(all_done, "all calls ran")
        # Given back at once, without a worker ending.
        await until(lambda: _equals(slots_in_use(streams), {"writer": 0, "reader": 0}), "unused slots are given back")
    assert counted.most == LIMITS
    assert sum(counted.by_worker.values()) == len(calls)
    assert len(counted.by_worker) == 3  # nobody kept them all to itself


async def _equals(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_one_worker_alone_gets_all_slots(streams: Streams, endpoints: Endpoints) -> None:
    counted = Counted()
    async with worker(streams, endpoints, "alone", counted.run):
        await order(streams, [a_call("acme", "writer") for _ in range(9)])
        await until(lambda: _is(lambda: counted.now["writer"] == LIMITS["writer"]), "all slots are used")
        counted.hold.set()
        await until(lambda: _is(lambda: len(counted.done) == 9), "all calls ran")
    assert counted.most["writer"] == LIMITS["writer"]


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


async def test_a_slot_is_given_back_when_its_run_has_ended(streams: Streams, endpoints: Endpoints) -> None:
    counted = Counted()
    async with worker(streams, endpoints, "worker", counted.run):
        await order(streams, [a_call("acme", "writer")])
        await until(lambda: _is(lambda: counted.now["writer"] == 1), "the call runs")
        # Long enough for what was asked for in advance to be given back; the one in use is kept.
        await until(lambda: _equals(slots_in_use(streams), {"writer": 1, "reader": 0}), "one slot is in use")
        counted.hold.set()
        await until(lambda: _equals(slots_in_use(streams), {"writer": 0, "reader": 0}), "it is given back")


async def test_the_limit_holds_while_slots_go_to_and_fro(streams: Streams, endpoints: Endpoints) -> None:
    draw = random.Random(7)

    class Quick(Counted):
        async def run(self, taken: TakenCall) -> list[AgentEvent]:
            self.hold.set()
            await asyncio.sleep(draw.uniform(0, 0.02))
            return await super().run(taken)

    counted, ordered = Quick(), 0
    async with contextlib.AsyncExitStack() as stack:
        for n in range(3):
            # A short lease is renewed often: each time what is not in use may go to another worker.
            await stack.enter_async_context(worker(streams, endpoints, f"worker-{n}", counted.run, lease_ms=1_500))
        for _ in range(12):
            calls = [a_call(draw.choice(TENANTS), "writer") for _ in range(draw.randrange(40))]
            await order(streams, calls)
            ordered += len(calls)
            await asyncio.sleep(draw.uniform(0, 0.1))
        await until(lambda: _is(lambda: len(counted.done) == ordered), "all calls ran")
    # That it is reached is another test's: here there may never be so many calls at once.
    assert 1 < counted.most["writer"] <= LIMITS["writer"]
    assert len(counted.by_worker) > 1


async def test_a_worker_that_waits_for_slots_does_not_spin(streams: Streams, endpoints: Endpoints) -> None:
    counted = Counted()
    async with worker(streams, endpoints, "first", counted.run):
        await order(streams, [a_call("acme", "writer") for _ in range(20)])
        await until(lambda: _is(lambda: counted.now["writer"] == LIMITS["writer"]), "the first worker has all slots")
        async with worker(streams, endpoints, "second", counted.run) as second:
            await until(lambda: _is(lambda: bool(second._look["writer"])), "the second worker knows of the calls")
            before = await calls_of_functions(streams)
            started = asyncio.get_running_loop().time()
            await until(lambda: _is(lambda: asyncio.get_running_loop().time() > started + 1), "a second passed")
            asked = await calls_of_functions(streams) - before
            counted.hold.set()
            await until(lambda: _is(lambda: len(counted.done) == 20), "all calls ran")
    # Twenty questions a second for slots, and each worker's renewals and sweeps over the shards.
    assert asked < 20 + 2 * (2 * SHARDS + 10)
    assert counted.most["writer"] == LIMITS["writer"]


async def calls_of_functions(streams: Streams) -> int:
    stats: Any = await streams.redis.info("commandstats")
    return int(stats["cmdstat_fcall"]["calls"])


class Cut(Functions):
    """Functions of a worker whose connection can be cut: nothing gets through any more."""

    cut: asyncio.Event

    async def _send(self, groups: Any) -> None:
        if self.cut.is_set():
            for _, _, items in groups:
                for _, future in items:
                    if not future.done():
                        future.set_exception(UnavailableError("the connection is cut"))
            return
        await super()._send(groups)


async def test_the_slots_of_a_dead_worker_go_to_others_and_it_stops_by_its_own_clock(
    streams: Streams, endpoints: Endpoints
) -> None:
    counted, lost = Counted(), Counted()
    Cut.cut = asyncio.Event()
    calls = [a_call("acme", "writer") for _ in range(LIMITS["writer"])]
    async with worker(streams, endpoints, "dead", lost.run, functions=Cut, lease_ms=600):
        await order(streams, calls)
        await until(lambda: _is(lambda: lost.now["writer"] == LIMITS["writer"]), "the first worker runs all calls")
        async with worker(streams, endpoints, "alive", counted.run):
            counted.hold.set()
            Cut.cut.set()
            # Its runs are stopped before anybody else can begin: the limit holds over both.
            await until(lambda: _is(lambda: lost.now["writer"] == 0 or bool(counted.by_worker)), "something happened")
            assert lost.now["writer"] == 0
            await until(lambda: _is(lambda: len(counted.done) == len(calls)), "the calls ran elsewhere")
    assert not lost.done
    assert counted.most["writer"] <= LIMITS["writer"]


async def cancel(streams: Streams, call: Call) -> None:
    """What a decider does when a task ends while calls of it are open."""
    await order_nothing(streams, call.tenant_id, Commit(cancels=[call.call_id]))


async def order_nothing(streams: Streams, tenant: str, commit: Commit) -> None:
    values = ["task.submitted", "1", "s", "t", "normal", "user", "user", "", "2026-01-01T00:00:00Z", "{}"]
    await streams.functions.append(
        tenant, key=new_id(), fingerprint="f", ttl_ms=60_000, task_id="t", fact=[new_id(), *values], blobs={}
    )
    leased = await streams.functions.lease(range(SHARDS), "decider", lease_ms=9_000, max_tenants=99, max_entries=999)
    batches = [batch for batches in leased for batch in batches]
    commits = [(batch, commit if batch.tenant_id == tenant else Commit()) for batch in batches]
    assert all(await streams.functions.commit("decider", commits))


async def test_a_cancelled_run_is_told_once_and_what_it_returns_settles_the_call(
    streams: Streams, endpoints: Endpoints
) -> None:
    running: set[str] = set()
    told: Counter[str] = Counter()

    async def run(taken: TakenCall) -> list[AgentEvent]:
        running.add(taken.call.tenant_id)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told[taken.call.tenant_id] += 1
            assert taken.delivery.cancelled
            # Winding down takes longer than the next renewals.
            await asyncio.sleep(2.5)
        return [an_event(taken, AgentCancelled)]

    calls = {tenant: a_call(tenant, "writer") for tenant in ("acme", "globex")}
    async with worker(streams, endpoints, "worker", run):
        await order(streams, list(calls.values()))
        await until(lambda: _is(lambda: running == calls.keys()), "both calls run")
        await cancel(streams, calls["acme"])
        await until(lambda: _cancelled(streams, "acme"), "the cancelled call was settled", deadline_s=10)
        # The other tenant's run goes on, until it is cancelled too.
        assert told == {"acme": 1}
        await cancel(streams, calls["globex"])
        await until(lambda: _cancelled(streams, "globex"), "the other call was settled", deadline_s=10)
        await cancel(streams, calls["globex"])  # a call that is not there any more is no error
    assert told == {"acme": 1, "globex": 1}
    assert not await streams.redis.keys("*:call:*")
    assert not await streams.redis.keys("*:leases")


async def _cancelled(streams: Streams, tenant: str) -> bool:
    return await types_of(streams, tenant, "agent.cancelled") == 1


async def types_of(streams: Streams, tenant: str, kind: str) -> int:
    return sum(event.type == kind for event in readable(tenant, await streams.log.read(tenant, limit=100_000))[0])


class RenewsAsItSettles(Functions):
    """Renews each call in the pipeline that settles it: the settle is done when the renewal asks for the lease."""

    subscriber: CallSubscriber

    async def settle(
        self, delivery: Delivery, *, facts: list[Fields], blobs: dict[str, bytes], parked: Sequence[Fields] = ()
    ) -> None:
        settling = asyncio.create_task(super().settle(delivery, facts=facts, blobs=blobs, parked=parked))
        await asyncio.sleep(0)
        renewal = asyncio.create_task(self.subscriber._renew())
        await asyncio.gather(settling, renewal)


async def test_a_call_that_is_renewed_while_it_settles_is_not_lost(streams: Streams, endpoints: Endpoints) -> None:
    counted = Counted()
    counted.hold.set()
    calls = [a_call(tenant, "writer") for tenant in TENANTS]
    with capture_logs() as logs:
        async with worker(streams, endpoints, "worker", counted.run, functions=RenewsAsItSettles) as subscriber:
            assert isinstance(subscriber.streams.functions, RenewsAsItSettles)
            subscriber.streams.functions.subscriber = subscriber
            await order(streams, calls)
            await until(lambda: _is(lambda: len(counted.done) == len(calls)), "every call ran")
            await until(lambda: _equals(slots_in_use(streams), dict.fromkeys(LIMITS, 0)), "every run ended")
    assert [log for log in logs if log["event"] == "lease_lost"] == []


async def test_a_call_that_is_cancelled_while_it_waits_is_gone(streams: Streams, endpoints: Endpoints) -> None:
    counted = Counted()
    counted.hold.set()
    first, second = a_call("acme", "writer"), a_call("acme", "writer")
    await order(streams, [first, second])
    await cancel(streams, first)
    async with worker(streams, endpoints, "worker", counted.run):
        await until(lambda: _is(lambda: bool(counted.done)), "the other call ran")
    assert counted.done == {second.call_id}


@pytest.mark.timeout(120)
async def test_three_processes_keep_an_agents_limit(
    streams: Streams, worker_env: dict[str, str], tmp_path: Path
) -> None:
    batch, limit = 60, 4
    config = SimulatorConfig(prices=load_prices(PRICES), faults=[FaultRule(latency_ms=60, jitter_ms=60)])
    with SimulatorProcess(config) as simulator, contextlib.ExitStack() as stack:
        env = worker_env | {"HEADWATER_LLM_BASE_URL": f"{simulator.url}/v1", "HEADWATER_LOG_LEVEL": "info"}
        # Longer than these processes may stall on a busy machine: who loses his lease cannot recall what he sent.
        env |= {"HEADWATER_LEASE_MS": "20000"}
        arguments = ["worker", "--agents", "tests.slot_team:team"]
        workers = [
            stack.enter_context(HeadwaterProcess(arguments, env, tmp_path / f"worker-{n}.log")) for n in range(3)
        ]
        await until(lambda: _is(lambda: all("worker_started" in w.output() for w in workers)), "all workers are up")
        submitted = 0

        async def ended() -> bool:
            return sum([await types_of(streams, tenant, "task.completed") for tenant in TENANTS]) == submitted

        # One worker may be done with a batch before the others have looked: go on until they share the work.
        while len(await workers_of(streams)) < 2:
            for n in range(batch):
                tenant = TENANTS[n % len(TENANTS)]
                await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text=f"task {n}"))
            submitted += batch
            await until(ended, "all tasks were completed")
        stats = simulator.stats()
    assert stats["max_in_flight"]["agent:narrow"] == limit


async def workers_of(streams: Streams) -> set[str]:
    """The workers that ran an agent."""
    events = [
        event for tenant in TENANTS for event in readable(tenant, await streams.log.read(tenant, limit=100_000))[0]
    ]
    return {event.body.worker for event in events if isinstance(event.body, AgentStarted)}
