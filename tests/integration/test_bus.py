"""One tenant's door to the log, `TenantEventBus`, on a real Redis."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.bodies import TaskFailed, TaskSubmitted
from schemas.content import INLINE_LIMIT_BYTES, MAX_CONTENT_BYTES, blob_of
from schemas.errors import IdempotencyConflictError, InvalidInputError, NotFoundError, TenantMismatchError
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.functions import Functions
from streams.log import read_event

DEADLINE_S = 10.0


def new_task(tenant: str = "acme", text: str = "Summarise the report.", **more: Any) -> NewTask:
    return NewTask(tenant=tenant, session="s1", text=text, **more)


def new_event(tenant: str = "acme", **more: Any) -> AgentEvent:
    fields: dict[str, Any] = {"id": new_id(), "tenant_id": tenant, "session_id": "s1", "task_id": "task-1"} | more
    chain = ("user", fields.setdefault("source_agent_id", "user"))
    return AgentEvent(call_chain=chain, at=datetime.now(UTC), body=TaskFailed(reason="no"), **fields)


async def submitted(streams: Streams, tenant: str) -> list[AgentEvent]:
    """The tenant's log."""
    return [read_event(tenant, entry) for entry in await streams.log.read(tenant)]


async def test_a_submitted_task_is_one_event(streams: Streams) -> None:
    bus = TenantEventBus(streams, "acme")
    task = new_task(type="report", data={"n": [1, None, "ü"]}, priority="high", idempotency_key="k1")
    accepted = await bus.submit(task)
    [event] = await submitted(streams, "acme")
    assert event.body == TaskSubmitted(task_type="report", text=task.text, data=task.data, idempotency_key="k1")
    assert (event.tenant_id, event.session_id, event.priority) == ("acme", "s1", "high")
    assert (event.task_id, event.position, accepted.duplicate) == (accepted.task_id, accepted.position, False)
    assert (event.source_agent_id, event.call_chain, event.parent_event_id) == ("user", ("user",), None)


async def test_a_task_or_event_of_another_tenant_is_refused(streams: Streams) -> None:
    bus = TenantEventBus(streams, "acme")
    before = await streams.redis.keys()
    with pytest.raises(TenantMismatchError, match=r"'globex'.*'acme'"):
        await bus.submit(new_task("globex"))
    with pytest.raises(TenantMismatchError, match=r"'globex'.*'acme'"):
        await bus.publish(new_event("globex"))
    assert await streams.redis.keys() == before


@pytest.mark.parametrize(
    "tenant", ["", "A", "a b", "a:b", "a:log", "{a}", "a}", "a\n", "a\x00", "-a", "ü", "*", "a/b", "a|b", "a" * 64]
)
async def test_a_bad_tenant_id_is_refused_wherever_it_enters(streams: Streams, tenant: str) -> None:
    before = await streams.redis.keys()
    with pytest.raises(InvalidInputError, match="tenant id"):
        TenantEventBus(streams, tenant)
    with pytest.raises(ValidationError, match="tenant id"):
        new_task(tenant)
    with pytest.raises(InvalidInputError, match="tenant id"):
        new_event(tenant)
    # Past the front door it is refused as well, before it can become part of a key.
    with pytest.raises(InvalidInputError, match="tenant id"):
        await streams.log.read(tenant)
    with pytest.raises(InvalidInputError, match="tenant id"):
        await streams.functions.append(
            tenant, key="k", fingerprint="f", ttl_ms=1000, task_id="t", fact=["x"] * 11, blobs={}
        )
    assert await streams.redis.keys() == before


async def test_an_idempotency_key_used_concurrently_gives_one_event(streams: Streams, other: Streams) -> None:
    buses = [TenantEventBus(client, "acme") for client in (streams, other)]
    accepted = await asyncio.gather(*(bus.submit(new_task(idempotency_key="k1")) for bus in buses * 25))
    assert Counter(a.duplicate for a in accepted) == {False: 1, True: 49}
    assert len({(a.task_id, a.position) for a in accepted}) == 1
    [event] = await submitted(streams, "acme")
    assert event.task_id == accepted[0].task_id
    # The same key of another tenant is another key, and no key at all is none.
    assert not (await TenantEventBus(streams, "globex").submit(new_task("globex", idempotency_key="k1"))).duplicate
    await asyncio.gather(*(buses[0].submit(new_task()) for _ in range(3)))
    assert (len(await submitted(streams, "acme")), len(await submitted(streams, "globex"))) == (4, 1)


@pytest.mark.parametrize(
    "other",
    [{"text": "Another."}, {"type": "other"}, {"priority": "low"}, {"data": {"a": 1}}, {"data": {"a": 2, "b": None}}],
)
async def test_an_idempotency_key_of_another_task_is_a_conflict(streams: Streams, other: dict[str, Any]) -> None:
    bus = TenantEventBus(streams, "acme")
    accepted = await bus.submit(new_task(idempotency_key="k1", data={"b": None, "a": 1}))
    # The order of an object's keys is no difference.
    assert (await bus.submit(new_task(idempotency_key="k1", data={"a": 1, "b": None}))).duplicate
    with pytest.raises(IdempotencyConflictError, match=accepted.task_id):
        await bus.submit(new_task(**({"idempotency_key": "k1", "data": {"b": None, "a": 1}} | other)))
    assert len(await submitted(streams, "acme")) == 1


async def test_an_event_is_published_once_per_id(streams: Streams) -> None:
    bus, event = TenantEventBus(streams, "acme"), new_event()
    positions = await asyncio.gather(*(bus.publish(event) for _ in range(10)))
    assert positions == [(await streams.log.end("acme"))] * 10
    # A producer's key that looks like an event's id is no event's id.
    assert not (await bus.submit(new_task(idempotency_key=f"e.{event.id}"))).duplicate
    assert not (await bus.submit(new_task(idempotency_key=event.id))).duplicate
    assert [e.type for e in await submitted(streams, "acme")] == ["task.failed", "task.submitted", "task.submitted"]


@pytest.mark.parametrize("field", ["task_id", "id"])
async def test_an_event_with_a_space_in_an_id_is_published_once(streams: Streams, field: str) -> None:
    # An AgentEvent takes any text of 1 to 64 characters as these ids.
    bus, event = TenantEventBus(streams, "acme"), new_event(**{field: "two words"})
    assert await bus.publish(event) == await bus.publish(event)
    assert len(await submitted(streams, "acme")) == 1


async def test_large_contents_are_blobs_of_their_tenant(streams: Streams) -> None:
    text, data = "ü" * INLINE_LIMIT_BYTES, {"$blob": "mine", "bytes": 1}
    await TenantEventBus(streams, "acme").submit(new_task(text=text, data=data))
    [event] = await submitted(streams, "acme")
    assert isinstance(event.body, TaskSubmitted)
    sha = blob_of(event.body.text)
    assert sha is not None
    assert await streams.log.resolve("acme", event.body.text) == text
    # A user's own object that looks like a reference is not taken for one.
    assert await streams.log.resolve("acme", event.body.data) == data
    with pytest.raises(NotFoundError, match=sha):
        await streams.log.resolve("globex", event.body.text)
    await TenantEventBus(streams, "acme").submit(new_task(text="small"))
    assert len(await streams.redis.keys("*:blob:*")) == 1


async def test_what_cannot_be_stored_is_refused_and_nothing_is_written(streams: Streams) -> None:
    bus = TenantEventBus(streams, "acme")
    before = await streams.redis.keys()
    for data in ({"x": "y" * MAX_CONTENT_BYTES}, {"x": "\ud800"}, {"x": {1, 2}}):
        with pytest.raises(InvalidInputError):
            await bus.submit(new_task(data=data))
    assert await streams.redis.keys() == before


async def test_an_event_that_cannot_be_sent_harms_no_other(streams: Streams) -> None:
    # Both travel in one pipeline; a lone surrogate has no UTF-8.
    bad = TenantEventBus(streams, "acme").publish(new_event(source_agent_id="\ud800"))
    good = TenantEventBus(streams, "globex").submit(new_task("globex"))
    refused, accepted = await asyncio.gather(bad, good, return_exceptions=True)
    assert isinstance(refused, Exception)
    assert not isinstance(accepted, BaseException), accepted
    assert (len(await submitted(streams, "acme")), len(await submitted(streams, "globex"))) == (0, 1)


async def test_read_in_order_and_by_position(streams: Streams) -> None:
    acme, globex = TenantEventBus(streams, "acme"), TenantEventBus(streams, "globex")
    positions = [(await acme.submit(new_task(text=str(n)))).position for n in range(5)]
    await globex.submit(new_task("globex"))
    assert [position for position, _ in await acme.read()] == positions
    assert [position for position, _ in await acme.read(after=positions[1], limit=2)] == positions[2:4]
    assert await acme.read(after=positions[-1]) == []
    assert len(await globex.read()) == 1


async def test_follow_gives_what_is_there_and_what_comes(streams: Streams) -> None:
    acme, globex = TenantEventBus(streams, "acme"), TenantEventBus(streams, "globex")
    positions = [(await acme.submit(new_task())).position for _ in range(3)]
    entries: Any = acme.follow(after=positions[0])
    async with asyncio.timeout(DEADLINE_S):
        assert [(await anext(entries))[0] for _ in range(2)] == positions[1:]
        coming = asyncio.create_task(anext(entries))
        while not any(c["cmd"] == "xread" and "b" in c["flags"] for c in await streams.redis.client_list()):
            continue
        await globex.submit(new_task("globex"))
        accepted = await acme.submit(new_task())
        assert (await coming)[0] == accepted.position
    await entries.aclose()


async def test_a_submission_is_not_left_behind_when_all_pipelines_end_at_once(streams: Streams) -> None:
    gate = asyncio.Event()

    class Gated(Functions):
        async def _send(self, groups: Any) -> None:
            await super()._send(groups)
            await gate.wait()

    gated = Gated(streams.redis, streams.keys)
    bus = TenantEventBus(replace(streams, functions=gated), "acme")

    async def submit_late() -> None:
        await gate.wait()
        await bus.submit(new_task())

    # Two pipelines are on their way, and a caller comes in the very turn in which both have ended.
    await bus.submit(new_task())
    await bus.submit(new_task())
    late = asyncio.create_task(submit_late())
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait_for(late, DEADLINE_S)
    assert len(await submitted(streams, "acme")) == 3
    await gated.close()
