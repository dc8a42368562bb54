"""The team. Read it from the bottom: the team, its rules, then the agents.

triage      classifies a message on the fast tier, and hands its classification to the researcher.
researcher  looks things up (a durable step), lets the fast tier pick what applies, and hands notes to the writer.
writer      writes the reply on the reasoning tier; what it returns is the task's result.
"""

import json
import re
from pathlib import Path
from typing import Any

from headwater import (
    AgentCapability,
    AgentRegistration,
    BaseAgent,
    HandOver,
    HybridRouter,
    Task,
    TaskContext,
    Team,
)

KNOWLEDGE: list[dict[str, Any]] = json.loads(Path(__file__).with_name("knowledge.json").read_text())
EXCERPT_CHARS = 4000
"""A customer who pastes a whole log file should not be billed for all of it, three times."""


class Triage(BaseAgent):
    """First reader: what is this, how urgent, in which language?"""

    registration = AgentRegistration(
        agent_id="triage",
        name="Triage",
        description="Reads a customer's message and says what it is about, how urgent, and in which language.",
        capabilities=(AgentCapability(name="classify", description="Category, urgency, language and a summary."),),
        backup_agent_id="researcher",  # a researcher without a classification is slower, but not helpless
        tags=("front",),
        max_concurrent_tasks=64,
    )

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """Classify, and hand on."""
        answer = await context.llm.complete(
            f"Category: {task.type}\n\n{excerpt(task.text)}",
            system="You triage a support desk. Answer with JSON: category, urgency, language, summary.",
            tier="fast",
            temperature=0,
        )
        found = as_object(answer.text)
        if found is None:
            # A model that does not answer with JSON is common enough to be a case, not an exception.
            found = {"category": task.type, "urgency": "unknown", "language": "unknown", "summary": answer.text[:200]}
            return context.hand_over(
                "researcher",
                payload_type="technical_question",
                content=found,
                confidence=0.4,
                reason="the classification was not JSON, so this is the customer's own category",
            )
        return context.hand_over(
            "researcher",
            payload_type="technical_question",
            content=found,
            confidence=0.9,
            reason=f"{found.get('category')} in {found.get('language')}, urgency {found.get('urgency')}",
        )


class Researcher(BaseAgent):
    """Finds what the company knows about it."""

    registration = AgentRegistration(
        agent_id="researcher",
        name="Researcher",
        description="Finds the articles and policies that answer a question.",
        capabilities=(AgentCapability(name="research", description="Articles, policies and what follows from them."),),
        tags=("back",),
        max_concurrent_tasks=64,
    )

    async def execute(self, task: Task, context: TaskContext) -> HandOver:
        """Look up, weigh, and hand on."""
        category = context.handoff.content["category"] if context.handoff else task.type
        # A durable step: run again after a crash, the recorded articles come back, and the search is not repeated.
        articles = await context.step("search_knowledge", search_knowledge, task.tenant_id, category, task.text)
        titles = "\n".join(f"- {article['title']}: {article['text']}" for article in articles)
        notes = await context.llm.complete(
            f"Question ({category}):\n{excerpt(task.text)}\n\nArticles:\n{titles}",
            system="You research for a support desk. Say in two sentences what applies here, and why.",
            tier="fast",
            temperature=0,
        )
        content = {"notes": notes.text, "articles": [article["title"] for article in articles], "category": category}
        return context.hand_over(
            "writer",
            payload_type="research_result",
            content=content,
            confidence=0.9 if articles else 0.45,
            reason=f"{len(articles)} articles apply" if articles else "nothing was found, write with care",
        )


class Writer(BaseAgent):
    """Writes what the customer reads."""

    registration = AgentRegistration(
        agent_id="writer",
        name="Writer",
        description="Writes the reply to the customer.",
        capabilities=(AgentCapability(name="write", description="A reply in the customer's language."),),
        tags=("back",),
        max_concurrent_tasks=64,
    )

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """The reply, and what it rests on."""
        research = context.handoff.content if context.handoff else {"notes": "", "articles": []}
        reply = await context.llm.complete(
            f"Category: {task.type}\nThe customer wrote:\n{excerpt(task.text)}\n\nWhat we know:\n{research['notes']}",
            system="You write the replies of a support desk: short, warm, exact, in the customer's language.",
            tier="reasoning",
        )
        return {"reply": reply.text, "based_on": research["articles"]}


def search_knowledge(tenant_id: str, category: str, text: str) -> list[dict[str, Any]]:
    """The two articles that share most words with the question; those of the category count double."""
    words = set(re.findall(r"\w{4,}", text.lower()))
    scored = []
    for article in KNOWLEDGE:
        if article["tenant"] not in ("*", tenant_id):
            continue
        common = len(words & set(re.findall(r"\w{4,}", article["text"].lower())))
        scored.append((common + 2 * (article["category"] == category), article["title"], article))
    best = sorted(scored, key=lambda item: (-item[0], item[1]))[:2]
    return [article for score, _, article in best if score > 0]


def excerpt(text: str) -> str:
    """The beginning and the end of a long text: that is where people say what they want."""
    if len(text) <= EXCERPT_CHARS:
        return text
    half = EXCERPT_CHARS // 2
    return f"{text[:half]}\n[… {len(text) - EXCERPT_CHARS:,} characters left out …]\n{text[-half:]}"


def as_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a model's answer, or None."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "category" in value else None


def refunds_with_an_order(task: Task) -> str | None:
    """A refund that names its order needs no triage."""
    return "researcher" if task.type == "refund" and "order" in task.data else None


def everything_else(task: Task) -> str | None:
    """Whatever it is, triage reads it first."""
    return "triage"


team = Team(
    agents=[Triage(), Researcher(), Writer()],
    router=HybridRouter(rules=[refunds_with_an_order, everything_else]),
)
