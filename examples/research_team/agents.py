"""A team with handoffs and steps: a researcher finds, a writer writes, an editor stands in when the writer fails.

A task with numbered steps is split: each step is routed by what it says, in parallel where it can be, and the results
are put together into one answer that names its sources.
"""

from typing import Any

from pydantic import BaseModel

from headwater import AgentCapability, AgentRegistration, BaseAgent, HandOver, HybridRouter, Task, TaskContext, Team

FACTS = {
    "redis": "A Redis stream keeps its entries in the order in which they were added, each with an id.",
    "postgres": "PostgreSQL applies a transaction as a whole or not at all.",
}


class Notes(BaseModel):
    """What the researcher hands over, and the writer insists on getting."""

    facts: list[str]
    question: str


class Researcher(BaseAgent):
    """Looks facts up; the lookup is a durable step, so a restart does not do it again."""

    registration = AgentRegistration(
        agent_id="researcher", name="Researcher", description="Finds facts.", max_concurrent_tasks=8
    )

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """Hand the facts over. STRICT payloads are checked: does every claim stand in what was looked up?"""
        facts = await context.step("look_up", look_up, task.text)
        # A step of a split task gets the results of the steps that it depends on.
        facts += [f"{result.agent_id}: {result.result}" for result in context.results]
        gist = await context.llm.complete("\n".join([task.text, *facts]), system="Say in a word what is asked for.")
        # A handoff that was rejected comes back once, with the reasons: claim less.
        caution = " (say only what the facts say)" if context.repair_reasons else ""
        notes = Notes(facts=facts, question=task.text + caution)
        return context.hand_over(
            "writer",
            payload_type="research_result",
            content=notes,
            confidence=0.9 if facts else 0.3,
            reason=f"it asks for {gist.text}",
        )


class Writer(BaseAgent):
    """Writes from notes. Its input schema is enforced: without notes, the run fails, and the editor gets the task."""

    registration = AgentRegistration(
        agent_id="writer",
        name="Writer",
        description="Writes an answer from a researcher's notes.",
        capabilities=(AgentCapability(name="write", description="An answer from notes.", input_schema=Notes),),
        backup_agent_id="editor",
    )

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """One request on the reasoning tier."""
        assert context.handoff is not None
        prompt = "\n".join([*context.handoff.content["facts"], f"Question: {context.handoff.content['question']}"])
        answer = await context.llm.complete(prompt, system="Answer from the facts given.", tier="reasoning")
        return {"text": answer.text, "facts": len(context.handoff.content["facts"])}


class Editor(BaseAgent):
    """Takes what the writer could not do."""

    registration = AgentRegistration(agent_id="editor", name="Editor", description="Rewrites and shortens texts.")

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """From the bare question."""
        answer = await context.llm.complete(task.text, system="Answer briefly.")
        return {"text": answer.text, "facts": 0}


def look_up(text: str) -> list[str]:
    """The facts whose keyword stands in the text."""
    return [fact for word, fact in FACTS.items() if word in text.casefold()]


def questions(task: Task) -> str | None:
    """Questions are researched."""
    return "researcher" if "?" in task.text or task.subtask is not None else None


team = Team([Researcher(), Writer(), Editor()], HybridRouter([questions]))
"""What is no question has no rule: a model of the fast tier chooses the agent."""
