"""A run records its facts in the order in which they happened, and writes nothing more once it has ended."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from handlers.context import TaskContext
from handlers.journal import STARTED_DELAY_S
from headwater.runtime import make_llm
from headwater.settings import Settings
from schemas.bodies import StepRecorded
from schemas.task import Task
from streams.connection import Streams
from streams.functions import Functions
from tests.agent_runs import AGENT, AgentFunction, CrashError, order
from tests.processes import until


async def test_what_began_is_not_announced_after_the_end(streams: Streams, settings: Settings) -> None:
    call = await order(streams, make_llm(settings))

    async def dies(task: Task, context: TaskContext) -> Any:
        raise CrashError

    with pytest.raises(CrashError):
        await call.run(dies)
    before = await streams.log.end("acme")
    # The announcement would come after this time.
    await asyncio.sleep(5 * STARTED_DELAY_S)
    assert await streams.log.end("acme") == before


async def test_a_run_that_takes_a_while_is_announced(streams: Streams, settings: Settings) -> None:
    call = await order(streams, make_llm(settings))

    async def waits(task: Task, context: TaskContext) -> str:
        await until(announced, "it is announced that the run began")
        return "done"

    async def announced() -> bool:
        return any(event.type == "agent.started" for event in await call.events())

    await call.run(waits)
    assert [e.type for e in await call.events()].count("agent.started") == 1


class SlowFirst(Functions):
    """Functions whose first `record` is on its way until another one of the call has arrived, or cannot any more."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(streams.redis, streams.keys)
        self.sent = asyncio.Event()
        self._arrived = asyncio.Event()

    async def record(self, *args: Any, **kwargs: Any) -> str:
        """Record, the first time late."""
        if not self.sent.is_set():
            self.sent.set()
            await self._overtaken()
        position = await super().record(*args, **kwargs)
        self._arrived.set()
        return position

    async def _overtaken(self) -> None:
        for _ in range(200):
            if self._arrived.is_set():
                return
            # A turn of the event loop, in which Redis answers: far more of them than a fact takes.
            await self.redis.ping()


async def types_of_run(streams: Streams, settings: Settings, agent: AgentFunction) -> list[str]:
    """Run `agent` while the first fact that it records takes long. Returns what the log has of it, in its order."""
    slow = replace(streams, functions=SlowFirst(streams))
    call = await order(slow, make_llm(settings))
    await call.run(agent)
    facts = [event for event in await call.events() if event.source_agent_id == AGENT]
    await slow.functions.close()
    return [fact.body.name if isinstance(fact.body, StepRecorded) else fact.type for fact in facts]


async def test_no_fact_overtakes_the_beginning_of_its_run(streams: Streams, settings: Settings) -> None:
    async def steps_once_it_was_announced(task: Task, context: TaskContext) -> str:
        functions = context._journal._streams.functions
        assert isinstance(functions, SlowFirst)
        await functions.sent.wait()
        await context.step("one", echo, "x")
        return "done"

    found = await types_of_run(streams, settings, steps_once_it_was_announced)
    assert found == ["agent.started", "one", "agent.completed"]


async def test_a_fact_that_is_faster_than_the_announcement_takes_it_along(streams: Streams, settings: Settings) -> None:
    async def steps_as_it_is_announced(task: Task, context: TaskContext) -> str:
        # The timer has fired in this turn of the event loop, and nothing was written yet.
        context._journal._record_started()
        await context.step("one", echo, "x")
        return "done"

    call = await order(streams, make_llm(settings))
    await call.run(steps_as_it_is_announced)
    assert [event.type for event in await call.events()][1:] == ["agent.started", "step.recorded", "agent.completed"]


async def test_steps_side_by_side_are_recorded_in_the_order_in_which_they_ended(
    streams: Streams, settings: Settings
) -> None:
    async def two_at_once(task: Task, context: TaskContext) -> str:
        ended = asyncio.Event()

        async def first() -> str:
            ended.set()
            return "x"

        async def second() -> str:
            await ended.wait()
            functions = context._journal._streams.functions
            assert isinstance(functions, SlowFirst)
            await functions.sent.wait()
            return "y"

        await asyncio.gather(context.step("second", second), context.step("first", first))
        return "done"

    found = await types_of_run(streams, settings, two_at_once)
    assert [name for name in found if name in ("first", "second")] == ["first", "second"]


async def test_a_fact_that_is_cancelled_in_the_queue_is_recorded_once(streams: Streams, settings: Settings) -> None:
    async def is_cancelled(task: Task, context: TaskContext) -> str:
        functions = context._journal._streams.functions
        assert isinstance(functions, SlowFirst)
        await functions.sent.wait()
        step = asyncio.create_task(context.step("one", echo, "x"))
        while not context._journal._order._waiters:
            await functions.redis.ping()
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        return "done"

    assert await types_of_run(streams, settings, is_cancelled) == ["agent.started", "one", "agent.completed"]


async def echo(value: str) -> str:
    """What a step does."""
    return value
