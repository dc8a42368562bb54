"""A team that remembers, for the test of its processes."""

from typing import Any

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team


class Keeper(BaseAgent):
    """Says what it was given, then remembers the task."""

    registration = AgentRegistration(agent_id="keeper", name="Keeper", description="keeps", max_concurrent_tasks=16)

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """No model is asked: the result is the context itself."""
        compiled = await context.compile(system="You keep.", tier="fast", memories=3)
        count = await context.session.get("count", 0)
        await context.session.set("count", count + 1)
        await context.memory.store(f"{task.tenant_id} once said: {task.text}")
        return {
            "count": count,
            "session": [turn.content for turn in compiled.session if turn.role == "user"],
            "memories": [memory.text for memory in compiled.memories],
            "counter": compiled.token_counter,
        }


team = Team(agents=[Keeper()], router=HybridRouter(rules=[lambda task: "keeper"]))
