"""The story of a task: what led to what, what it cost, and what of it was wasted."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from headwater.replay.story import Story, flat, story_of
from schemas.bodies import (
    AgentFailed,
    AgentStarted,
    EventBody,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    LlmAttempted,
    SupervisorAsked,
    TaskCompleted,
    TaskRouted,
    TaskSubmitted,
)
from schemas.event import AgentEvent
from schemas.handoff import HandoffProposal
from schemas.money import TokenCounts

START = datetime(2026, 11, 25, 9, tzinfo=UTC)


def event(number: int, body: EventBody, parent: int | None = None) -> AgentEvent:
    return AgentEvent(
        id=f"e{number}",
        tenant_id="acme",
        session_id="s",
        task_id="t",
        source_agent_id="user",
        call_chain=("user",),
        parent_event_id=None if parent is None else f"e{parent}",
        at=START + timedelta(milliseconds=number * 100),
        body=body,
        position=f"{number}-0",
    )


def attempt(call: str, cost: str | None, status: Any = "ok", number: int = 1) -> LlmAttempted:
    return LlmAttempted(
        call_id=call,
        ordinal=0,
        attempt=number,
        delivery=1,
        agent_id="a",
        tier="fast",
        requested_model="m",
        params={},
        request_hash="h",
        request={"messages": []},
        status=status,
        started_at=START,
        ended_at=START,
        duration_us=40_000,
        tokens=TokenCounts(input_uncached=7) if cost else None,
        cost_usd=cost,
        cost_status="priced" if cost else "unknown",
        error_class=None if status == "ok" else "Timeout",
    )


def routed(agent: str, call: str, by: Any = "rules") -> TaskRouted:
    return TaskRouted(agent_id=agent, call_id=call, routed_by=by, confidence=1, reasoning="because")


def told() -> Story:
    proposal = HandoffProposal(
        source_agent_id="a",
        target_agent_id="b",
        tenant_id="acme",
        payload_type="deal_data",
        content={"x": 1},
        confidence=1,
        call_chain=("user",),
    )
    verdict: dict[str, Any] = {
        "source_agent_id": "a",
        "target_agent_id": "b",
        "payload_type": "deal_data",
        "strictness": "strict",
        "returned_to": "supervisor",
        "reasons": ("the price is invented",),
    }
    story = story_of(
        [
            event(0, TaskSubmitted(task_type="sale", text="sell it")),
            event(1, routed("a", "c1"), 0),
            event(2, AgentStarted(agent_id="a", call_id="c1", delivery=1, worker="w1"), 1),
            event(3, AgentStarted(agent_id="a", call_id="c1", delivery=2, worker="w2"), 1),
            event(4, attempt("c1", None, "unknown"), 1),
            event(5, attempt("c1", "0.02", number=2), 1),
            event(6, HandoffProposed(call_id="c1", payload=proposal), 1),
            event(7, HandoffRejected(**verdict), 6),
            event(8, routed("b", "c2", "backup"), 6),
            event(9, attempt("c2", "0.003"), 8),
            event(10, TaskCompleted(result="sold", routed_by="backup", agent_results={}), 8),
        ]
    )
    assert story is not None
    return story


def test_a_branch_costs_what_is_under_it_and_waste_is_marked() -> None:
    story = told()
    assert (story.status, story.total_usd, story.wasted_usd) == ("completed", Decimal("0.023"), Decimal("0.02"))
    assert story.waste() == {"rejected_handoff": Decimal("0.02"), "failed_attempt": Decimal(0)}
    nodes = {node["event"]: node for node in flat(story.as_dict())}
    assert [nodes[e]["total_usd"] for e in ("e0", "e1", "e6", "e8")] == ["0.023", "0.023", "0.003", "0.003"]
    assert (nodes["e5"]["outcome"], nodes["e9"]["outcome"]) == ("rejected_handoff", "useful")
    assert nodes["e1"]["attempts"] == 3
    assert list(nodes) == ["e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8", "e9", "e10"]


def test_the_money_is_told_by_agent_and_by_step() -> None:
    story = told()
    assert {agent: share.attempts for agent, share in story.by_agent().items()} == {"user": 3}
    assert story.by_step() == {}, "it was not split"
    accepted = HandoffAccepted(
        source_agent_id="a", target_agent_id="b", payload_type="notes", strictness="lenient", checks=(), call_id="c3"
    )
    payload = HandoffProposal(
        source_agent_id="a", target_agent_id="b", tenant_id="acme", payload_type="notes", content={}, confidence=1,
        call_chain=("user",),
    )  # fmt: skip
    split = story_of(
        [
            event(0, TaskSubmitted(task_type="sale", text="sell it")),
            event(1, SupervisorAsked(call_id="c0", question="decompose"), 0),
            event(2, attempt("c0", "0.5"), 1),
            event(3, routed("a", "c1").model_copy(update={"subtask": 0}), 0),
            event(4, routed("b", "c2").model_copy(update={"subtask": 1}), 0),
            event(5, attempt("c1", "0.02"), 3),
            event(6, attempt("c2", None, "unknown"), 4),
            event(7, HandoffProposed(call_id="c1", payload=payload), 3),
            event(8, accepted, 7),
            event(9, attempt("c3", "0.003"), 8),
        ]
    )
    assert split is not None
    assert {step: (share.cost_usd, share.attempts, share.unknown) for step, share in split.by_step().items()} == {
        None: (Decimal("0.5"), 1, 0),
        0: (Decimal("0.023"), 2, 0),
        1: (Decimal(0), 1, 1),
    }, "who takes a handoff over works on the same step"
    assert sum(share.cost_usd for share in split.by_step().values()) == split.total_usd


def test_it_reads_like_an_explanation() -> None:
    said = {node["event"]: node["said"] for node in flat(told().as_dict())}
    assert said["e3"] == "The worker w1 was lost; w2 took over (a, delivery 2)"
    assert "may have been billed" in said["e4"]
    assert said["e7"] == "The handoff to b was REJECTED and went up to the supervisor: the price is invented"
    assert said["e8"].startswith("The supervisor gave it to the backup b, because")


def test_a_task_that_goes_on_has_a_story_too() -> None:
    story = story_of([event(0, TaskSubmitted(task_type="x", text="y")), event(1, routed("a", "c"), 0)])
    assert story is not None
    assert (story.status, story.duration_us) == ("running", 100_000)
    assert story_of([]) is None


def test_a_failed_run_is_waste_and_so_is_all_of_a_failed_task() -> None:
    failed = AgentFailed(agent_id="a", call_id="c1", delivery=1, error_class="E", error="e", duration_us=1)
    story = story_of(
        [
            event(0, TaskSubmitted(task_type="x", text="y")),
            event(1, routed("a", "c1"), 0),
            event(2, attempt("c1", "1"), 1),
            event(3, failed, 1),
        ]
    )
    assert story is not None
    assert story.waste() == {"failed_run": Decimal(1)}
