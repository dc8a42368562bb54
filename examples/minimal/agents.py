"""The smallest team: one agent, asked by `headwater submit --tenant acme --session s1 --wait "What is a stream?"`."""

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team


class Answerer(BaseAgent):
    """Answers anything in one sentence."""

    registration = AgentRegistration(agent_id="answerer", name="Answerer", description="Answers in one sentence.")

    async def execute(self, task: Task, context: TaskContext) -> str:
        """The text of the task goes to the model as the user's message, never as a system prompt."""
        answer = await context.llm.complete(task.text, system="Answer in one sentence.")
        return answer.text


team = Team([Answerer()], HybridRouter([lambda task: "answerer"]))
