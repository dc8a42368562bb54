"""The team that is measured: two agents and a handoff, and a provider that answers at once, without HTTP."""

from typing import Any

from handlers.provider import Messages, ProviderAnswer
from headwater import AgentRegistration, BaseAgent, HandOver, HybridRouter, Task, TaskContext, Team
from schemas.money import TokenCounts

PLACES = 128
"""Runs of each agent at once: as many as there are tasks in flight at most, so that no place is waited for."""
TEXT = (
    "My invoice of last month shows the annual plan twice, once at the old price. Please check and refund one of them."
)
ANSWER = (
    "The invoice has two lines for the annual plan: one from the renewal and one from the change of plan, at $96 each."
)


class Researcher(BaseAgent):
    """Asks a model once, and hands over."""

    registration = AgentRegistration(
        agent_id="researcher", name="Researcher", description="finds out", max_concurrent_tasks=PLACES
    )

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """One request, one handoff."""
        found = await context.llm.complete(task.text, system="Find the facts.", temperature=0)
        return context.hand_over("writer", payload_type="status_report", content={"facts": found.text})


class Writer(BaseAgent):
    """Asks a model once, and ends the task."""

    registration = AgentRegistration(
        agent_id="writer", name="Writer", description="writes", max_concurrent_tasks=PLACES
    )

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """One request, one result."""
        assert context.handoff is not None
        answer = await context.llm.complete(context.handoff.content["facts"], system="Write a reply.", temperature=0)
        return {"reply": answer.text}


class InstantProvider:
    """A provider that answers at once."""

    async def complete(
        self,
        model: str,
        messages: Messages,
        params: dict[str, Any],
        *,
        attempt_id: str,
        agent_id: str,
        timeout_s: float,
    ) -> ProviderAnswer:
        """Always the same answer, with a response id of its own."""
        tokens = TokenCounts(input_uncached=32, cache_read=16, output_text=28, output_reasoning=8)
        return ProviderAnswer(ANSWER, model, f"chatcmpl-{attempt_id}", "stop", tokens, "0.00002")


def to_researcher(task: Task) -> str:
    """Every task begins with the researcher."""
    return "researcher"


team = Team(agents=[Researcher(), Writer()], router=HybridRouter(rules=[to_researcher]))
