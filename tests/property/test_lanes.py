"""A task in a lane is decided as its team would decide it alone, in whatever order facts and answers come in."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.decider import decided_event, redecide
from handlers.lanes import read_undecided, written
from handlers.state import TaskState
from handlers.strictness import StrictnessConfig
from handlers.supervisor import Rules, call_for, decide, evolve
from headwater.replay.fork import ForkOptions, forking, moments_of
from headwater.testing.given import AT, Supervised, agent, rules
from schemas.bodies import (
    AgentCompleted,
    AgentFailed,
    EventBody,
    HandoffProposed,
    SupervisorAnswered,
    SupervisorAsked,
)
from schemas.call import Call
from schemas.event import AgentEvent
from schemas.handoff import HandoffProposal
from schemas.ids import derived_id
from schemas.task import Task

STEPS = "Please:\n1. find the facts\n2. find the figures\n3. write them up\n4. check it"
SPLIT = {
    "subtasks": [
        {"description": "find the facts"},
        {"description": "find the figures"},
        {"description": "write them up", "depends_on": [0]},
        {"description": "check it", "depends_on": [0, 1]},
    ]
}


def _team() -> Rules:
    def to(task: Task) -> str | None:
        if task.subtask is None:
            return "alpha"
        return None if "check" in task.text else ("alpha", "beta")[task.subtask % 2]

    team = [agent("alpha", backup_agent_id="gamma"), agent("beta"), agent("gamma")]
    return rules(*team, to=to, strictness=StrictnessConfig())


THERE = _team()
HERE = rules(agent("nobody"), to="nobody")
"""The running team, which has none of the agents and would decide in another way each time."""


class Run:
    """A fork, under a supervisor that goes by `rules`."""

    def __init__(self, body: EventBody, rules: Rules) -> None:
        self.rules = rules
        self.state: TaskState | None = None
        self.log: list[AgentEvent] = []
        self.facts: list[AgentEvent] = []
        self.feed(body, "forked")

    def feed(self, body: EventBody, event_id: str) -> None:
        """A fact comes in and is decided on."""
        event = AgentEvent(
            id=event_id, tenant_id="acme", session_id="s1", task_id="fork", source_agent_id="user",
            call_chain=("user",), at=AT, body=body, parent_event_id=None,
        )  # fmt: skip
        decisions = decide(self.state, event, self.rules)
        self.state = evolve(self.state, event)
        self.log.append(event)
        self.facts.append(event)
        for ordinal, decision in enumerate(decisions):
            self.log.append(decided_event(event, ordinal, decision, AT))
            self.state = evolve(self.state, self.log[-1])

    def call(self, pick: int) -> Call | None:
        """One of the open calls."""
        if self.state is None or not self.state.calls:
            return None
        waiting = {proposed.call_id for proposed in self.state.proposals.values()}
        done = {_call_id(entry) for entry in self.state.waiting}
        calls = [call_id for call_id in sorted(self.state.calls) if call_id not in waiting | done]
        return call_for(self.state, calls[pick % len(calls)]) if calls else None

    @property
    def decisions(self) -> list[tuple[str, dict[str, Any], tuple[str, ...]]]:
        """What was decided, apart from leaving it to others."""
        return [
            (event.type, _plain(event.body), event.call_chain)
            for event in self.log
            if event.body.decision and not (isinstance(event.body, SupervisorAsked) and event.body.question == "decide")
        ]


def _call_id(entry: dict[str, str]) -> str:
    return str(orjson.loads(entry["body"]).get("call_id", ""))


def _plain(body: EventBody) -> dict[str, Any]:
    # Which handoff a verdict is about is said only where it is not the cause.
    return body.model_dump(exclude={"proposal_event_id"})


def _fact(call: Call, how: int) -> EventBody:
    """How a call ends."""
    if call.kind == "agent":
        common: dict[str, Any] = {"agent_id": call.agent_id, "call_id": call.call_id, "delivery": 1, "duration_us": 1}
        if how % 4 == 0:
            return AgentFailed(error_class="ValueError", error="it broke", **common)
        target = ("beta", "gamma", "nobody")[how % 3]
        if how % 4 == 1 and target not in call.call_chain:
            payload = HandoffProposal(
                source_agent_id=call.agent_id,
                target_agent_id=target,
                tenant_id="acme",
                payload_type=("research_result", "notification")[how % 2],
                content={"n": how},
                confidence=0.9,
                call_chain=call.call_chain,
            )
            return HandoffProposed(call_id=call.call_id, payload=payload, given=())
        return AgentCompleted(result={"n": how}, **common)
    answers: dict[str, Any] = {
        "decompose": SPLIT,
        "route": {"agent_id": ("alpha", "beta")[how % 2], "confidence": 0.5},
        "check": {"grounded": how % 3 > 0, "reasons": ["made up"]},
        "synthesize": {"answer": "all of it", "sources": [0]},
    }
    lost = how % 11 == 0
    return SupervisorAnswered(
        call_id=call.call_id,
        question=call.kind,
        delivery=1,
        answer=None if lost else answers[call.kind],
        error="no provider" if lost else None,
        duration_us=1,
    )


def _answer(call: Call) -> EventBody:
    """What a worker of the lane answers."""
    assert call.undecided is not None
    state, event = read_undecided("acme", call.undecided)
    assert state is None or (state.lane is None and not state.waiting)
    answer = written(decide(state, event, THERE), event)
    return SupervisorAnswered(call_id=call.call_id, question="decide", delivery=1, answer=answer, duration_us=1)


def _drive(run: Run, steps: list[tuple[int, int]], decides: Callable[[Call], EventBody]) -> None:
    for number, (pick, how) in enumerate(steps):
        call = run.call(pick)
        if call is None:
            return
        run.feed(decides(call) if call.kind == "decide" else _fact(call, how), derived_id("fact", number))


ORIGIN = Supervised(THERE, STEPS).answers(SPLIT).completes("alpha", "facts", subtask=0)
STEP = st.tuples(st.integers(0, 50), st.integers(0, 50))


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, min_size=10, max_size=60), at=st.sampled_from([None, 0, 1, 2]))
def test_a_lane_decides_as_its_team_alone(steps: list[tuple[int, int]], at: int | None) -> None:
    point = None if at is None else moments_of(ORIGIN.log)[at].event.id
    alone = forking(ORIGIN.log, ForkOptions(at=point), task_id="fork")
    beside = forking(ORIGIN.log, ForkOptions(at=point, lane="lane-1"), task_id="fork")
    lane = Run(beside, HERE)
    _drive(lane, steps, _answer)
    while lane.state is not None and any(call.kind == "decide" for call in lane.state.calls.values()):
        (open_,) = [call_id for call_id, call in lane.state.calls.items() if call.kind == "decide"]
        lane.feed(_answer(call_for(lane.state, open_)), derived_id("last", len(lane.log)))

    team = Run(alone, THERE)
    for fact in lane.facts[1:]:
        if not (isinstance(fact.body, SupervisorAnswered) and fact.body.question == "decide"):
            team.feed(fact.body, fact.id)
    assert lane.decisions == team.decisions
    ordered = [
        call_id for event in lane.log if event.body.decision if (call_id := getattr(event.body, "call_id", None))
    ]
    assert len(set(ordered)) == len(ordered), "each call has an id of its own"
    assert (lane.state is None) == (team.state is None)
    if lane.state is not None and team.state is not None:
        assert lane.state.waiting == ()
        left_out = {"lane", "waiting"}
        ignored = {"ordered_by"}
        mine, theirs = (run.model_dump(exclude=left_out) for run in (lane.state, team.state))
        for calls in (mine["calls"], theirs["calls"]):
            for call in calls.values():
                for name in ignored:
                    del call[name]
        assert mine == theirs
    # What was decided elsewhere is proven here, without that team.
    assert list(redecide(lane.log, HERE, {})) == []


@pytest.mark.parametrize("answer", [
    {"decisions": [{"type": "agent.completed", "v": "1", "body": {}, "chain": ["user"]}]},
    {"decisions": [{"type": "task.routed", "v": "1", "body": {"nonsense": 1}, "chain": ["user"]}]},
    {"decisions": [{"type": "supervisor.asked", "v": "1", "body": {"call_id": "c", "question": "decide"},
                    "chain": ["user", "supervisor"]}]},
    {"decisions": 1},
    [],
    None,
])  # fmt: skip
def test_a_workers_word_is_not_enough(answer: Any) -> None:
    run = Run(forking(ORIGIN.log, ForkOptions(lane="lane-1"), task_id="fork"), HERE)
    call = run.call(0)
    assert call is not None
    assert call.kind == "decide"
    run.feed(
        SupervisorAnswered(call_id=call.call_id, question="decide", delivery=1, answer=answer, duration_us=1), "answer"
    )
    assert run.log[-1].type == "task.failed"
    assert "cannot be used" in run.log[-1].body.reason  # type: ignore[attr-defined]


def test_a_team_that_cannot_decide_ends_its_task() -> None:
    run = Run(forking(ORIGIN.log, ForkOptions(lane="lane-1"), task_id="fork"), HERE)
    call = run.call(0)
    assert call is not None
    error = "ZeroDivisionError: division by zero"
    run.feed(
        SupervisorAnswered(call_id=call.call_id, question="decide", delivery=1, error=error, duration_us=1), "answer"
    )
    assert run.log[-1].type == "task.failed"
    assert error in run.log[-1].body.reason  # type: ignore[attr-defined]


def test_a_fork_of_a_task_in_a_lane_leaves_the_lane() -> None:
    run = Run(forking(ORIGIN.log, ForkOptions(lane="lane-1"), task_id="fork"), HERE)
    _drive(run, [(0, 2)] * 8, _answer)
    moments = moments_of(run.log)
    assert len(moments) > 2
    for moment in moments:
        for at in (moment.event.id, moment.answer_id):
            body = forking(run.log, ForkOptions(at=at), task_id="fork-2")
            assert body.lane is None
            again = Run(body, THERE)
            assert again.decisions, moment
            assert "waiting" not in (body.state or {})
