"""Keys of a tenant that somebody damaged: the culprit is named, the log is the truth, and the others go on."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
import structlog

from handlers.decider import redecide
from handlers.refold import refold
from handlers.strictness import StrictnessConfig
from handlers.supervisor import Rules, TaskState
from headwater import AgentRegistration, BaseAgent, HandOver, HybridRouter, Task, TaskContext, Team
from headwater.embedded import Endpoints
from headwater.runtime import add_decider, add_runner, make_broker, make_llm
from headwater.settings import Settings
from schemas.errors import NotFoundError
from schemas.event import AgentEvent
from schemas.task import Accepted, NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable
from streams.outcomes import Outcomes
from tests.processes import until

DEADLINE_S = 40


class First(BaseAgent):
    """Proposes a handoff that is rejected, then one that is not."""

    registration = AgentRegistration(agent_id="first", name="First", description="begins", max_concurrent_tasks=50)

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """No model is asked."""
        target = "second" if context.repair_reasons else "nobody"
        return context.hand_over(target, payload_type="memo", content={"n": 1})


class Second(BaseAgent):
    """Waits until it may end."""

    registration = AgentRegistration(agent_id="second", name="Second", description="ends", max_concurrent_tasks=50)
    go_on: ClassVar[asyncio.Event]

    async def execute(self, task: Task, context: TaskContext) -> str:
        """No model is asked."""
        await self.go_on.wait()
        return task.text


team = Team(
    agents=[First(), Second()],
    router=HybridRouter([lambda task: "first"]),
    strictness=StrictnessConfig(semantic=False),
)


@pytest.fixture
async def half_way(streams: Streams, endpoints: Endpoints, settings: Settings) -> AsyncIterator[dict[str, Accepted]]:
    """A task each of two tenants, both at their second agent; a worker runs them."""
    Second.go_on = asyncio.Event()
    broker = make_broker(endpoints.redis_url, streams)
    add_decider(broker, streams, team, settings)
    add_runner(broker, streams, team, make_llm(settings), settings, "worker-1")
    await broker.start()
    try:
        accepted = {
            tenant: await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text=tenant))
            for tenant in ("acme", "globex")
        }

        async def both_are_there() -> bool:
            counts = [Counter(e.type for e in await events(streams, t))["handoff.accepted"] for t in accepted]
            return counts == [1, 1]

        await until(both_are_there, "both tasks are with their second agent")
        yield accepted
    finally:
        Second.go_on.set()
        await broker.stop()


async def events(streams: Streams, tenant: str) -> list[AgentEvent]:
    found, unreadable = readable(tenant, await streams.log.read(tenant))
    assert not unreadable
    return found


async def results(streams: Streams, accepted: dict[str, Accepted]) -> dict[str, Any]:
    Second.go_on.set()
    outcomes = Outcomes(streams)
    try:
        async with asyncio.timeout(DEADLINE_S):
            return {tenant: await outcomes.wait(task) for tenant, task in accepted.items()}
    finally:
        await outcomes.close()


DAMAGE = ["", "not json", "{}", "[1]", '{"tenant_id": 7}', "\x00\x01"]


@pytest.mark.parametrize("damage", [*DAMAGE, "newer"])
async def test_a_damaged_state_is_folded_anew_from_the_log(
    streams: Streams, half_way: dict[str, Accepted], damage: str
) -> None:
    key, task_id = f"{streams.keys.prefix('acme')}:state", half_way["acme"].task_id
    stored: Any = await streams.redis.hget(key, task_id)
    if damage == "newer":
        # As a newer version would leave it: it knows more about a task.
        damage = stored.decode()[:-1] + ',"mood":"good"}'
    await streams.redis.hset(key, task_id, damage)
    with structlog.testing.capture_logs() as logs:
        outcomes = await results(streams, half_way)
    assert [(o.status, o.result) for o in outcomes.values()] == [("completed", "acme"), ("completed", "globex")]
    assert outcomes["acme"].agent_results == {"first": {"n": 1}, "second": "acme"}
    named = [(log["tenant"], log["task"]) for log in logs if log["event"] == "state_folded_anew"]
    assert named == [("acme", task_id)]
    for tenant in half_way:
        assert list(redecide(await events(streams, tenant), Rules(team, team.strictness), {})) == []


async def test_the_state_folded_anew_is_the_state(streams: Streams, half_way: dict[str, Accepted]) -> None:
    for tenant, task in half_way.items():
        stored: Any = await streams.redis.hget(f"{streams.keys.prefix(tenant)}:state", task.task_id)
        assert await refold(streams.log, tenant, task.task_id, before="9999999999999-0") == (
            TaskState.model_validate_json(stored)
        )
        # Before it was submitted there was none.
        assert await refold(streams.log, tenant, task.task_id, before=task.position) is None
    with pytest.raises(NotFoundError, match=half_way["acme"].task_id):
        await refold(streams.log, "globex", half_way["acme"].task_id, before="9999999999999-0")


async def test_a_damaged_call_is_parked_by_name_and_the_others_go_on(
    streams: Streams, half_way: dict[str, Accepted]
) -> None:
    prefix = streams.keys.prefix("acme")
    bus = TenantEventBus(streams, "acme")
    # The bodies of calls are JSON of ours: one that waits in its queue is damaged before a worker takes it.
    await streams.redis.hset(f"{prefix}:call:damaged", mapping={"agent": "second", "rank": 1, "body": "not json"})
    await streams.redis.zadd(f"{prefix}:queue:second", {"damaged": 1})
    shard = streams.keys.shard_of("acme")
    await streams.redis.zadd(f"{streams.keys.prefixes[shard]}:ready:agent:second", {"acme": 1})
    later = await bus.submit(NewTask(tenant="acme", session="s", text="later"))
    outcomes = await results(streams, half_way | {"later": later})
    assert {outcome.status for outcome in outcomes.values()} == {"completed"}

    async def parked() -> bool:
        return bool(await streams.redis.xlen(streams.keys.parked("acme")) == 1)

    await until(parked, "the damaged call is parked")
    redis: Any = streams.redis
    [(_, fields)] = await redis.xrange(streams.keys.parked("acme"))
    assert fields[b"call"] == b"damaged"
    assert fields[b"body"] == b"not json"
    assert b"JSON" in fields[b"error"]
    assert await streams.redis.exists(f"{prefix}:call:damaged") == 0


async def test_a_missing_blob_fails_its_task_by_name(streams: Streams, half_way: dict[str, Accepted]) -> None:
    bus = TenantEventBus(streams, "acme")
    accepted = await bus.submit(NewTask(tenant="acme", session="s", text="long " * 2000))
    redis: Any = streams.redis
    [sha] = {key.rpartition(b":")[2].decode() for key in await redis.keys("*:acme:blob:*")}

    async def begun() -> bool:
        return any(e.type == "agent.started" and e.task_id == accepted.task_id for e in await events(streams, "acme"))

    await until(begun, "its first agent began")
    await streams.redis.delete(streams.keys.blob("acme", sha))
    outcomes = await results(streams, half_way | {"broken": accepted})
    assert outcomes["broken"].status in ("completed", "failed")
    if outcomes["broken"].status == "failed":
        assert sha in (outcomes["broken"].error or "")
    assert {outcomes[tenant].status for tenant in half_way} == {"completed"}
