"""A process that is stopped past its lease and wakes up later cannot write (I2)."""

import asyncio
import contextlib
import signal
from pathlib import Path

from headwater.simulator import FaultRule, SimulatorConfig, SimulatorProcess, load_prices
from schemas.event import AgentEvent
from schemas.task import Accepted, NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable
from tests.chaos.conftest import PRICES
from tests.processes import HeadwaterProcess, until

TENANT = "acme"
WORKER = ["worker", "--agents", "tests.chaos.team:team"]


async def _events(streams: Streams) -> list[AgentEvent]:
    events, unreadable = readable(TENANT, await streams.log.read(TENANT))
    assert not unreadable
    return events


async def _count(streams: Streams, event_type: str) -> int:
    return sum(event.type == event_type for event in await _events(streams))


async def _submit(streams: Streams) -> Accepted:
    return await TenantEventBus(streams, TENANT).submit(NewTask(tenant=TENANT, session="s", text="read this"))


async def test_a_decider_that_was_paused_past_its_lease_cannot_write(
    streams: Streams, worker_env: dict[str, str], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with SimulatorProcess(SimulatorConfig(prices=load_prices(PRICES))) as simulator, contextlib.ExitStack() as stack:
        env = worker_env | {"HEADWATER_LLM_BASE_URL": f"{simulator.url}/v1"}
        paused = stack.enter_context(HeadwaterProcess(WORKER, env | {"HOLD_RULE": str(hold)}, tmp_path / "paused.log"))
        accepted = await _submit(streams)

        # The first decider holds the lease while its rule waits; it is stopped in the middle of deciding.
        async def leased() -> bool:
            return await streams.redis.hget(streams.keys.readers(TENANT), "decider:epoch") == b"1"

        await until(leased, "the first decider leased the tenant")
        paused.signal(signal.SIGSTOP)
        stack.enter_context(HeadwaterProcess(WORKER, env, tmp_path / "other.log"))

        async def ended() -> bool:
            return await _count(streams, "task.completed") == 1

        await until(ended, "another decider took over and the task was completed")
        before = await streams.log.end(TENANT)
        hold.unlink()
        paused.signal(signal.SIGCONT)

        async def refused() -> bool:
            return "stale_lease" in paused.output()

        await until(refused, "the paused decider tried to commit and was refused")
    assert await streams.log.end(TENANT) == before
    assert [event.task_id for event in await _events(streams) if event.type == "task.routed"] == [accepted.task_id]


async def test_a_worker_that_was_paused_past_its_lease_cannot_write(
    streams: Streams, worker_env: dict[str, str], tmp_path: Path
) -> None:
    config = SimulatorConfig(prices=load_prices(PRICES), faults=[FaultRule(model="sim-fast", latency_ms=1500)])
    with SimulatorProcess(config) as simulator, contextlib.ExitStack() as stack:
        env = worker_env | {"HEADWATER_LLM_BASE_URL": f"{simulator.url}/v1"}
        paused = stack.enter_context(HeadwaterProcess(WORKER, env, tmp_path / "paused.log"))
        await _submit(streams)

        # `agent.started` is written while the agent waits for its first answer.
        async def started() -> bool:
            return await _count(streams, "agent.started") == 1

        await until(started, "the first worker began")
        paused.signal(signal.SIGSTOP)
        simulator.set_faults([])
        stack.enter_context(HeadwaterProcess(WORKER, env, tmp_path / "other.log"))

        async def ended() -> bool:
            return await _count(streams, "task.completed") == 1

        await until(ended, "another worker took over and the task was completed")
        before = await streams.log.end(TENANT)
        paused.signal(signal.SIGCONT)

        async def refused() -> bool:
            return "lease_lost" in paused.output()

        await until(refused, "the paused worker tried to go on and was refused")
        # It works again: a task that comes now is not lost on it.
        await _submit(streams)
        await until(lambda: _is(streams, "task.completed", 2), "the next task was completed")
    events = [event for event in await _events(streams) if event.position is not None]
    after = [event for event in events if _place(event.position) > _place(before)]
    first_task = events[0].task_id
    assert after
    assert not [event for event in after if event.task_id == first_task]
    completed = [e.body.call_id for e in events if e.type == "agent.completed"]  # type: ignore[attr-defined]
    assert len(completed) == len(set(completed)) == 4
    # The request that was in flight when the worker stopped may have been billed: it is listed, not guessed.
    unknown = [e for e in events if e.type == "llm.attempted" and e.body.status == "unknown"]  # type: ignore[attr-defined]
    assert len(unknown) == 1


async def _is(streams: Streams, event_type: str, number: int) -> bool:
    await asyncio.sleep(0)
    return await _count(streams, event_type) == number


def _place(position: str | None) -> tuple[int, ...]:
    return tuple(map(int, (position or "0-0").split("-")))
