"""An event that the supervisor cannot handle is tried again with growing delays; others go on, its task waits."""

import asyncio
import itertools
import time

import pytest

from headwater.embedded import Endpoints
from headwater.settings import Settings
from schemas.bodies import EventParked
from streams.connection import Streams
from streams.functions import Commit, Retry, TenantBatch
from tests.conftest import SHARDS
from tests.deciding import (
    BROKEN,
    Rule,
    ask_to_cancel,
    events_of,
    submit,
    supervisor,
    types_of,
    until_types,
)
from tests.processes import until

DELAYS_S = (0.2, 0.5, 0.9)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Three retries, sooner than in life."""
    return settings.model_copy(update={"retry_delays_s": DELAYS_S})


def test_the_delays_are_one_four_and_sixteen_seconds() -> None:
    assert Settings().retry_delays_s == (1.0, 4.0, 16.0)
    assert Settings(retry_delays_s="0.5, 2").retry_delays_s == (0.5, 2.0)


async def test_it_is_tried_again_after_each_delay_and_then_parked(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    rule = Rule()
    async with supervisor(streams, endpoints, settings, rule):
        accepted = await submit(streams, "acme", BROKEN)
        await until_types(streams, accepted, ["task.submitted", "event.parked"])
        asked = rule.asked_at[accepted.task_id]
    waited = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(waited) == len(DELAYS_S)
    for found, wanted in zip(waited, DELAYS_S, strict=True):
        # A wake of its own, not the next sweep.
        assert wanted - 0.01 <= found < wanted + 0.6
    body = (await events_of(streams, accepted))[-1].body
    assert isinstance(body, EventParked)
    assert (body.attempts, body.position, body.event_type) == (4, accepted.position, "task.submitted")
    assert body.error == "LookupError: no such customer"


async def test_others_go_on_meanwhile_and_the_task_keeps_its_order(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    rule = Rule()
    async with supervisor(streams, endpoints, settings, rule):
        stuck = await submit(streams, "acme", BROKEN)
        await ask_to_cancel(streams, stuck)
        beside = [await submit(streams, tenant, f"fine {n}") for n in range(3) for tenant in ("acme", "globex")]
        for accepted in beside:
            await until_types(streams, accepted, ["task.submitted", "task.routed"])
        assert await types_of(streams, stuck) == ["task.submitted", "task.cancel_requested"]
        rule.mended = True
        # In the order of the log: routed first, and then cancelled.
        wanted = ["task.submitted", "task.cancel_requested", "task.routed", "task.cancelled"]
        await until_types(streams, stuck, wanted)
        # Once caught up, the task is as any other.
        assert await streams.redis.keys("*:deferred") == []
        assert await streams.redis.keys("*:due") == []
        assert 2 <= len(rule.asked_at[stuck.task_id]) <= 4


async def test_events_that_come_later_wait_behind_it(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    rule = Rule()
    async with supervisor(streams, endpoints, settings, rule):
        stuck = await submit(streams, "acme", BROKEN)
        await until_asked(rule, stuck.task_id)
        # These are read while their task is deferred: alone in their batch, and together with another task's.
        await ask_to_cancel(streams, stuck)
        other = await submit(streams, "acme", "fine")
        await until_types(streams, other, ["task.submitted", "task.routed"])
        await ask_to_cancel(streams, stuck)
        rule.mended = True
        await until_types(
            streams, stuck, ["task.submitted", *["task.cancel_requested"] * 2, "task.routed", "task.cancelled"]
        )


async def until_asked(rule: Rule, task_id: str) -> None:
    async def asked() -> bool:
        return task_id in rule.asked_at

    await until(asked, "the rule was asked")


async def test_while_one_is_deferred_nothing_is_polled(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    rule = Rule()
    settings = settings.model_copy(update={"retry_delays_s": (3600.0,)})
    async with supervisor(streams, endpoints, settings, rule):
        stuck = await submit(streams, "acme", BROKEN)
        await until_asked(rule, stuck.task_id)
        before = (await streams.redis.info("commandstats"))["cmdstat_fcall"]["calls"]
        began = time.monotonic()

        async def later() -> bool:
            return time.monotonic() > began + 2

        await until(later, "two seconds passed")
        asked = (await streams.redis.info("commandstats"))["cmdstat_fcall"]["calls"] - before
    assert asked <= 4 * SHARDS  # the sweeps
    assert len(rule.asked_at[stuck.task_id]) == 1


async def lease(streams: Streams, **more: int) -> list[TenantBatch]:
    options = {"lease_ms": 60_000, "max_tenants": 10, "max_entries": 100} | more
    leased = await streams.functions.lease(range(SHARDS), "decider", states=True, **options)  # type: ignore[arg-type]
    return [batch for batches in leased for batch in batches]


async def test_a_batch_of_deferred_entries_is_fenced_as_any_other(streams: Streams) -> None:
    accepted = await submit(streams, "acme", "x")
    await ask_to_cancel(streams, accepted)
    [batch] = await lease(streams)
    retry = Retry(accepted.task_id, 1, 0, batch.entries[0][0])
    made = Commit(retries=[retry], behind=[(accepted.task_id, batch.entries[1][0])])
    assert await streams.functions.commit("decider", [(batch, made)]) == [True]
    # It is due at once. The first reader dies with it.
    [dead] = await lease(streams, lease_ms=1)
    assert dead.tried == {accepted.task_id: (1, 2)}
    assert (dead.start, dead.end, dead.entries) == (batch.end, batch.end, batch.entries)
    async with asyncio.timeout(10):
        while not (again := await lease(streams)):
            continue
    assert again[0].entries == dead.entries
    assert await streams.functions.commit("decider", [(dead, Commit(ended=[accepted.task_id]))]) == [False]
    # The first entry is done with, the second fails: its attempts count from one.
    second = Retry(accepted.task_id, 1, 60_000, batch.entries[1][0])
    rest = Commit(tried={accepted.task_id: 1}, retries=[second])
    assert await streams.functions.commit("decider", [(again[0], rest)]) == [True]
    deferred = await streams.redis.hgetall(f"{streams.keys.prefix('acme')}:deferred")
    assert deferred == {accepted.task_id.encode(): f"1 {batch.entries[1][0]}".encode()}
    assert await lease(streams) == []
    leased = await streams.functions.lease(
        range(SHARDS), "decider", lease_ms=1, max_tenants=1, max_entries=1, states=True
    )
    [due] = [batches.due_in_ms for batches in leased if batches.due_in_ms is not None]
    assert 50_000 < due <= 60_000
