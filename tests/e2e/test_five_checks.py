"""The five checks of the whole, on real servers: what Headwater is for, in one module.

1. A task is routed to the right agent, also through decomposition, and its result comes back with its call chain.
2. Tenant B cannot see tenant A's events: bus, API, projections, memory search, metrics.
3. A malformed or ungrounded handoff is rejected, with specific reasons.
4. The context given to an agent includes session, memories and task, within the token budget.
5. Every agent run and LLM call is traced with tenant, agent and session, and the cost of both can be queried.
"""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from headwater import (
    AgentRegistration,
    BaseAgent,
    HybridRouter,
    SupervisorOrchestrator,
    Task,
    TaskContext,
    Team,
    TenantMismatchError,
)
from headwater.embedded import Endpoints
from headwater.testing import AnswerRule, Harness, running
from projections import queries
from schemas.event import AgentEvent
from tests.serving import key_of, served

SECRET = "The vault's code is tulip"
BUDGET = 8_000


class Researcher(BaseAgent):
    """Remembers and recalls, compiles a context, and hands over what it found (or what it made up)."""

    registration = AgentRegistration(agent_id="researcher", name="Researcher", description="finds facts")

    async def execute(self, task: Task, context: TaskContext) -> Any:
        """Everything an agent can do with its context."""
        await context.memory.store(task.text)
        compiled = await context.compile(system="You research.", tier="fast")
        answer = await context.llm.complete(compiled.messages, system=compiled.system)
        target = "nobody" if "malformed" in task.text else "writer"
        claim = "invented" if "ungrounded" in task.text else answer.text
        return context.hand_over(target, payload_type="research_result", content={"claim": claim})


class Writer(BaseAgent):
    """Writes."""

    registration = AgentRegistration(agent_id="writer", name="Writer", description="writes")

    async def execute(self, task: Task, context: TaskContext) -> Any:
        """From the handoff, or from the results of earlier steps."""
        given = context.handoff.content if context.handoff else [result.result for result in context.results]
        return {"wrote": given}


def by_word(task: Task) -> str | None:
    """Texts that say so are written, questions are researched."""
    return "writer" if task.text.startswith("write") else "researcher"


TEAM = Team([Researcher(), Writer()], HybridRouter([by_word]))
STEPS = [{"description": "find it"}, {"description": "write it", "depends_on": [0]}]
ANSWERS: list[AnswerRule | dict[str, Any]] = [
    {
        "system": "check a handoff",
        "user": "invented",
        "json": {"grounded": False, "reasons": ["'invented' does not stand in the context"]},
    },
    {"system": "check a handoff", "json": {"grounded": True}},
    {"system": "Split the task", "json": {"subtasks": STEPS}},
    {"system": "Put the results", "json": {"answer": "found and written", "sources": [0, 1]}},
    {"system": "You research", "answer": "a fact"},
]


@pytest.fixture
async def hw(endpoints: Endpoints) -> AsyncIterator[Harness]:
    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        yield harness


async def test_1_a_task_is_routed_also_through_decomposition_and_comes_back_with_its_chain(hw: Harness) -> None:
    supervisor = SupervisorOrchestrator(hw.hw)
    whole = await supervisor.execute_task("what is it?", "acme", "s1")
    assert whole["call_chain"] == ["user", "supervisor", "researcher", "writer"]
    assert (whole["result"], whole["routed_by"], whole["decomposed"]) == (
        {"wrote": {"claim": "a fact"}},
        "rules",
        False,
    )
    split = await supervisor.execute_task("Please:\n1. find it\n2. write it", "acme", "s2")
    assert split["decomposed"]
    assert split["result"]["answer"] == "found and written"
    assert split["call_chain"] == ["user", "supervisor", "researcher", "writer"]
    assert split["agent_results"]["writer#1"] == {"wrote": [{"wrote": {"claim": "a fact"}}]}


async def test_2_tenant_b_sees_nothing_of_tenant_a(hw: Harness) -> None:
    mine = await hw.run_task(SECRET, tenant="acme", session="s1")
    other = await hw.run_task("something else", tenant="globex", session="s1")
    task_id = mine.outcome.task_id
    # The bus.
    with pytest.raises(TenantMismatchError, match="does not match"):
        await hw.hw.bus("globex").publish(mine.events[0])
    assert task_id not in {event.task_id for event in await hw.events("globex")}
    # The projections.
    assert await queries.task(hw.hw.pool, "globex", task_id) is None
    session = await queries.session(hw.hw.pool, "globex", "s1")
    assert session is not None
    assert SECRET not in str(session)
    # The memory search.
    assert SECRET not in str(await hw.hw.memory.search("globex", SECRET))
    assert SECRET in str(await hw.hw.memory.search("acme", SECRET))
    # The API, the metrics among it, with the other tenant's key.
    async with (
        served(hw.settings, hw.endpoints) as url,
        httpx.AsyncClient(
            base_url=url, headers=await key_of(hw.hw.pool, "globex", "submit", "read", "admin"), timeout=30
        ) as client,
    ):
        paths = [f"/v1/tasks/{task_id}", "/v1/sessions/s1", "/v1/events", "/v1/costs", "/metrics"]
        paths += [f"/v1/memories?q={SECRET}", "/v1/dead-letters"]
        for path in paths:
            said = await client.get(path)
            assert said.status_code in (200, 404), (path, said.text)
            assert "tulip" not in said.text
            assert task_id not in said.text or said.status_code == 404
            assert "acme" not in said.text
        assert other.outcome.task_id in (await client.get("/v1/events")).text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("malformed?", "target agent 'nobody' is not registered"),
        ("ungrounded?", "'invented' does not stand in the context"),
    ],
)
async def test_3_a_bad_handoff_is_rejected_with_specific_reasons(hw: Harness, text: str, reason: str) -> None:
    run = await hw.run_task(text)
    rejected = run.bodies("handoff.rejected")
    assert [body.returned_to for body in rejected] == ["sender", "supervisor"]
    assert all(reason in "; ".join(body.reasons) for body in rejected)
    assert run.outcome.status == "failed"
    assert reason in (run.outcome.error or "")


async def test_4_an_agents_context_has_session_memories_and_task_within_the_budget(hw: Harness) -> None:
    filler = "many words that fill the session up to its brim " * 90
    for number in range(4):
        await hw.run_task(f"earlier question {number} {filler}", tenant="acme", session="s1")
    run = await hw.run_task("the newest question", tenant="acme", session="s1")
    [compiled] = run.bodies("context.compiled")
    usage = compiled.token_usage
    assert compiled.budget_tokens == BUDGET
    assert sum(count for part, count in usage.items() if part != "total") == usage["total"] <= BUDGET
    assert min(usage["session"], usage["memories"], usage["task"], usage["system"]) > 0
    [sent] = [body for body in run.bodies("llm.attempted") if body.agent_id == "researcher"]
    request = await hw.hw.streams.log.resolve("acme", sent.request)
    assert "the newest question" in str(request)
    # Of the session, the newest messages; the oldest did not fit.
    assert "earlier question 3" in str(request)
    assert "earlier question 0" not in str(request)
    assert compiled.dropped["messages"] > 0


async def test_5_runs_and_calls_are_traced_and_their_cost_can_be_queried(hw: Harness) -> None:
    runs = [await hw.run_task("what is it?", tenant=tenant, session="s1") for tenant in ("acme", "globex")]
    traced: list[AgentEvent] = [
        event for run in runs for event in run.events if event.type in ("agent.completed", "llm.attempted")
    ]
    assert len(traced) == 2 * (2 + 2)
    for event in traced:
        assert event.tenant_id in ("acme", "globex")
        assert event.session_id == "s1"
        assert event.body.agent_id in ("researcher", "writer", "supervisor")  # type: ignore[attr-defined]
    billed = sum((Decimal(entry["usd"]) for entry in hw.bill()), Decimal(0))
    tracker = hw.hw.cost_tracker
    mine, other = await tracker.get_tenant_costs("acme"), await tracker.get_tenant_costs("globex")
    assert set(mine["agents"]) == {"researcher", "supervisor"}
    assert Decimal(str(mine["total_cost"])) + Decimal(str(other["total_cost"])) == billed > 0
    agent = await tracker.get_agent_costs("researcher")
    assert set(agent["tenants"]) == {"acme", "globex"}
    assert agent["source"] == "ledger"
