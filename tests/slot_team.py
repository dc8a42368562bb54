"""A team of one agent that may run four times at once."""

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team


class Narrow(BaseAgent):
    """Asks a model once."""

    registration = AgentRegistration(agent_id="narrow", name="Narrow", description="asks", max_concurrent_tasks=4)

    async def execute(self, task: Task, context: TaskContext) -> str:
        """One request."""
        return (await context.llm.complete(task.text, system="You answer.", temperature=0)).text


def to_narrow(task: Task) -> str:
    """Everything goes to the one agent."""
    return "narrow"


team = Team(agents=[Narrow()], router=HybridRouter(rules=[to_narrow]))
