"""The deciders, run again over a recorded log, decide what was recorded (I5); and a fault in them is found."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

import handlers.decider
from handlers.decider import Divergence, redecide
from handlers.router import HybridRouter
from handlers.strictness import StrictnessConfig, ValidationStrictness
from handlers.supervisor import WANTED, Decision, Rules, TaskState, decide, evolve
from handlers.team import Team
from schemas.bodies import (
    DECISIONS,
    AgentCompleted,
    EventDropped,
    HandoffAccepted,
    HandoffRejected,
    SupervisorAnswered,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskForked,
    TaskResumed,
    TaskRouted,
)
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import Task
from tests.replay.recording import LOGS, Recording
from tests.replay.team import asking, team

Decide = Callable[..., list[Decision]]


@dataclass(frozen=True)
class Case:
    """A recorded log, and the rules that it was recorded with."""

    name: str
    recording: Recording
    rules: Rules

    def divergences(self, rules: Rules | None = None, events: list[AgentEvent] | None = None) -> list[Divergence]:
        """What deciding again gives otherwise."""
        events = self.recording.events() if events is None else events
        return list(redecide(events, rules or self.rules, self.recording.all_blobs()))


TEAMS = {"rules_routed": team, "asks_models": asking}


@cache
def case_of(name: str) -> Case:
    recording = Recording.read(LOGS / f"{name}.jsonl.gz")
    return Case(name, recording, Rules(TEAMS[name], TEAMS[name].strictness))


@pytest.fixture(params=TEAMS)
def case(request: pytest.FixtureRequest) -> Case:
    """Each recording: one where rules decide all, by an older version; one where models are asked."""
    return case_of(request.param)


def test_every_recording_there_is_is_decided_again() -> None:
    assert {path.name.removesuffix(".jsonl.gz") for path in LOGS.glob("*.gz")} == set(TEAMS)


def test_the_recordings_have_every_kind_of_decision() -> None:
    ruled, asked = ([e.body for e in case_of(name).recording.events()] for name in TEAMS)
    types = {body.type for body in (*ruled, *asked)}
    # What people do to a log by hand, dropping an event or forking a task, is not in these.
    assert types >= (DECISIONS | set(WANTED)) - {EventDropped.type, TaskResumed.type, TaskForked.type}
    assert {b.routed_by for b in ruled if isinstance(b, TaskRouted)} == {"rules", "backup"}
    assert {b.routed_by for b in asked if isinstance(b, TaskRouted)} == {"rules", "llm", "backup"}
    assert {b.strictness for b in ruled if isinstance(b, HandoffAccepted)} == {"strict", "lenient"}
    assert any(b.warnings for b in ruled if isinstance(b, HandoffAccepted))
    assert {len(b.errors) for b in ruled if isinstance(b, TaskFailed)} >= {0, 1, 2}
    assert {(b.verification, b.failed_check, b.returned_to) for b in asked if isinstance(b, HandoffRejected)} == {
        ("verified", "semantic", "sender"),
        ("verified", "semantic", "supervisor"),
        ("unverified", "semantic", "supervisor"),
        ("not_required", "structural", "sender"),
    }
    assert {b.verification for b in asked if isinstance(b, HandoffAccepted)} == {
        *("verified", "unverified", "not_required"),
    }
    unanswered = {b.question for b in asked if isinstance(b, SupervisorAnswered) and b.error}
    assert unanswered >= {"route", "decompose", "check"}
    assert {b.decomposed for b in asked if isinstance(b, TaskCompleted | TaskFailed | TaskCancelled)} == {True, False}
    for name in TEAMS:
        assert case_of(name).recording.tenants() == ["acme", "globex"]
        assert all(case_of(name).recording.blobs.values())


def test_deciding_again_gives_the_recorded_decisions(case: Case) -> None:
    assert case.divergences() == []


def test_tenants_do_not_depend_on_each_other(case: Case) -> None:
    for tenant in case.recording.tenants():
        alone = [event for event in case.recording.events() if event.tenant_id == tenant]
        assert list(redecide(alone, case.rules, case.recording.blobs[tenant])) == []
    # Nor on the order in which their entries are read.
    assert case.divergences(events=sorted(case.recording.events(), key=lambda e: e.tenant_id, reverse=True)) == []


# Faults in the decider. Each takes the true function and gives the faulty one.


def drops_the_last_decision(true: Decide) -> Decide:
    return lambda *args: true(*args)[:-1]


def decides_twice(true: Decide) -> Decide:
    return lambda *args: true(*args) * 2


def decides_on_nothing_new(true: Decide) -> Decide:
    return lambda state, *rest: [] if state is not None and state.errors else true(state, *rest)


def accepts_every_handoff(true: Decide) -> Decide:
    def faulty(state: TaskState, event: AgentEvent, *rest: Any) -> list[Decision]:
        return [_accept(d) if isinstance(d.body, HandoffRejected) else d for d in true(state, event, *rest)]

    def _accept(decision: Decision) -> Decision:
        body = decision.body
        assert isinstance(body, HandoffRejected)
        accepted = HandoffAccepted(
            source_agent_id=body.source_agent_id,
            target_agent_id=body.target_agent_id,
            payload_type=body.payload_type,
            strictness=body.strictness,
            checks=("structural",),
            call_id=body.call_id or "none",
        )
        return replace(decision, body=accepted)

    return faulty


def makes_new_ids(true: Decide) -> Decide:
    return _with_body(true, lambda b: b.model_copy(update={"call_id": new_id()}) if hasattr(b, "call_id") else b)


def looks_at_the_clock(true: Decide) -> Decide:
    return _with_body(
        true,
        lambda b: b.model_copy(update={"reasoning": f"{time.time_ns()}"}) if isinstance(b, TaskRouted) else b,
    )


def names_another_chain(true: Decide) -> Decide:
    return lambda *args: [replace(d, call_chain=(*d.call_chain[:2], "triage")) for d in true(*args)]


def forgets_the_results_of_others(true: Decide) -> Decide:
    return _with_body(true, lambda b: b.model_copy(update={"agent_results": {}}) if isinstance(b, TaskCompleted) else b)


def forgets_the_first_reason(true: Decide) -> Decide:
    return _with_body(true, lambda b: b.model_copy(update={"errors": b.errors[1:]}) if isinstance(b, TaskFailed) else b)


def never_takes_the_backup(true: Decide) -> Decide:
    def faulty(*args: Any) -> list[Decision]:
        decisions = true(*args)
        return (
            [] if any(isinstance(d.body, TaskRouted) and d.body.routed_by == "backup" for d in decisions) else decisions
        )

    return faulty


def depends_on_what_came_before(true: Decide) -> Decide:
    made = 0

    def faulty(*args: Any) -> list[Decision]:
        nonlocal made
        decisions = true(*args)
        made += bool(decisions)
        return [] if made == 50 else decisions

    return faulty


def _with_body(true: Decide, change: Callable[[Any], Any]) -> Decide:
    return lambda *args: [replace(d, body=change(d.body)) for d in true(*args)]


@pytest.mark.parametrize(
    "fault",
    [
        drops_the_last_decision,
        decides_twice,
        decides_on_nothing_new,
        accepts_every_handoff,
        makes_new_ids,
        looks_at_the_clock,
        names_another_chain,
        forgets_the_results_of_others,
        forgets_the_first_reason,
        never_takes_the_backup,
        depends_on_what_came_before,
    ],
)
def test_a_fault_in_the_decisions_is_found(
    case: Case, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Decide], Decide]
) -> None:
    monkeypatch.setattr(handlers.decider, "decide", fault(decide))
    assert case.divergences()


EMPTY: dict[str, Any] = {
    "agent_results": {},
    "errors": (),
    "repaired": (),
    "routed_by": None,
    "done": {},
    "task_type": "",
    "priority": "low",
}


@pytest.mark.parametrize("forgotten", EMPTY)
def test_a_fault_in_the_folded_state_is_found(monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    def forgetful(state: TaskState | None, event: AgentEvent) -> TaskState | None:
        after = evolve(state, event)
        return None if after is None else after.model_copy(update={forgotten: EMPTY[forgotten]})

    monkeypatch.setattr(handlers.decider, "evolve", forgetful)
    found = [divergence for name in TEAMS for divergence in case_of(name).divergences()]
    # Nothing is decided by the last two once a task is routed: controls that must not be found.
    assert bool(found) == (forgotten not in ("task_type", "priority"))


def test_one_difference_does_not_make_all_that_follows_differ(case: Case) -> None:
    events = case.recording.events()
    place, routed = next((n, e) for n, e in enumerate(events) if isinstance(e.body, TaskRouted))
    assert isinstance(routed.body, TaskRouted)
    events[place] = replace(routed, body=routed.body.model_copy(update={"reasoning": "edited by hand"}))
    [divergence] = case.divergences(events=events)
    assert divergence.recorded == events[place]
    assert divergence.now is not None
    assert divergence.now.body == routed.body


def test_a_decision_that_is_missing_or_that_nobody_made_is_found(case: Case) -> None:
    events = case.recording.events()
    for decision in [event for event in events if event.body.decision][::3]:
        found = case.divergences(events=[e for e in events if e.id != decision.id])
        assert found
        assert found[0].cause.id == decision.parent_event_id
    ended = next(e for e in events if isinstance(e.body, TaskCompleted))
    invented = replace(ended, id=new_id(), body=TaskFailed(reason="invented"))
    found = case.divergences(events=[*events, invented])
    assert [(d.recorded, d.now) for d in found] == [(invented, None)]


def test_a_changed_fact_changes_the_decision() -> None:
    case = case_of("rules_routed")
    events = case.recording.events()
    ids = {e.body.call_id for e in events if isinstance(e.body, AgentCompleted) and not e.body.handed_over}
    assert len(ids) >= 20
    edited = [
        replace(e, body=e.body.model_copy(update={"result": "edited"}))
        if isinstance(e.body, AgentCompleted) and not e.body.handed_over
        else e
        for e in events
    ]
    assert {d.cause.body.call_id for d in case.divergences(events=edited)} == ids  # type: ignore[attr-defined]


def test_changed_rules_are_found_where_they_apply() -> None:
    def greetings_to_triage(task: Task) -> str | None:
        return "triage" if task.type == "greeting" else None

    case = case_of("rules_routed")
    changed = Team(team.registry, HybridRouter([greetings_to_triage, *team.router.rules]))
    found = case.divergences(Rules(changed, case.rules.strictness))
    assert {d.cause.body.task_type for d in found} == {"greeting"}  # type: ignore[attr-defined]
    lenient = StrictnessConfig({"research_result": ValidationStrictness.LENIENT}, semantic=False)
    found = case.divergences(Rules(team, lenient))
    assert {d.recorded.body.payload_type for d in found if d.recorded} == {"research_result"}  # type: ignore[attr-defined]
    nobody_else = Team([agent for agent in team.registry if agent.agent_id != "writer"], team.router)
    assert case.divergences(Rules(nobody_else, case.rules.strictness))
    asked = case_of("asks_models")
    fail_open = Rules(asking, StrictnessConfig())
    assert {d.recorded.type for d in asked.divergences(fail_open) if d.recorded} == {"handoff.rejected", "task.failed"}


def test_a_task_whose_large_text_is_needed_cannot_be_decided_without_it(case: Case) -> None:
    with pytest.raises(KeyError):
        list(redecide(case.recording.events(), case.rules, {}))
