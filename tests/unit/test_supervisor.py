"""The supervisor with rules: routed, handed over, repaired, backed up, ended; given facts, when one comes, then what.

What it asks models is in test_supervisor_models.py.
"""

import random
from dataclasses import replace
from typing import Any

import pytest

from handlers.supervisor import WANTED, decide, evolve
from handlers.team import Team
from headwater.testing.given import Supervised, agent, rules, types_of
from schemas.bodies import (
    BODIES,
    DECISIONS,
    AgentCompleted,
    AgentFailed,
    AgentStarted,
    HandoffProposed,
    TaskSubmitted,
)
from schemas.handoff import HandoffProposal
from schemas.task import Task

CHAIN = ("user", "supervisor", "triage")


def desk(**more: Any) -> Supervised:
    """A task that a rule gave to triage; the researcher is its backup, the clerk has none."""
    team = (agent("triage", backup_agent_id="researcher"), agent("researcher"), agent("writer"), agent("clerk"))
    return Supervised(rules(*team, to="triage"), **more)


# Routing


def test_a_rule_routes_the_task_and_orders_a_call() -> None:
    task = desk(text="it broke", data={"n": 1}, task_type="bug")
    assert task.types == ["task.routed"]
    assert (task.body.agent_id, task.body.routed_by, task.body.confidence) == ("triage", "rules", 1.0)
    assert "rule" in task.body.reasoning
    assert task.then[0].call_chain == CHAIN
    call = task.call("triage")
    assert (call.call_id, call.call_chain, call.text, call.data) == (task.body.call_id, CHAIN, "it broke", {"n": 1})
    assert (call.kind, call.handoff, call.repair_reasons, call.task_type) == ("agent", None, (), "bug")
    assert call.ordered_by == task.log[-1].id


def test_rules_see_the_whole_task() -> None:
    seen: list[Task] = []

    def rule(task: Task) -> str:
        seen.append(task)
        return "triage"

    Supervised(rules(agent("triage"), to=rule), "hello", data={"a": 1}, task_type="bug")
    [task] = seen
    assert (task.tenant_id, task.session_id, task.task_id) == ("acme", "s1", "task-1")
    assert (task.type, task.text, task.data, task.priority) == ("bug", "hello", {"a": 1}, "normal")


def test_without_agents_the_task_fails_and_says_what_to_do() -> None:
    task = Supervised(rules(to="triage"))
    assert task.types == ["task.failed"]
    assert "--agents module:object" in task.body.reason
    assert task.state is None


def test_a_rule_that_names_an_unregistered_agent_fails_the_task_by_name() -> None:
    task = Supervised(rules(agent("triage"), to="accountant"))
    assert task.types == ["task.failed"]
    assert "'accountant', which is not registered" in task.body.reason


def test_a_task_that_comes_twice_is_routed_once() -> None:
    task = desk()
    state = task.state
    task.when(TaskSubmitted(task_type="task", text="please help"))
    assert task.types == []
    assert task.state == state


# Results


def test_a_result_completes_the_task() -> None:
    task = desk().completes("triage", {"answer": 42})
    assert task.types == ["task.completed"]
    assert (task.body.result, task.body.routed_by, task.body.decomposed) == ({"answer": 42}, "rules", False)
    assert task.body.agent_results == {"triage": {"answer": 42}}
    assert task.then[0].call_chain == CHAIN
    assert task.state is None


@pytest.mark.parametrize("result", [None, 0, "", [], {}, {"$blob": "0" * 64, "bytes": 9000}])
def test_any_result_is_a_result(result: Any) -> None:
    task = desk().completes("triage", result)
    assert task.types == ["task.completed"]
    assert task.body.result == result


# Handoffs


def test_a_handoff_is_accepted_and_its_target_called() -> None:
    task = desk().proposes("triage", "writer")
    assert task.types == ["handoff.accepted"]
    assert (task.body.source_agent_id, task.body.target_agent_id) == ("triage", "writer")
    assert (task.body.payload_type, task.body.strictness) == ("research_result", "strict")
    assert (task.body.checks, task.body.warnings) == (("structural",), ())
    call = task.call("writer")
    assert call.call_id == task.body.call_id
    assert call.call_chain == (*CHAIN, "writer")
    assert call.handoff is not None
    assert call.handoff.content == {"notes": "found it"}


def test_a_chain_of_handoffs_ends_with_every_agents_result() -> None:
    task = desk().proposes("triage", "researcher").proposes("researcher", "writer").completes("writer", "done")
    assert task.types == ["task.completed"]
    assert task.body.agent_results == {
        "triage": {"notes": "found it"},
        "researcher": {"notes": "found it"},
        "writer": "done",
    }
    assert task.then[0].call_chain == (*CHAIN, "researcher", "writer")


def test_a_low_confidence_is_a_warning_and_no_rejection() -> None:
    assert desk().proposes("triage", "writer", confidence=0.49).body.warnings == ("confidence 0.49 is under 0.5",)
    assert desk().proposes("triage", "writer", confidence=0.5).body.warnings == ()


def test_an_informing_handoff_is_lenient_and_still_has_to_be_well_formed() -> None:
    assert desk().proposes("triage", "writer", payload_type="status_update").body.strictness == "lenient"
    assert desk().proposes("triage", "nobody", payload_type="status_update").types == ["handoff.rejected"]


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"target_agent_id": "nobody"}, "'nobody' is not registered; there are: triage, researcher, writer, clerk"),
    ({"target_agent_id": "triage"}, "handing back would be a cycle"),
    ({"target_agent_id": "supervisor"}, "already in the call chain"),
    ({"source_agent_id": "writer"}, "'writer' is not 'triage', which proposed it"),
    ({"call_chain": ("user", "triage")}, "is not the recorded one"),
    ({"tenant_id": "globex!"}, "tenant id 'globex!'"),
    ({"confidence": 7.0}, "confidence"),
    ({"payload_type": ""}, "payload_type"),
]


@pytest.mark.parametrize(("wrong", "said"), MALFORMED)
def test_a_malformed_handoff_goes_back_to_its_sender_once_with_the_reasons(wrong: dict[str, Any], said: str) -> None:
    task = desk().proposes("triage", "writer", **wrong)
    assert task.types == ["handoff.rejected"]
    assert (task.body.returned_to, task.body.failed_check) == ("sender", "structural")
    assert said in " ".join(task.body.reasons)
    assert task.then[0].call_chain == CHAIN
    again = task.call("triage")
    assert again.call_id == task.body.call_id
    assert again.repair_reasons == task.body.reasons
    # Repaired, it goes on as if nothing had been wrong.
    task.proposes("triage", "writer").completes("writer", "done")
    assert task.types == ["task.completed"]


def test_a_handoff_in_another_tenants_name_is_rejected() -> None:
    task = desk().proposes("triage", "writer", tenant_id="globex")
    assert task.types == ["handoff.rejected"]
    assert "globex" in " ".join(task.body.reasons)


@pytest.mark.parametrize(("wrong", "said"), MALFORMED)
def test_a_second_malformed_handoff_goes_to_the_supervisor_and_the_backup(wrong: dict[str, Any], said: str) -> None:
    task = desk().proposes("triage", "writer", **wrong).proposes("triage", "writer", **wrong)
    assert task.types == ["handoff.rejected", "task.routed"]
    rejected, routed = task.bodies
    assert (rejected.returned_to, rejected.call_id) == ("supervisor", None)  # type: ignore[attr-defined]
    assert (routed.agent_id, routed.routed_by) == ("researcher", "backup")  # type: ignore[attr-defined]
    assert said in routed.reasoning  # type: ignore[attr-defined]
    assert task.call().agent_id == "researcher"


def test_a_stubborn_sender_without_a_backup_fails_the_task_with_the_reasons() -> None:
    task = desk().proposes("triage", "clerk").proposes("clerk", "nobody").proposes("clerk", "nobody")
    assert task.types == ["handoff.rejected", "task.failed"]
    failed: Any = task.bodies[1]
    assert "clerk: handoff rejected: " in failed.reason
    assert [error.agent_id for error in failed.errors] == ["clerk"]
    assert failed.agent_results == {"triage": {"notes": "found it"}}


def test_each_agent_has_its_own_chance_to_repair() -> None:
    task = desk().proposes("triage", "nobody").proposes("triage", "researcher").proposes("researcher", "nobody")
    assert task.body.returned_to == "sender"


# Failures


def test_a_failed_agents_backup_gets_the_task_once() -> None:
    task = desk(text="it broke").fails("triage", "no idea")
    assert task.types == ["task.routed"]
    assert (task.body.agent_id, task.body.routed_by) == ("researcher", "backup")
    assert task.body.reasoning == "triage failed: ValueError: no idea"
    # The one that failed is not in the chain: it worked on nothing that goes on.
    assert task.then[0].call_chain == ("user", "supervisor", "researcher")
    assert task.call("researcher").text == "it broke"
    task.completes("researcher", "done")
    assert (task.types, task.body.routed_by) == (["task.completed"], "backup")
    assert task.body.agent_results == {"researcher": "done"}


def test_when_the_backup_fails_too_the_task_fails_with_both_reasons() -> None:
    task = desk().fails("triage", "no idea").fails("researcher", "me neither")
    assert task.types == ["task.failed"]
    assert task.body.reason == "triage: ValueError: no idea; researcher: ValueError: me neither"
    assert [e.agent_id for e in task.body.errors] == ["triage", "researcher"]
    assert task.state is None


def test_without_a_backup_the_task_fails_at_once() -> None:
    task = desk().proposes("triage", "clerk").fails("clerk", "closed")
    assert task.types == ["task.failed"]
    assert task.body.reason == "clerk: ValueError: closed"
    assert task.body.agent_results == {"triage": {"notes": "found it"}}


def test_a_backup_gets_the_handoff_that_the_failed_agent_had() -> None:
    team = (agent("triage"), agent("writer", backup_agent_id="clerk"), agent("clerk"))
    task = Supervised(rules(*team, to="triage")).proposes("triage", "writer").fails("writer")
    assert task.body.agent_id == "clerk"
    call = task.call("clerk")
    assert call.handoff is not None
    assert call.handoff.content == {"notes": "found it"}
    assert call.call_chain == (*CHAIN, "clerk")


def test_a_backup_that_worked_on_the_task_before_is_none() -> None:
    team = (agent("triage"), agent("writer", backup_agent_id="triage"))
    task = Supervised(rules(*team, to="triage")).proposes("triage", "writer").fails("writer")
    assert task.types == ["task.failed"]


def test_an_agent_that_left_the_team_has_no_backup_and_breaks_nothing() -> None:
    task = desk()
    left = replace(task.rules, team=Team([agent("researcher")], task.rules.team.router))
    task.rules = left
    assert task.fails("triage").types == ["task.failed"]


# What leads to nothing


def _facts(call_id: str) -> list[Any]:
    proposal = HandoffProposal(
        source_agent_id="triage",
        target_agent_id="writer",
        tenant_id="acme",
        payload_type="memo",
        content=1,
        confidence=1,
        call_chain=CHAIN,
    )
    more: dict[str, Any] = {"agent_id": "triage", "call_id": call_id, "delivery": 1}
    return [
        AgentCompleted(**more, result="again", duration_us=1),
        AgentFailed(**more, error_class="E", error="again", duration_us=1),
        HandoffProposed(call_id=call_id, payload=proposal),
    ]


@pytest.mark.parametrize("number", range(3))
def test_a_fact_about_a_call_that_is_not_open_leads_to_nothing(number: int) -> None:
    task = desk()
    state = task.state
    assert task.when(_facts("no-such-call")[number]).types == []
    assert task.state == state


@pytest.mark.parametrize("number", range(3))
def test_a_fact_after_the_end_leads_to_nothing(number: int) -> None:
    task = desk()
    call_id = task.call().call_id
    task.completes("triage", "done")
    assert task.when(_facts(call_id)[number]).types == []
    assert task.state is None


@pytest.mark.parametrize("number", range(3))
def test_a_fact_of_a_task_that_was_never_submitted_leads_to_nothing(number: int) -> None:
    task = desk()
    event = replace(task.log[0], body=_facts("c")[number])
    assert decide(None, event, task.rules) == []
    assert evolve(None, event) is None


def test_a_handed_over_completion_waits_for_its_proposal() -> None:
    task = desk()
    call_id = task.call().call_id
    body = AgentCompleted(agent_id="triage", call_id=call_id, delivery=1, handed_over=True, duration_us=1)
    assert task.when(body).types == []
    assert task.call().call_id == call_id


def test_what_agents_report_meanwhile_changes_nothing() -> None:
    task = desk()
    state = task.state
    body = AgentStarted(agent_id="triage", call_id=task.call().call_id, delivery=1, worker="w")
    assert task.when(body).types == []
    assert task.state == state


# Invariants


def test_deciding_is_pure() -> None:
    task = desk()
    state, event = task.state, task.log[0]
    for _ in range(3):
        assert decide(None, event, task.rules) == decide(None, event, task.rules)
    assert task.state == state


def test_what_is_wanted_is_no_decision() -> None:
    assert not set(WANTED) & DECISIONS
    assert set(WANTED) <= set(BODIES)


@pytest.mark.parametrize("seed", range(60))
def test_any_story_ends_exactly_once_and_orders_each_call_once(seed: int) -> None:
    draw = random.Random(seed)
    task = desk()
    steps = 0
    while task.state is not None:
        steps += 1
        assert steps < 40, types_of(task.log)
        name = task.call().agent_id
        match draw.randrange(4):
            case 0:
                task.completes(name, steps)
            case 1:
                task.fails(name)
            case _:
                task.proposes(name, draw.choice(["triage", "researcher", "writer", "clerk", "nobody"]))
        assert task.then
    assert sum(event.body.terminal for event in task.log) == 1
    assert task.log[-1].body.terminal
    ids = [event.id for event in task.log]
    assert len(set(ids)) == len(ids)
    ordered = [event.body.call_id for event in task.log if event.body.decision and getattr(event.body, "call_id", None)]  # type: ignore[attr-defined]
    assert len(set(ordered)) == len(ordered)
    for event in task.log:
        assert len(set(event.call_chain)) == len(event.call_chain)
