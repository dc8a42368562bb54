"""Another team than the one that runs, for `headwater fork --agents`. Its clerk waits for the file FORK_GATE."""

import asyncio
import os
from pathlib import Path
from typing import Any

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team


class Clerk(BaseAgent):
    """Answers shortly."""

    registration = AgentRegistration(agent_id="clerk", name="Clerk", description="answers", max_concurrent_tasks=2)

    async def execute(self, task: Task, context: TaskContext) -> Any:
        gate = os.environ.get("FORK_GATE")
        while gate is not None and not await asyncio.to_thread(Path(gate).exists):  # noqa: ASYNC110  # of a process
            await asyncio.sleep(0.02)
        return {"text": (await context.llm.complete(task.text)).text, "by": "another team"}


team = Team([Clerk()], HybridRouter([lambda task: "clerk"]))
