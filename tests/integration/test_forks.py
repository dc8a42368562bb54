"""Tasks run again on real servers: what a fork takes over, what it pays, and that its origin is left as it was."""

import asyncio
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from typing import Any

import pytest

from handlers.supervisor import Rules
from headwater import AgentRegistration, BaseAgent, HybridRouter, StrictnessConfig, Task, TaskContext, Team
from headwater.embedded import Endpoints
from headwater.lane import serving
from headwater.replay.compare import compare
from headwater.replay.fixture import FixtureError, fixture
from headwater.replay.fork import ForkOptions, fork_task
from headwater.replay.story import story_of
from headwater.replay.verify import verify
from headwater.testing import Harness, TaskRun, running
from projections.exposition import tenant_snapshot
from projections.metric_names import METRICS
from projections.rebuild import digests, rebuild, rebuildable
from schemas.errors import BudgetExceededError
from schemas.money import plain
from streams.budgets import spent_usd
from tests.metric_logs import exposed, value
from tests.processes import until

LONG = "The figures, at length. " * 200
ANSWERS = [{"system": "Look it up", "answer": LONG}, {"system": "Write", "answer": "Dear customer"}]


class Finder(BaseAgent):
    """Asks a model, and hands over."""

    registration = AgentRegistration(agent_id="finder", name="Finder", description="finds")

    async def execute(self, task: Task, context: TaskContext) -> Any:
        found = await context.llm.complete(task.text, system="Look it up")
        return context.hand_over("writer", payload_type="notes", content={"notes": found.text})


class Writer(BaseAgent):
    """Asks a model two things, one after the other."""

    registration = AgentRegistration(agent_id="writer", name="Writer", description="writes")

    async def execute(self, task: Task, context: TaskContext) -> Any:
        assert context.handoff is not None
        compiled = await context.compile(memories=0)
        said = [message for message in compiled.session if message.role == "assistant"]
        first = await context.llm.complete(str(context.handoff.content)[:50], system="Write", tier="reasoning")
        second = await context.llm.complete("again", system="Write", tier="reasoning")
        return {"texts": [first.text, second.text], "data": task.data, "said_before": len(said)}


TEAM = Team(
    [Finder(), Writer()],
    HybridRouter([lambda task: "finder"]),
    strictness=StrictnessConfig(semantic=False),
)


async def forked(harness: Harness, origin: TaskRun, options: ForkOptions, **more: Any) -> TaskRun:
    """A fork of a run, when it has ended."""
    tenant = origin.outcome.tenant_id
    accepted = await fork_task(harness.hw, tenant, origin.outcome.task_id, options, **more)
    return await harness.finished(accepted)


def models(run: TaskRun) -> set[str]:
    return {body.requested_model for body in run.bodies("llm.attempted")}


async def check_money(harness: Harness) -> None:
    """The ledger has what the provider billed, to the last digit, and a rebuild gives the same."""
    billed = sum((Decimal(entry["usd"]) for entry in harness.bill()), start=Decimal(0))
    spent = await harness.hw.pool.fetchval("SELECT sum(cost_usd) FROM ledger")
    assert spent == billed > 0
    before = await digests(harness.hw.pool)
    await rebuild(harness.hw.pool, rebuildable())
    assert await digests(harness.hw.pool) == before


async def test_a_fork_lives_on_from_its_point_and_pays_only_what_comes_after(endpoints: Endpoints) -> None:
    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("What do I owe?", tenant="acme", session="s", data={"n": 1})
        await harness.run_task("And I?", tenant="beta", session="s")
        before = await harness.hw.task("acme", origin.outcome.task_id)
        session = await harness.hw.session("acme", "s")

        whole = await forked(harness, origin, ForkOptions(models={"reasoning": ("openai/sim-fast",)}, data={"n": 2}))
        assert whole.outcome.status == "completed"
        assert models(whole) == {"openai/sim-fast"} != models(origin)
        assert (whole.result["data"], origin.result["data"]) == ({"n": 2}, {"n": 1})
        assert whole.result["said_before"] == 0, "it sees the session as its origin did"

        (proposed,) = [event for event in origin.events if event.type == "handoff.proposed"]
        part = await forked(harness, origin, ForkOptions(at=proposed.id))
        assert part.result == origin.result
        assert {body.agent_id for body in part.bodies("llm.attempted")} == {"writer"}
        assert set(part.outcome.agent_results) == {"finder", "writer"}
        assert part.outcome.agent_results["finder"]["notes"] == LONG, "a large content is taken over"
        assert 0 < part.cost_usd < origin.cost_usd

        fork = await harness.hw.task("acme", part.outcome.task_id)
        assert fork is not None
        assert fork["fork_of"] == origin.outcome.task_id
        assert await harness.hw.task("acme", origin.outcome.task_id) == before
        now = await harness.hw.session("acme", "s")
        assert now is not None
        assert session is not None
        assert now["messages"] == session["messages"]
        assert await harness.hw.task("beta", part.outcome.task_id) is None
        assert all(event.task_id != part.outcome.task_id for event in await harness.events("beta"))

        recording = harness.hw.history
        report = await verify(recording, ["acme", "beta"], Rules(TEAM, TEAM.strictness))
        assert (report.tasks, report.diverged, report.skipped) == (4, 0, 0), report.differences
        found = await compare(recording, "acme", origin.outcome.task_id, part.outcome.task_id)
        assert found["first_difference"] is None
        assert found["results"] == []
        assert [row["right"]["taken_over"] for row in found["decisions"]] == [True, False, False]
        await check_money(harness)


async def test_a_budget_ends_a_fork_and_is_forgotten_with_it(endpoints: Endpoints) -> None:
    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("What do I owe?", tenant="acme")
        first = Decimal(origin.bodies("llm.attempted")[0].cost_usd)

        stopped = await forked(harness, origin, ForkOptions(budget_usd=format(first, "f")))
        assert stopped.outcome.status == "failed"
        assert "BudgetExceededError" in str(stopped.outcome.error)
        assert "has spent $" in str(stopped.outcome.error)
        assert stopped.cost_usd == first, "what was spent before the limit, and nothing after it"
        (refused,) = stopped.bodies("budget.exceeded")
        assert (refused.agent_id, refused.requested_model, refused.because) == (
            "writer",
            "openai/sim-reasoning",
            "spent",
        )
        assert Decimal(refused.spent_usd) == Decimal(refused.budget_usd) == first

        enough = await forked(harness, origin, ForkOptions(budget_usd=format(origin.cost_usd, "f")))
        assert enough.outcome.status == "completed"
        priceless = await forked(harness, origin, ForkOptions(budget_usd="1", models={"fast": ("openai/unheard-of",)}))
        assert "price of openai/unheard-of is not known" in str(priceless.outcome.error)
        assert priceless.bodies("llm.attempted") == []
        assert [body.because for body in priceless.bodies("budget.exceeded")] == ["unpriced"]
        story = story_of(priceless.events)
        assert story is not None
        assert "was not let ask openai/unheard-of: its price is not known" in str(story.as_dict())
        redis, keys = harness.hw.streams.redis, harness.hw.streams.keys
        await until(lambda: _none_kept(redis, keys.spent("acme")), "nothing is kept of ended tasks")
        await check_money(harness)
        report = await verify(harness.hw.history, ["acme"], Rules(TEAM, TEAM.strictness))
        assert (report.tasks, report.diverged, report.skipped) == (4, 0, 0), report.differences


class Patient(BaseAgent):
    """Asks a model twice, and waits in between; asks again when it is refused, as if it had not heard."""

    registration = AgentRegistration(agent_id="patient", name="Patient", description="waits")

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def execute(self, task: Task, context: TaskContext) -> Any:
        await context.llm.complete(task.text)
        self.asked.set()
        await self.go_on.wait()
        refused = 0
        for _ in range(2):
            try:
                await context.llm.complete(task.text)
            except BudgetExceededError:
                refused += 1
        return {"refused": refused}


async def test_the_metrics_of_budgets_are_what_the_workers_hold(endpoints: Endpoints) -> None:
    agent = Patient()
    team = Team([agent], HybridRouter([lambda task: "patient"]), strictness=StrictnessConfig(semantic=False))
    async with running(team, endpoints) as harness:
        hw = harness.hw
        agent.go_on.set()
        origin = await harness.run_task("What do I owe?", tenant="acme")
        other = await harness.run_task("And I?", tenant="beta")
        await forked(harness, other, ForkOptions(budget_usd="1"))
        agent.go_on.clear()
        agent.asked.clear()
        limit = origin.cost_usd / 5
        accepted = await fork_task(hw, "acme", origin.outcome.task_id, ForkOptions(budget_usd=plain(limit)))
        await agent.asked.wait()
        assert await hw.caught_up("acme", timeout_s=20)

        async def shown(tenant: str) -> dict[str, float]:
            series = exposed(await tenant_snapshot(hw.pool, tenant))
            return {name: value(series, name) for name in METRICS if "budget" in name}

        held = await spent_usd(hw.streams, "acme", accepted.task_id)
        assert held == origin.cost_usd / 3
        nothing = {name: 0.0 for name in METRICS if "budget" in name}
        others = nothing | {"budgeted_tasks_total": 1}
        now = {"budgeted_tasks_open": 1, "task_budget_limit_usd": float(limit), "task_budget_spent_usd": float(held)}
        assert await shown("acme") == nothing | now
        assert await shown("beta") == others
        agent.go_on.set()
        run = await harness.finished(accepted)
        assert run.result == {"refused": 2}, "an agent may go on without the model"
        over = {"task_budget_overrun_usd_total": float(held - limit), "budget_exceeded_total": 2}
        assert await shown("acme") == pytest.approx(nothing | over | {"budgeted_tasks_total": 1})
        assert await shown("beta") == others
        await check_money(harness)


async def _none_kept(redis: Any, key: str) -> bool:
    return not await redis.exists(key)


async def test_under_a_key_a_task_is_forked_once(endpoints: Endpoints) -> None:
    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("What do I owe?", tenant="acme")
        task_id, hw = origin.outcome.task_id, harness.hw
        first = await fork_task(hw, "acme", task_id, ForkOptions(), key="once")
        again = await fork_task(hw, "acme", task_id, ForkOptions(), key="once")
        assert (again.task_id, again.duplicate, first.duplicate) == (first.task_id, True, False)
        other = await fork_task(hw, "acme", task_id, ForkOptions())
        assert other.task_id != first.task_id
        for accepted in (first, other):
            assert (await harness.finished(accepted)).outcome.status == "completed"


class Rewriter(BaseAgent):
    """In another team, under an id that the running one has too: what it does shows who worked."""

    registration = AgentRegistration(agent_id="writer", name="Rewriter", description="writes otherwise")

    async def execute(self, task: Task, context: TaskContext) -> Any:
        return {"rewritten": (await context.llm.complete(task.text, system="Write", tier="reasoning")).text}


class Reviewer(BaseAgent):
    """Known to the other team only."""

    registration = AgentRegistration(agent_id="reviewer", name="Reviewer", description="reviews")

    async def execute(self, task: Task, context: TaskContext) -> Any:
        long = await context.llm.complete(task.text, system="Look it up")
        return context.hand_over("writer", payload_type="notes", content={"notes": long.text})


OTHER = Team(
    [Reviewer(), Rewriter()], HybridRouter([lambda task: "reviewer"]), strictness=StrictnessConfig(semantic=False)
)


def beside(harness: Harness, team: Team, lane: str) -> AbstractAsyncContextManager[None]:
    """Another team, served in a lane."""
    return serving(lane, team, harness.hw, harness.settings, harness.endpoints)


async def test_another_team_runs_a_fork_beside_the_running_one(endpoints: Endpoints) -> None:
    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("What do I owe?", tenant="acme", data={"n": 1})
        waiting = await fork_task(harness.hw, "acme", origin.outcome.task_id, ForkOptions(lane="l1"))
        meanwhile = await harness.run_task("And I?", tenant="acme")
        assert meanwhile.outcome.status == "completed", "a lane that nobody serves holds up nobody"
        async with beside(harness, OTHER, "l1"), beside(harness, TEAM, "l2"):
            whole = await harness.finished(waiting)
            (proposed,) = [event for event in origin.events if event.type == "handoff.proposed"]
            part = await forked(harness, origin, ForkOptions(at=proposed.id, lane="l1"))
            same = await forked(harness, origin, ForkOptions(lane="l2"))
            nobody = await fork_task(harness.hw, "acme", origin.outcome.task_id, ForkOptions(lane="l3"))
            await harness.hw.cancel("acme", nobody.task_id)
            assert (await harness.finished(nobody)).outcome.status == "cancelled"
        assert (whole.outcome.status, whole.result) == ("completed", {"rewritten": "Dear customer"})
        assert whole.outcome.agent_results["reviewer"]["notes"] == LONG
        assert part.result == {"rewritten": "Dear customer"}
        assert {body.agent_id for body in part.bodies("llm.attempted")} == {"writer"}
        assert same.result == origin.result
        for run in (whole, part, same):
            assert run.outcome.call_chain[:2] == ("user", "supervisor")

        recording = harness.hw.history
        found = await compare(recording, "acme", origin.outcome.task_id, same.outcome.task_id)
        assert found["first_difference"] is None
        assert len(found["decisions"]) == len([e for e in origin.events if e.body.decision])
        told = story_of(whole.events)
        assert told is not None
        assert [node.event.type for node in told.roots[0].children] == ["task.routed"], "it reads as if decided there"
        report = await verify(recording, ["acme"], Rules(TEAM, TEAM.strictness))
        assert (report.tasks, report.diverged, report.skipped) == (6, 0, 0), report.differences
        again = await forked(harness, whole, ForkOptions())
        assert again.result == origin.result, "a fork of it is the running team's"
        await check_money(harness)


async def test_a_rule_that_breaks_ends_the_fork_with_the_reason(endpoints: Endpoints) -> None:
    class Broken(HybridRouter):
        def match(self, task: Task) -> Any:
            raise ZeroDivisionError("by zero")

    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("What do I owe?", tenant="acme")
        async with beside(harness, Team([Rewriter()], Broken()), "l1"):
            fork = await forked(harness, origin, ForkOptions(lane="l1"))
        assert fork.outcome.status == "failed"
        assert "ZeroDivisionError: by zero" in str(fork.outcome.error)


async def test_forks_are_listed_with_what_they_cost_beside_their_origin(endpoints: Endpoints) -> None:
    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("What do I owe?", tenant="acme")
        other = await harness.run_task("And I?", tenant="beta")
        first = await forked(harness, origin, ForkOptions())
        second = await forked(harness, first, ForkOptions(models={"reasoning": ("openai/sim-fast",)}))
        found = await harness.hw.forks("acme", origin.outcome.task_id)
        assert found is not None
        assert [(one["task"], one["fork_of"]) for one in found["forks"]] == [
            (first.outcome.task_id, origin.outcome.task_id),
            (second.outcome.task_id, first.outcome.task_id),
        ]
        assert Decimal(found["cost_usd"]) == origin.cost_usd
        assert Decimal(found["forks_usd"]) == first.cost_usd + second.cost_usd
        assert Decimal(found["total_usd"]) == origin.cost_usd + first.cost_usd + second.cost_usd
        assert await harness.hw.forks("beta", origin.outcome.task_id) is None
        alone = await harness.hw.forks("beta", other.outcome.task_id)
        assert alone is not None
        assert (alone["forks"], alone["forks_usd"], alone["total_usd"]) == ([], "0", alone["cost_usd"])


async def test_a_fork_that_took_facts_over_makes_no_fixture(endpoints: Endpoints) -> None:
    async def made(task_id: str) -> bytes:
        rules = Rules(TEAM, TEAM.strictness)
        return b"".join([line async for line in fixture(harness.hw.history, "acme", task_id, rules)])

    async with running(TEAM, endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("What does Maria Lopez owe?", tenant="acme")
        whole = await forked(harness, origin, ForkOptions())
        assert b"Lopez" not in await made(whole.outcome.task_id)
        (proposed,) = [event for event in origin.events if event.type == "handoff.proposed"]
        part = await forked(harness, origin, ForkOptions(at=proposed.id))
        async with beside(harness, TEAM, "l1"):
            other = await forked(harness, origin, ForkOptions(lane="l1"))
        for fork, why in ((part, "took over recorded facts"), (other, "decided on by another team")):
            with pytest.raises(FixtureError, match=f"{why}: make a fixture of its origin, {origin.outcome.task_id}"):
                await made(fork.outcome.task_id)
