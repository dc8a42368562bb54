"""The deciders, run again over a recorded log, decide what was recorded (I5); and a fault in them is found."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

import handlers.decider
from handlers.decider import Divergence, redecide
from handlers.router import HybridRouter
from handlers.strictness import StrictnessConfig, ValidationStrictness
from handlers.supervisor import Decision, Rules, TaskState, decide, evolve
from handlers.team import Team
from schemas.bodies import AgentCompleted, HandoffAccepted, HandoffRejected, TaskCompleted, TaskFailed, TaskRouted
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import Task
from tests.replay.recording import LOGS, Recording
from tests.replay.team import team

RULES = Rules(team, team.strictness)
Decide = Callable[..., list[Decision]]


@pytest.fixture(scope="module")
def recording() -> Recording:
    """40 tasks of two tenants: repaired and refused handoffs, backups, failures, large texts, odd Unicode."""
    return Recording.read(LOGS / "rules_routed.jsonl.gz")


def divergences(recording: Recording, rules: Rules = RULES) -> list[Divergence]:
    return list(redecide(recording.events(), rules, recording.all_blobs()))


def test_the_recording_has_every_kind_of_decision(recording: Recording) -> None:
    events = recording.events()
    counts = Counter(event.type for event in events if event.body.decision)
    assert set(counts) == {"task.routed", "handoff.accepted", "handoff.rejected", "task.completed", "task.failed"}
    assert min(counts.values()) >= 10
    bodies = [event.body for event in events]
    assert {b.routed_by for b in bodies if isinstance(b, TaskRouted)} == {"rules", "backup"}
    assert {b.returned_to for b in bodies if isinstance(b, HandoffRejected)} == {"sender", "supervisor"}
    assert {b.strictness for b in bodies if isinstance(b, HandoffAccepted)} == {"strict", "lenient"}
    assert any(b.warnings for b in bodies if isinstance(b, HandoffAccepted))
    assert {len(b.errors) for b in bodies if isinstance(b, TaskFailed)} >= {0, 1, 2}
    assert recording.tenants() == ["acme", "globex"]
    assert all(recording.blobs.values())


def test_deciding_again_gives_the_recorded_decisions(recording: Recording) -> None:
    assert divergences(recording) == []


def test_tenants_do_not_depend_on_each_other(recording: Recording) -> None:
    for tenant in recording.tenants():
        alone = [event for event in recording.events() if event.tenant_id == tenant]
        assert list(redecide(alone, RULES, recording.blobs[tenant])) == []
    # Nor on the order in which their entries are read.
    turned = sorted(recording.events(), key=lambda event: event.tenant_id, reverse=True)
    assert list(redecide(turned, RULES, recording.all_blobs())) == []


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
    seen = 0

    def faulty(*args: Any) -> list[Decision]:
        nonlocal seen
        seen += 1
        return [] if seen == 100 else true(*args)

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
    recording: Recording, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Decide], Decide]
) -> None:
    monkeypatch.setattr(handlers.decider, "decide", fault(decide))
    assert divergences(recording)


@pytest.mark.parametrize("forgotten", ["agent_results", "errors", "repaired", "routed_by", "data"])
def test_a_fault_in_the_folded_state_is_found(
    recording: Recording, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    empty: Mapping[str, Any] = {"agent_results": {}, "errors": (), "repaired": (), "routed_by": None}

    def forgetful(state: TaskState | None, event: AgentEvent) -> TaskState | None:
        after = evolve(state, event)
        return None if after is None else after.model_copy(update={forgotten: empty.get(forgotten)})

    monkeypatch.setattr(handlers.decider, "evolve", forgetful)
    found = divergences(recording)
    # The task's data is not decided on again after it was routed: a control that must not be found.
    assert bool(found) == (forgotten != "data")


def test_one_difference_does_not_make_all_that_follows_differ(recording: Recording) -> None:
    events = recording.events()
    place, routed = next((n, e) for n, e in enumerate(events) if isinstance(e.body, TaskRouted))
    assert isinstance(routed.body, TaskRouted)
    events[place] = replace(routed, body=routed.body.model_copy(update={"reasoning": "edited by hand"}))
    [divergence] = redecide(events, RULES, recording.all_blobs())
    assert divergence.recorded == events[place]
    assert divergence.now is not None
    assert divergence.now.body == routed.body
    # A decision that is missing from the log, and one that nobody made.
    missing = [e for e in recording.events() if e.id != routed.id]
    first = next(redecide(missing, RULES, recording.all_blobs()))
    assert (first.cause.id, first.recorded) == (routed.parent_event_id, None)
    ended = next(e for e in events if isinstance(e.body, TaskCompleted))
    invented = replace(ended, id=new_id(), body=TaskFailed(reason="invented"))
    found = list(redecide([*recording.events(), invented], RULES, recording.all_blobs()))
    assert [(d.recorded, d.now) for d in found] == [(invented, None)]


def test_a_changed_result_changes_the_decision(recording: Recording) -> None:
    events = recording.events()
    ids = {e.body.call_id for e in events if isinstance(e.body, AgentCompleted) and not e.body.handed_over}
    assert len(ids) >= 20
    edited = [
        replace(e, body=e.body.model_copy(update={"result": "edited"}))
        if isinstance(e.body, AgentCompleted) and not e.body.handed_over
        else e
        for e in events
    ]
    found = list(redecide(edited, RULES, recording.all_blobs()))
    assert {d.cause.body.call_id for d in found} == ids  # type: ignore[attr-defined]


def test_changed_rules_are_found_where_they_apply(recording: Recording) -> None:
    def greetings_to_triage(task: Task) -> str | None:
        return "triage" if task.type == "greeting" else None

    changed = Team(team.registry, HybridRouter([greetings_to_triage, *team.router.rules]))
    found = divergences(recording, Rules(changed, RULES.strictness))
    assert {d.cause.body.task_type for d in found} == {"greeting"}  # type: ignore[attr-defined]
    lenient = StrictnessConfig({"research_result": ValidationStrictness.LENIENT}, semantic=False)
    found = divergences(recording, Rules(team, lenient))
    assert {d.recorded.body.payload_type for d in found if d.recorded} == {"research_result"}  # type: ignore[attr-defined]
    nobody_else = Team([agent for agent in team.registry if agent.agent_id != "writer"], team.router)
    assert divergences(recording, Rules(nobody_else, RULES.strictness))


def test_a_task_whose_large_text_is_needed_cannot_be_decided_without_it(recording: Recording) -> None:
    with pytest.raises(KeyError):
        list(redecide(recording.events(), RULES, {}))
