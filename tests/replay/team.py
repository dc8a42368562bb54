"""The team of the recorded logs. A log is only worth something with the team that it was recorded with: do not change
what its agents and rules do; add to them, and record again (`python -m tests.replay.record`).

A task says in its `data` what is to go wrong: {"triage": "fails"}, {"researcher": "cycle"}, …
"""

import asyncio
from typing import Any

from headwater import (
    AgentRegistration,
    BaseAgent,
    FailPolicy,
    HandOver,
    HybridRouter,
    StrictnessConfig,
    Task,
    TaskContext,
    Team,
)

LONG = "a long reply. " * 400
GO_ON = asyncio.Event()
FINISH = asyncio.Event()
"""Researchers and writers that are told to wait wait for these."""


class Triage(BaseAgent):
    """Reads first; the researcher stands in for it."""

    registration = AgentRegistration(
        agent_id="triage", name="Triage", description="reads first", backup_agent_id="researcher"
    )

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """One request, and a handoff of the kind that the task asks for."""
        if task.data.get("triage") == "fails":
            raise ValueError("the message makes no sense")
        answer = await context.llm.complete(task.text, system="You read.", temperature=0)
        return context.hand_over(
            "researcher",
            payload_type="status_update" if task.type == "update" else "technical_question",
            content={"question": answer.text, "type": task.type},
            confidence=0.3 if task.data.get("triage") == "unsure" else 0.9,
            reason="read",
        )


class Researcher(BaseAgent):
    """Looks things up; it can propose what no supervisor accepts."""

    registration = AgentRegistration(agent_id="researcher", name="Researcher", description="looks things up")

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """One step, one request, and a handoff; one that was rejected is repaired, except by the stubborn."""
        words = await context.step("count", len, task.text.split())
        wanted = task.data.get("researcher")
        if wanted == "waits":
            await GO_ON.wait()
        answer = await context.llm.complete(task.text, system="You look up.", temperature=0)
        if wanted == "fails":
            raise LookupError("the archive is closed")
        more: dict[str, Any] = {"confidence": 0.8}
        target = "writer"
        if wanted == "stubborn" or (wanted and not context.repair_reasons):
            target = {"cycle": context.call_chain[-2], "nobody": "nobody", "stubborn": "nobody"}.get(wanted, "writer")
            more["confidence"] = 1.5 if wanted == "too sure" else 0.8
        content = {"words": words, "notes": answer.text, "repaired": list(context.repair_reasons)}
        return context.hand_over(target, payload_type="research_result", content=content, **more)


class Writer(BaseAgent):
    """Writes the result."""

    registration = AgentRegistration(agent_id="writer", name="Writer", description="writes")

    async def execute(self, task: Task, context: TaskContext) -> Any:
        """One request on the other tier."""
        if task.data.get("writer") == "fails":
            raise RuntimeError("no ink: ü 語 \N{GRINNING FACE}")
        if task.data.get("writer") == "waits":
            await FINISH.wait()
        answer = await context.llm.complete(task.text, tier="reasoning")
        notes = context.handoff.content if context.handoff else None
        reply = LONG if task.data.get("writer") == "long" else answer.text
        return {"reply": reply, "words": notes and notes.get("words")}


def odd_ones(task: Task) -> str | None:
    """Raises for tasks of type "odd": they fall to the next rule."""
    if task.type == "odd":
        raise KeyError("odd")
    return None


def straight_to_the_writer(task: Task) -> str | None:
    """A greeting needs no research."""
    return "writer" if task.type == "greeting" else None


def to_somebody_who_left(task: Task) -> str | None:
    """An agent that is not registered."""
    return "accountant" if task.type == "invoice" else None


def refunds_by_amount(task: Task) -> str | None:
    """Reads the task's data, and its text in full."""
    big = task.type == "refund" and float(task.data.get("amount", 0)) > 100
    return "researcher" if big or "REFUND" in task.text[-100:] else None


def everything_else(task: Task) -> str:
    """To triage."""
    return "triage"


team = Team(
    agents=[Triage(), Researcher(), Writer()],
    router=HybridRouter(
        rules=[odd_ones, straight_to_the_writer, to_somebody_who_left, refunds_by_amount, everything_else]
    ),
    strictness=StrictnessConfig(semantic=False),
)
"""Nothing here asks a model what to do."""

asking = Team(
    agents=[Triage(), Researcher(), Writer()],
    router=HybridRouter(rules=[straight_to_the_writer]),
    strictness=StrictnessConfig(on_unavailable={"research_result": FailPolicy.FAIL_CLOSED}),
)
"""Here a model is asked: who gets a task, in which steps, is a handoff grounded, what do the results say together."""
