"""What became of the money, in runs of real teams: handoffs rejected by a model, failed agents, cancelled tasks."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team
from headwater.embedded import Endpoints
from headwater.testing import FaultRule, Harness, TaskRun, running
from projections.costs import costs, decision_costs, total_of
from projections.rebuild import digests, rebuild, rebuildable
from tests.processes import until

UNGROUNDED = {"system": "check a handoff", "json": {"grounded": False, "reasons": ["it is made up"]}}
GROUNDED = {"system": "check a handoff", "json": {"grounded": True}}


def make(agent_id: str, do: Callable[[Task, TaskContext], Any], **more: Any) -> BaseAgent:
    """An agent from a coroutine function."""

    class Made(BaseAgent):
        registration = AgentRegistration(agent_id=agent_id, name=agent_id, description=agent_id, **more)

        async def execute(self, task: Task, context: TaskContext) -> Any:
            return await do(task, context)

    return Made()


async def asks(task: Task, context: TaskContext) -> Any:
    return (await context.llm.complete(task.text, system="Answer")).text


async def asks_and_breaks(task: Task, context: TaskContext) -> Any:
    await context.llm.complete(task.text, system="Answer")
    raise ValueError("broken")


async def asks_and_claims(task: Task, context: TaskContext) -> Any:
    answer = await context.llm.complete(f"{task.text} {context.repair_reasons}", system="Answer")
    content = {"claim": "repaired" if context.repair_reasons else "made up", "answer": answer.text}
    return context.hand_over("reader", payload_type="research_result", content=content)


def team(*agents: BaseAgent) -> Team:
    return Team(list(agents), HybridRouter([lambda task: agents[0].agent_id]))


def spent(run: TaskRun, which: Callable[[Any], bool]) -> Decimal:
    """What the attempts of a run cost, as their events say."""
    return sum((Decimal(b.cost_usd or 0) for b in run.bodies("llm.attempted") if which(b)), start=Decimal(0))


async def by_outcome(hw: Harness, run: TaskRun) -> dict[str, Decimal]:
    """The tenant's costs by outcome, after checking that they are its task's whole cost and survive a rebuild."""
    tenant = run.outcome.tenant_id
    rows = await costs(hw.hw.pool, by="outcome", tenant_id=tenant, days=1)
    assert total_of("", rows).cost_usd == run.cost_usd > 0
    assert total_of("", rows).attempts == len(run.bodies("llm.attempted"))
    before = await digests(hw.hw.pool)
    await rebuild(hw.hw.pool, rebuildable())
    assert await digests(hw.hw.pool) == before
    return {row.key: row.cost_usd for row in rows}


async def test_a_handoff_that_a_model_rejects(endpoints: Endpoints) -> None:
    answers = [GROUNDED | {"user": "repaired"}, UNGROUNDED]
    async with running(team(make("writer", asks_and_claims), make("reader", asks)), endpoints, answers=answers) as hw:
        run = await hw.run_task("hello", tenant="acme")
        found = await by_outcome(hw, run)
        [rejected] = [event for event in run.events if event.type == "handoff.rejected"]
        under = await decision_costs(hw.hw.pool, "acme", rejected.id)
        whole = await decision_costs(hw.hw.pool, "acme", run.events[0].id)
    assert run.outcome.status == "completed"
    first = run.bodies("task.routed")[0].call_id
    wasted = spent(run, lambda attempt: attempt.call_id == first)
    assert found == {"rejected_handoff": wasted, "useful": run.cost_usd - wasted}
    assert wasted > 0
    # Under the rejection: the repair, its check, and the reader's run; the first run and its check came before.
    checks = [b.call_id for b in run.bodies("supervisor.asked")]
    before = spent(run, lambda attempt: attempt.call_id in (first, checks[0]))
    assert total_of("", under.agents).cost_usd == run.cost_usd - before
    assert total_of("", whole.agents).cost_usd == run.cost_usd


async def test_a_handoff_that_stays_bad_fails_the_task(endpoints: Endpoints) -> None:
    agents = team(make("writer", asks_and_claims), make("reader", asks))
    async with running(agents, endpoints, answers=[UNGROUNDED]) as hw:
        run = await hw.run_task("hello", tenant="acme")
        found = await by_outcome(hw, run)
    assert run.outcome.status == "failed"
    writer = spent(run, lambda attempt: attempt.agent_id == "writer")
    assert found == {"rejected_handoff": writer, "failed_task": run.cost_usd - writer}, (
        "the checks were for nothing too"
    )


async def test_an_agent_that_fails_and_its_backup(endpoints: Endpoints) -> None:
    agents = team(make("writer", asks_and_breaks, backup_agent_id="backup"), make("backup", asks))
    async with running(agents, endpoints) as hw:
        run = await hw.run_task("hello", tenant="acme")
        found = await by_outcome(hw, run)
    assert run.outcome.status == "completed"
    assert found == {
        "failed_run": spent(run, lambda attempt: attempt.agent_id == "writer"),
        "useful": spent(run, lambda attempt: attempt.agent_id == "backup"),
    }


async def test_a_task_that_is_cancelled_while_it_runs(endpoints: Endpoints) -> None:
    async def goes_on(task: Task, context: TaskContext) -> Any:
        await context.llm.complete("first", system="Answer")
        await context.llm.complete("second", system="Answer slowly")

    faults = [FaultRule(model="sim-fast", latency_ms=700)]
    async with running(team(make("writer", goes_on)), endpoints, faults=faults) as hw:
        accepted = await hw.submit("hello", tenant="acme")

        async def asked_once() -> bool:
            return any(event.type == "llm.attempted" for event in await hw.events("acme"))

        await until(asked_once, "the first answer")
        await hw.hw.cancel("acme", accepted.task_id, "changed my mind")

        async def stopped() -> bool:
            return any(event.type == "agent.cancelled" for event in await hw.events("acme"))

        await until(stopped, "the run is stopped")
        run = await hw.finished(accepted)
        found = await by_outcome(hw, run)
    assert run.outcome.status == "cancelled"
    assert found == {"cancelled": run.cost_usd}, "the answered attempt and the one that was broken off"
