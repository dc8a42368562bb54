"""A team whose reader makes a span of its own with the Langfuse SDK."""

from typing import Any

from langfuse import get_client

from headwater import AgentRegistration, BaseAgent, HandOver, HybridRouter, Task, TaskContext, Team


class Reader(BaseAgent):
    """Looks something up, asks, and hands over."""

    registration = AgentRegistration(agent_id="reader", name="Reader", description="reads", max_concurrent_tasks=32)

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """One span of its own, one request."""
        with get_client().start_as_current_observation(name="look-up", as_type="tool"):
            answer = await context.llm.complete(task.text, system="You read.", temperature=0)
        return context.hand_over("writer", payload_type="status_update", content={"text": answer.text})


class Writer(BaseAgent):
    """Writes the result."""

    registration = AgentRegistration(agent_id="writer", name="Writer", description="writes", max_concurrent_tasks=32)

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """One request on the other tier."""
        answer = await context.llm.complete(task.text, tier="reasoning")
        return {"text": answer.text}


team = Team(agents=[Reader(), Writer()], router=HybridRouter(rules=[lambda task: "reader"]))
