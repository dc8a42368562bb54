"""A run that has ended writes nothing more, not even that it began."""

import asyncio
from typing import Any

import pytest

from handlers.context import TaskContext
from handlers.journal import STARTED_DELAY_S
from headwater.runtime import make_llm
from headwater.settings import Settings
from schemas.task import Task
from streams.connection import Streams
from tests.agent_runs import CrashError, order
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
