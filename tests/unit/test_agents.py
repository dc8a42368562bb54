"""What an agent is in its process: its status while it runs, and what its registration refuses (row A1)."""

import asyncio
from typing import Any, cast

import pytest
from pydantic import ValidationError

from handlers.context import TaskContext
from headwater import AgentRegistration, AgentStatus, BaseAgent, Task

TASK = Task(tenant_id="acme", session_id="s", task_id="t", type="task", text="x")
CONTEXT = cast(TaskContext, None)


class Gated(BaseAgent):
    """Waits to be let through, and fails if it is told to."""

    registration = AgentRegistration(agent_id="gated", name="Gated", description="waits")

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.fails = False

    async def execute(self, task: Task, context: TaskContext) -> Any:
        await self.gate.wait()
        if self.fails:
            raise ValueError("told to")
        return "done"


def status(agent: BaseAgent) -> str:
    return agent.status


async def test_an_agent_is_busy_while_any_run_is_on() -> None:
    agent = Gated()
    assert status(agent) == AgentStatus.IDLE
    runs = [asyncio.create_task(agent.invoke(TASK, CONTEXT)) for _ in range(2)]
    await asyncio.sleep(0)
    assert status(agent) == AgentStatus.BUSY
    agent.gate.set()
    assert await asyncio.gather(*runs) == ["done", "done"]
    assert status(agent) == AgentStatus.IDLE


async def test_an_agent_whose_last_run_failed_says_so_until_one_succeeds() -> None:
    agent = Gated()
    agent.gate.set()
    agent.fails = True
    with pytest.raises(ValueError, match="told to"):
        await agent.invoke(TASK, CONTEXT)
    assert status(agent) == AgentStatus.ERROR
    agent.fails = False
    await agent.invoke(TASK, CONTEXT)
    assert status(agent) == AgentStatus.IDLE


async def test_a_cancelled_run_leaves_the_agent_idle() -> None:
    agent = Gated()
    run = asyncio.create_task(agent.invoke(TASK, CONTEXT))
    await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert status(agent) == AgentStatus.IDLE


def test_a_registration_has_sane_defaults_and_refuses_nonsense() -> None:
    registration = AgentRegistration(agent_id="a", name="A", description="does a")
    assert (registration.max_concurrent_tasks, registration.backup_agent_id) == (5, None)
    for wrong in ({"agent_id": "a b"}, {"max_concurrent_tasks": 0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            AgentRegistration.model_validate({"agent_id": "a", "name": "A", "description": "d"} | wrong)
