"""A small team for the chaos tests: a step, two LLM requests, and a checked handoff in every task; streams, memories
and compiled contexts in some."""

import os
import time
from pathlib import Path
from typing import Any

from headwater import AgentRegistration, BaseAgent, HandOver, HybridRouter, Task, TaskContext, Team


class Reader(BaseAgent):
    """Reads, and hands over. Some texts are remembered first, and recalled."""

    registration = AgentRegistration(agent_id="reader", name="Reader", description="reads", max_concurrent_tasks=32)

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """One step, one request, and for some tasks a memory and a compiled context."""
        words = await context.step("count", len, task.text.split())
        if "remember" in task.text:
            await context.memory.store(task.text)
            await context.memory.search(task.text, k=3)
            await context.compile(system="You read.")
        answer = await context.llm.complete(task.text, system="You read.", temperature=0)
        return context.hand_over("writer", payload_type="research_result", content={"n": words, "text": answer.text})


class Writer(BaseAgent):
    """Writes the result, for some tasks as a stream."""

    registration = AgentRegistration(agent_id="writer", name="Writer", description="writes", max_concurrent_tasks=32)

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """One request on the other tier."""
        assert context.handoff is not None
        prompt = f"{task.text}\n{context.handoff.content['text']}"
        if "stream" in task.text:
            async with context.llm.stream(prompt, tier="reasoning") as stream:
                text = "".join([piece async for piece in stream])
        else:
            text = (await context.llm.complete(prompt, tier="reasoning")).text
        return {"words": context.handoff.content["n"], "text": text}


def to_reader(task: Task) -> str:
    """Everything goes to the reader; with HOLD_RULE, the rule holds its decider up while that file exists."""
    hold = os.environ.get("HOLD_RULE")
    while hold and Path(hold).exists():
        time.sleep(0.02)
    return "reader"


team = Team(agents=[Reader(), Writer()], router=HybridRouter(rules=[to_reader]))
