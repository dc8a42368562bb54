"""The supervisor with models behind it, on real servers: routing, decomposition, checks, schemas, failure, cancel."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from headwater import (
    AgentCapability,
    AgentRegistration,
    BaseAgent,
    FailPolicy,
    HybridRouter,
    StrictnessConfig,
    SupervisorOrchestrator,
    Task,
    TaskContext,
    TaskFailedError,
    Team,
)
from headwater.embedded import Endpoints
from headwater.testing import FaultRule, Harness, TaskRun, running
from schemas.bodies import TaskCancelRequested
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import Accepted
from tests.processes import until

GROUNDED = {"system": "check a handoff", "json": {"grounded": True, "reasons": []}}
ROUTE = "Choose the one agent"
DECOMPOSE = "Split the task"
SYNTHESIZE = "Put the results"
STEPS = "Please:\n1. find the facts\n2. write them up"


def make(agent_id: str, do: Callable[[Task, TaskContext], Any], **more: Any) -> BaseAgent:
    """An agent from a coroutine function."""

    class Made(BaseAgent):
        registration = AgentRegistration(agent_id=agent_id, name=agent_id, description=f"does {agent_id}", **more)

        async def execute(self, task: Task, context: TaskContext) -> Any:
            return await do(task, context)

    return Made()


async def says_its_name(task: Task, context: TaskContext) -> str:
    return f"{context.agent_id}: {task.text}"


def types(run: TaskRun) -> list[str]:
    return [event.type for event in run.events]


NAMED = [make("alpha", says_its_name), make("beta", says_its_name)]


async def test_a_model_routes_what_no_rule_matches(endpoints: Endpoints) -> None:
    chosen = {"agent_id": "beta", "confidence": 0.7, "reasoning": "it fits"}
    async with running(Team(NAMED), endpoints, answers=[{"system": ROUTE, "json": chosen}]) as hw:
        run = await hw.run_task("who does this?")
        assert run.result == "beta: who does this?"
        [routed] = run.bodies("task.routed")
        assert (routed.routed_by, routed.confidence, routed.reasoning) == ("llm", 0.7, "it fits")
        assert run.outcome.routed_by == "llm"
        [attempt] = run.bodies("llm.attempted")
        assert (attempt.agent_id, attempt.tier, attempt.params["temperature"]) == ("supervisor", "fast", 0)
        assert [m["role"] for m in attempt.request["messages"]] == ["system", "user"]
        assert "who does this?" not in attempt.request["messages"][0]["content"]
        assert run.cost_usd == sum((Decimal(entry["usd"]) for entry in hw.bill()), Decimal(0)) > 0


async def test_an_unregistered_choice_is_sent_back_once_with_the_error(endpoints: Endpoints) -> None:
    answers = [
        {"system": ROUTE, "user": "is not registered", "json": {"agent_id": "alpha"}},
        {"system": ROUTE, "json": {"agent_id": "nobody"}},
    ]
    async with running(Team(NAMED), endpoints, answers=answers) as hw:
        run = await hw.run_task("who does this?")
    assert run.result == "alpha: who does this?"
    assert len(run.bodies("llm.attempted")) == 2


@pytest.mark.parametrize("answer", [{"agent_id": "nobody"}, "I would say alpha"])
async def test_an_answer_that_stays_bad_fails_the_task_with_the_reason(endpoints: Endpoints, answer: Any) -> None:
    rule = {"system": ROUTE, "json" if isinstance(answer, dict) else "answer": answer}
    async with running(Team(NAMED), endpoints, answers=[rule]) as hw:
        run = await hw.run_task("who does this?")
    assert run.outcome.status == "failed"
    assert ("nobody" if isinstance(answer, dict) else "route") in (run.outcome.error or "")
    assert len(run.bodies("llm.attempted")) == 2
    assert not run.bodies("task.routed")


async def test_a_provider_that_is_down_fails_the_task_honestly(endpoints: Endpoints) -> None:
    async with running(Team(NAMED), endpoints, faults=[FaultRule(rate_500=1)], llm_attempts=2) as hw:
        run = await hw.run_task("who does this?")
    assert run.outcome.status == "failed"
    assert "ProviderError" in (run.outcome.error or "")


def split_answers(subtasks: list[dict[str, Any]], **synthesis: Any) -> list[dict[str, Any]]:
    return [
        {"system": DECOMPOSE, "json": {"subtasks": subtasks, "reasoning": "two jobs"}},
        {"system": SYNTHESIZE, "json": {"answer": "both", "sources": [0, 1]} | synthesis},
    ]


async def test_independent_steps_run_at_the_same_time(endpoints: Endpoints) -> None:
    both = asyncio.Barrier(2)

    async def meets(task: Task, context: TaskContext) -> str:
        # Passes only if both steps run at once.
        async with asyncio.timeout(20):
            await both.wait()
        return task.text

    team = Team([make("alpha", meets)], HybridRouter([lambda task: "alpha"]))
    answers = split_answers([{"description": "one"}, {"description": "two"}])
    async with running(team, endpoints, answers=answers) as hw:
        run = await hw.run_task(STEPS)
    assert run.result["answer"] == "both"
    assert [s["description"] for s in run.result["sources"]] == ["one", "two"]
    assert run.outcome.decomposed
    assert run.outcome.agent_results == {"alpha#0": "one", "alpha#1": "two"}
    assert run.outcome.call_chain == ("user", "supervisor", "alpha")
    assert len(run.bodies("task.completed")) == 1


async def test_a_dependent_step_receives_its_prerequisites_results(endpoints: Endpoints) -> None:
    async def adds(task: Task, context: TaskContext) -> dict[str, Any]:
        return {"did": task.text, "got": [result.result["did"] for result in context.results]}

    long = "x" * 5000
    steps: list[dict[str, Any]] = [
        {"description": "one"},
        {"description": long},
        {"description": "three", "depends_on": [0, 1]},
    ]
    team = Team([make("alpha", adds)], HybridRouter([lambda task: "alpha"]))
    async with running(team, endpoints, answers=split_answers(steps)) as hw:
        run = await hw.run_task(STEPS)
    assert run.outcome.agent_results["alpha#2"] == {"did": "three", "got": ["one", long]}
    places = [e.type for e in run.events if e.type in ("task.routed", "agent.completed")]
    assert places[:2] == ["task.routed", "task.routed"]
    assert places[-2:] == ["task.routed", "agent.completed"]


async def test_a_cycle_is_sent_back_once_and_then_named(endpoints: Endpoints) -> None:
    steps = [{"description": "one", "depends_on": [1]}, {"description": "two", "depends_on": [0]}]
    async with running(Team(NAMED), endpoints, answers=split_answers(steps)) as hw:
        run = await hw.run_task(STEPS)
    assert run.outcome.status == "failed"
    assert "0 → 1 → 0" in (run.outcome.error or "")
    assert len(run.bodies("llm.attempted")) == 2


# Handoffs


async def claims(task: Task, context: TaskContext) -> Any:
    await context.step("look_up", str.upper, "the step's result")
    await context.llm.complete("the prompt's text", system="You draft.")
    content = {"claim": "repaired" if context.repair_reasons else "made up", "why": list(context.repair_reasons)}
    return context.hand_over("beta", payload_type="research_result", content=content)


def claiming(**strictness: Any) -> Team:
    agents = [make("alpha", claims), make("beta", says_its_name)]
    return Team(agents, HybridRouter([lambda task: "alpha"]), strictness=StrictnessConfig(**strictness))


async def test_a_check_sees_what_the_sender_was_given_and_a_rejection_is_repaired(endpoints: Endpoints) -> None:
    answers = [
        {"system": "check a handoff", "user": "repaired", "json": {"grounded": True}},
        {"system": "check a handoff", "json": {"grounded": False, "reasons": ["'made up' is not in the context"]}},
    ]
    async with running(claiming(), endpoints, answers=answers) as hw:
        run = await hw.run_task("the task's text")
    assert run.outcome.status == "completed"
    [rejected], [accepted] = run.bodies("handoff.rejected"), run.bodies("handoff.accepted")
    assert rejected.reasons == ("'made up' is not in the context",)
    assert (rejected.failed_check, rejected.returned_to) == ("semantic", "sender")
    assert (accepted.verification, accepted.checks) == ("verified", ("structural", "semantic"))
    checks = [b for b in run.bodies("llm.attempted") if b.agent_id == "supervisor"]
    seen = checks[0].request["messages"][-1]["content"]
    for given in ("the task's text", "THE STEP'S RESULT", "the prompt's text"):
        assert given in seen


async def test_an_ungrounded_handoff_twice_fails_with_the_reasons(endpoints: Endpoints) -> None:
    no = {"system": "check a handoff", "json": {"grounded": False, "reasons": ["the price is invented"]}}
    async with running(claiming(), endpoints, answers=[no]) as hw:
        run = await hw.run_task("x")
    assert run.outcome.status == "failed"
    assert "the price is invented" in (run.outcome.error or "")
    assert [r.returned_to for r in run.bodies("handoff.rejected")] == ["sender", "supervisor"]


@pytest.mark.parametrize("policy", list(FailPolicy))
async def test_a_check_that_cannot_run_is_unverified_and_the_policy_decides(
    endpoints: Endpoints, policy: FailPolicy
) -> None:
    team = claiming(on_unavailable={"research_result": policy})
    async with running(team, endpoints, answers=[{"system": "check a handoff", "answer": "no idea"}]) as hw:
        run = await hw.run_task("x")
    if policy is FailPolicy.FAIL_OPEN:
        [accepted] = run.bodies("handoff.accepted")
        assert accepted.verification == "unverified"
        assert run.outcome.status == "completed"
    else:
        [rejected] = run.bodies("handoff.rejected")
        assert (rejected.verification, run.outcome.status) == ("unverified", "failed")


# Schemas of capabilities


class Question(BaseModel):
    question: str


class Answer(BaseModel):
    answer: int


@pytest.mark.parametrize(
    ("data", "result", "error"),
    [
        ({"question": "six times seven?"}, {"answer": 42}, None),
        ({"quest": 1}, {"answer": 42}, "InputSchemaError"),
        ({"question": "?"}, {"answer": "many"}, "OutputSchemaError"),
    ],
)
async def test_schemas_of_a_capability_are_enforced_and_logged(
    endpoints: Endpoints, data: Any, result: Any, error: str | None
) -> None:
    async def replies(task: Task, context: TaskContext) -> Any:
        return result

    capability = AgentCapability(name="answer", description="d", input_schema=Question, output_schema=Answer)
    team = Team([make("alpha", replies, capabilities=(capability,))], HybridRouter([lambda task: "alpha"]))
    async with running(team, endpoints) as hw:
        run = await hw.run_task("x", data=data)
    if error is None:
        assert run.result == {"answer": 42}
    else:
        [failed] = run.bodies("agent.failed")
        assert failed.error_class == error
        assert ("question" if error == "InputSchemaError" else "answer") in failed.error


async def test_a_failed_agents_backup_gets_the_task_once(endpoints: Endpoints) -> None:
    async def breaks(task: Task, context: TaskContext) -> Any:
        raise ValueError(f"{context.agent_id} is broken")

    agents = [make("alpha", breaks, backup_agent_id="beta"), make("beta", breaks)]
    async with running(Team(agents, HybridRouter([lambda task: "alpha"])), endpoints) as hw:
        run = await hw.run_task("x")
    assert run.outcome.error == "alpha: ValueError: alpha is broken; beta: ValueError: beta is broken"
    assert [b.agent_id for b in run.bodies("agent.failed")] == ["alpha", "beta"]


async def test_execute_task_publishes_and_waits(endpoints: Endpoints) -> None:
    async with running(Team(NAMED, HybridRouter([lambda task: "alpha"])), endpoints) as hw:
        supervisor = SupervisorOrchestrator(hw.hw)
        assert await supervisor.execute_task("hello", "acme", "s1") == {
            "result": "alpha: hello",
            "call_chain": ["user", "supervisor", "alpha"],
            "routed_by": "rules",
            "decomposed": False,
            "agent_results": {"alpha": "alpha: hello"},
        }
    async with running(Team(), endpoints) as hw:
        with pytest.raises(TaskFailedError, match="no agents are registered"):
            await SupervisorOrchestrator(hw.hw).execute_task("hello", "acme", "s1")


# Cancellation


async def test_a_cancelled_task_stops_what_runs_and_starts_nothing_more(endpoints: Endpoints) -> None:
    seen: list[str] = []

    async def slow(task: Task, context: TaskContext) -> Any:
        seen.append(task.text)
        await context.llm.complete("first", system="quick")
        await context.llm.complete("second", system="slow")
        return "too late"

    steps: list[dict[str, Any]] = [{"description": "one"}, {"description": "two", "depends_on": [0]}]
    team = Team([make("alpha", slow)], HybridRouter([lambda task: "alpha"]))
    faults = [FaultRule(model="sim-fast", latency_ms=1500)]
    async with running(team, endpoints, answers=split_answers(steps), faults=faults) as hw:
        accepted = await hw.submit(STEPS)
        await _until(hw, lambda found: found.count("llm.attempted") == 2)
        await _cancel(hw, accepted, "changed my mind")
        await _until(hw, lambda found: "agent.cancelled" in found)
        run = await hw.finished(accepted)
        open_calls = await hw.hw.streams.redis.keys("*:call:*")
    assert (run.outcome.status, run.outcome.error) == ("cancelled", "changed my mind")
    assert seen == ["one"]
    assert types(run).count("task.cancelled") == 1
    assert not open_calls
    attempts = [b for b in run.bodies("llm.attempted") if b.agent_id == "alpha"]
    assert [b.status for b in attempts] == ["ok", "cancelled"]
    assert attempts[1].cost_status == "unknown"
    assert run.cost_usd > 0


async def _cancel(hw: Harness, accepted: Accepted, reason: str) -> None:
    request = AgentEvent(
        id=new_id(),
        tenant_id=accepted.tenant_id,
        session_id=accepted.session_id,
        task_id=accepted.task_id,
        source_agent_id="user",
        call_chain=("user",),
        at=datetime.now(UTC),
        body=TaskCancelRequested(reason=reason),
    )
    await hw.hw.bus(accepted.tenant_id).publish(request)


async def _until(hw: Harness, condition: Callable[[list[str]], bool]) -> None:
    async def holds() -> bool:
        return condition([event.type for event in await hw.events()])

    await until(holds, "the log has what is waited for")
