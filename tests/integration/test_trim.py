"""Trimming removes what is archived and nobody needs, and reading a log gives the same before and after (I10)."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.history import History, event_json
from headwater.runtime import add_projector, make_broker
from headwater.settings import Settings
from headwater.trimming import Trimmed, trim_logs
from projections.db import Pool
from projections.projection import START, parse_position
from projections.runner import Runner
from schemas.bodies import AgentCompleted
from schemas.content import INLINE_LIMIT_BYTES
from schemas.errors import NotFoundError
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import Accepted, NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.functions import Commit, NewCall, Retry
from streams.parked import DeadLetters
from tests.conftest import SHARDS
from tests.deciding import BROKEN, Rule, events_of, submit, supervisor, types_of, until_types
from tests.processes import until

LONG = "x" * (INLINE_LIMIT_BYTES + 100)


@asynccontextmanager
async def projector(streams: Streams, endpoints: Endpoints, pool: Pool, settings: Settings) -> AsyncIterator[None]:
    """The projections, kept up to date."""
    broker = make_broker(endpoints.redis_url, streams)
    add_projector(broker, streams, Runner(pool, streams.log), settings)
    await broker.start()
    try:
        yield
    finally:
        await broker.stop()


async def archived(streams: Streams, pool: Pool, *tenants: str) -> None:
    """Wait until everything is archived."""

    async def done() -> bool:
        rows = await pool.fetch("SELECT tenant, ms, seq FROM positions WHERE projection = 'archive'")
        there = {row["tenant"]: (row["ms"], row["seq"]) for row in rows}
        return all([there.get(t) == parse_position(await streams.log.end(t)) for t in tenants])

    await until(done, "everything is archived")


async def end(streams: Streams, accepted: Accepted, result: Any = "done") -> None:
    """What a worker's last fact makes of a task: its agent has completed."""
    events = await events_of(streams, accepted)
    routed = next(event for event in events if event.type == "task.routed")
    completed = AgentEvent(
        id=new_id(),
        tenant_id=accepted.tenant_id,
        session_id="s",
        task_id=accepted.task_id,
        source_agent_id="idle",
        call_chain=("user", "supervisor", "idle"),
        parent_event_id=routed.id,
        at=routed.at,
        body=AgentCompleted(
            agent_id="idle",
            call_id=routed.body.call_id,  # type: ignore[attr-defined]
            delivery=1,
            result=result,
            duration_us=1,
        ),
    )
    await TenantEventBus(streams, accepted.tenant_id).publish(completed)


DONE = ["task.submitted", "task.routed", "agent.completed", "task.completed"]


async def do(streams: Streams, tenant: str, text: str, result: Any = "done") -> Accepted:
    """A task from its submission to its end."""
    accepted = await submit(streams, tenant, text)
    await until_types(streams, accepted, DONE[:2])
    await end(streams, accepted, result)
    await until_types(streams, accepted, DONE)
    return accepted


async def trim(streams: Streams, pool: Pool, tenant: str | None = None, *, hours: float = 0.0) -> list[Trimmed]:
    """Trim with the given retention; the last millisecond is over."""
    now = int(time.time() * 1000)

    async def later() -> bool:
        return int(time.time() * 1000) > now

    await until(later, "the next millisecond")
    return await trim_logs(streams, pool, retention_hours=hours, tenant_id=tenant)


async def whole_log(streams: Streams, pool: Pool, tenant: str, *, limit: int = 3) -> list[dict[str, Any]]:
    """The log as one, in small pages."""
    history, found, after = History(streams.log, pool), [], START
    while True:
        page = await history.page(tenant, after=after, limit=limit)
        found += [event_json(tenant, entry) for entry in page.entries]
        after = page.last
        if not page.more:
            return found


async def test_reading_is_the_same_after_trimming(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings
) -> None:
    async with supervisor(streams, endpoints, settings, Rule()), projector(streams, endpoints, pool, settings):
        for n in range(6):
            await do(streams, "acme", f"{n} {LONG}")
        await do(streams, "globex", LONG)
        open_task = await submit(streams, "acme", f"open {LONG}")
        await until_types(streams, open_task, DONE[:2])
        await archived(streams, pool, "acme", "globex")
        before = {tenant: await whole_log(streams, pool, tenant) for tenant in ("acme", "globex")}
        globex = await streams.log.read("globex")

        [trimmed] = await trim(streams, pool, "acme")
        # Everything but the open task. The other tenant's log is as it was.
        assert trimmed.entries == 6 * 4
        assert [entry[0] for entry in await streams.log.read("acme")] == [
            event.position for event in await events_of(streams, open_task)
        ]
        assert await streams.log.read("globex") == globex
        assert {tenant: await whole_log(streams, pool, tenant) for tenant in before} == before
        # Contents that only the removed entries referred to are gone from Redis. The open task's is not.
        assert trimmed.blobs == 6
        assert len(await streams.redis.keys(f"{streams.keys.prefix('acme')}:blob:*")) == 1
        assert len(await streams.redis.keys(f"{streams.keys.prefix('globex')}:blob:*")) == 1
        [again] = await trim(streams, pool, "acme")
        assert (again.entries, again.blobs) == (0, 0)

        # Work goes on, and the log as one goes on with it.
        await end(streams, open_task)
        await until_types(streams, open_task, DONE)
        await do(streams, "acme", "later")
        await archived(streams, pool, "acme")
        after = await whole_log(streams, pool, "acme")
        assert after[: len(before["acme"])] == before["acme"]
        assert len(after) == len(before["acme"]) + 2 + 4


async def test_what_is_younger_than_the_retention_or_not_archived_stays(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings
) -> None:
    async with supervisor(streams, endpoints, settings, Rule()):
        async with projector(streams, endpoints, pool, settings):
            await do(streams, "acme", "archived")
            await archived(streams, pool, "acme")
        before = await streams.log.read("acme")
        assert [one.entries for one in await trim(streams, pool, hours=1.0)] == [0]
        assert await streams.log.read("acme") == before
        await do(streams, "acme", "not archived")
        [trimmed] = await trim(streams, pool)
        # The projector's own position is kept: that entry and all later ones.
        assert trimmed.entries == len(before) - 1
        assert len(await streams.log.read("acme")) == 1 + 4
        # No archive, no trimming.
        assert (await trim(streams, pool, "globex"))[0].entries == 0


async def test_what_is_deferred_or_parked_stays(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings
) -> None:
    settings = settings.model_copy(update={"retry_delays_s": ()})
    rule = Rule()
    async with supervisor(streams, endpoints, settings, rule), projector(streams, endpoints, pool, settings):
        await do(streams, "acme", "before")
        parked = await submit(streams, "acme", BROKEN)
        await until_types(streams, parked, ["task.submitted", "event.parked"])
        await do(streams, "acme", "after")
        await archived(streams, pool, "acme")
        # As if its task had ended, so that only the dead letter holds it.
        await pool.execute("UPDATE tasks SET ended_at = submitted_at WHERE task = $1", parked.task_id)
        [trimmed] = await trim(streams, pool)
        assert trimmed.bound == parked.position
        rule.mended = True
        [letter] = await DeadLetters(streams).page("acme")
        await DeadLetters(streams).redrive("acme", letter.id)

        async def routed() -> bool:
            return "task.routed" in await types_of(streams, parked)

        await until(routed, "the parked entry was still there to be handled")


async def test_the_steps_of_an_open_call_stay(streams: Streams) -> None:
    accepted = await submit(streams, "acme", "x")
    leased = await streams.functions.lease(
        range(SHARDS), "decider", lease_ms=9_000, max_tenants=9, max_entries=9, states=True
    )
    [batch] = [batch for batches in leased for batch in batches]
    call = NewCall("c1", "idle", 2, b"{}")
    await streams.functions.commit("decider", [(batch, Commit(calls=[call]))])
    [[delivery]] = await streams.functions.take([(batch.shard, [("idle", 1)])], "worker", lease_ms=60_000)
    values = ["step.recorded", "1", "s", accepted.task_id, "normal", "idle", "idle", "", "2026-01-01T00:00:00Z", "{}"]
    step = await streams.functions.record(delivery, lease_ms=60_000, key="0.0@1", facts=[[new_id(), *values]], blobs={})
    await submit(streams, "acme", "later")
    # Every reader has read everything.
    for reader in ("decider", "projector"):
        leased = await streams.functions.lease(range(SHARDS), reader, lease_ms=9_000, max_tenants=9, max_entries=9)
        await streams.functions.commit(reader, [(batch, Commit()) for batches in leased for batch in batches])
    _, bound, _ = await streams.functions.trim("acme", upto="9999999999999-0")
    assert parse_position(bound)[0] == parse_position(step)[0]
    assert step in [position for position, _ in await streams.log.read("acme")]
    await streams.functions.settle(delivery, facts=[], blobs={})
    _, bound, _ = await streams.functions.trim("acme", upto="9999999999999-0")
    assert bound == await streams.log.end("acme")


async def test_a_deferred_entry_stays_whatever_the_caller_says(streams: Streams) -> None:
    first, second = await submit(streams, "acme", "x"), await submit(streams, "acme", "y")
    leased = await streams.functions.lease(range(SHARDS), "decider", lease_ms=9_000, max_tenants=9, max_entries=9)
    [batch] = [batch for batches in leased for batch in batches]
    retry = Retry(first.task_id, 1, None, first.position)
    await streams.functions.commit("decider", [(batch, Commit(retries=[retry]))])
    leased = await streams.functions.lease(range(SHARDS), "projector", lease_ms=9_000, max_tenants=9, max_entries=9)
    await streams.functions.commit("projector", [(batch, Commit()) for batches in leased for batch in batches])
    removed, bound, _ = await streams.functions.trim("acme", upto="9999999999999-0")
    assert (removed, bound) == (0, first.position)
    assert [position for position, _ in await streams.log.read("acme")] == [first.position, second.position]


async def test_the_end_of_a_task_is_found_after_it_was_trimmed(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings, database_url: str
) -> None:
    result = {"text": LONG}
    async with supervisor(streams, endpoints, settings, Rule()), projector(streams, endpoints, pool, settings):
        task = NewTask(tenant="acme", session="s", text="once", idempotency_key="k")
        accepted = await TenantEventBus(streams, "acme").submit(task)
        await until_types(streams, accepted, DONE[:2])
        await end(streams, accepted, result)
        await until_types(streams, accepted, DONE)
        # Its last entry is removed too: the readers have read on.
        await do(streams, "acme", "later")
        await archived(streams, pool, "acme")
        assert (await trim(streams, pool))[0].blobs == 1
        assert await events_of(streams, accepted) == []
        async with Headwater(settings, Endpoints(endpoints.redis_url, database_url)) as hw:
            outcome = await asyncio.wait_for(hw.wait(accepted), 10)
            assert (outcome.status, outcome.result) == ("completed", result)
            # The same task submitted again is the same task, and has the same outcome.
            assert (await asyncio.wait_for(hw.run(task), 10)).result == result
        with pytest.raises(NotFoundError):
            await streams.log.fetch("acme", [accepted.position])


async def test_a_content_that_is_used_again_stays(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings
) -> None:
    async with supervisor(streams, endpoints, settings, Rule()), projector(streams, endpoints, pool, settings):
        await do(streams, "acme", LONG)
        again = await submit(streams, "acme", LONG)
        await until_types(streams, again, DONE[:2])
        await archived(streams, pool, "acme")
        [trimmed] = await trim(streams, pool)
        assert (trimmed.entries, trimmed.blobs) == (4, 0)
        [submitted, _] = await events_of(streams, again)
        assert await streams.log.resolve("acme", submitted.body.text) == LONG  # type: ignore[attr-defined]


async def test_the_commands(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings, database_url: str
) -> None:
    env = {"REDIS_URL": endpoints.redis_url, "DATABASE_URL": database_url, "HEADWATER_SHARDS": str(settings.shards)}
    async with supervisor(streams, endpoints, settings, Rule()), projector(streams, endpoints, pool, settings):
        for tenant in ("acme", "globex"):
            await do(streams, tenant, f"of {tenant}")
        await archived(streams, pool, "acme", "globex")
        before = await command(env, "events", "--tenant", "acme", "--json")
        assert before.count("\n") == 4
        [line] = (await command(env, "trim", "--tenant", "acme", "--older-than", "0", "--json")).splitlines()
        assert json.loads(line)["entries"] == 3
        assert await command(env, "events", "--tenant", "acme", "--json") == before
        assert len(await streams.log.read("globex")) == 4
        assert "HEADWATER_RETENTION_HOURS" in await command(env, "trim", status=2)


async def command(env: dict[str, str], *arguments: str, status: int = 0) -> str:
    """`headwater …` as a user runs it: its output, or with a status its error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", *arguments),
        env=os.environ | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == status, err.decode()
    return (err if status else out).decode()
