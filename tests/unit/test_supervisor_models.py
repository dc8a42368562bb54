"""Where the supervisor needs a model: LLM routing, decomposition, semantic checks, synthesis; and cancellation."""

from typing import Any

import pytest

from handlers.strictness import FailPolicy, StrictnessConfig, ValidationStrictness
from headwater.testing import Supervised, agent, rules
from schemas.task import Task

SEMANTIC = StrictnessConfig()
STEPS = "Please:\n1. find the facts\n2. write them up"


def pair(**more: Any) -> Any:
    return rules(agent("researcher"), agent("writer"), **more)


# LLM routing (A3)


def test_without_a_matching_rule_a_model_is_asked_and_its_choice_is_routed() -> None:
    task = Supervised(pair())
    assert (task.body.type, task.body.question) == ("supervisor.asked", "route")
    task.answers({"agent_id": "writer", "confidence": 0.8, "reasoning": "it writes"})
    assert (task.body.agent_id, task.body.routed_by, task.body.reasoning) == ("writer", "llm", "it writes")
    assert task.then[0].call_chain == ("user", "supervisor", "writer")
    task.completes("writer", "done")
    assert (task.body.type, task.body.routed_by) == ("task.completed", "llm")


@pytest.mark.parametrize(("said", "kept"), [(1.7, 1.0), (-3, 0.0), (0.25, 0.25)])
def test_a_models_confidence_is_clamped(said: float, kept: float) -> None:
    task = Supervised(pair()).answers({"agent_id": "writer", "confidence": said})
    assert task.body.confidence == kept


def test_a_rule_that_matches_asks_no_model() -> None:
    task = Supervised(pair(to="writer"))
    assert (task.body.type, task.body.routed_by, task.body.confidence) == ("task.routed", "rules", 1.0)


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (None, "ProviderError: all models are down", "all models are down"),
        ({"agent_id": "nobody"}, None, "'nobody', which is not registered"),
        ({"agent": "writer"}, None, "agent_id"),
        ("writer", None, "cannot be used"),
    ],
)
def test_a_bad_answer_never_becomes_some_agent(answer: Any, error: str | None, why: str) -> None:
    task = Supervised(pair()).answers(answer, error=error)
    assert task.body.type == "task.failed"
    assert why in task.body.reason


# Decomposition (A4)


def split(*depends: tuple[int, ...]) -> dict[str, Any]:
    return {"subtasks": [{"description": f"step {n}", "depends_on": list(d)} for n, d in enumerate(depends)]}


def by_text(task: Task) -> str | None:
    return "writer" if "2" in task.text else "researcher"


def test_independent_steps_run_in_parallel_and_their_results_are_synthesised() -> None:
    task = Supervised(pair(to=by_text), STEPS)
    assert task.body.question == "decompose"
    task.answers(split((), ()))
    assert task.types == ["task.decomposed", "task.routed", "task.routed"]
    assert [body.subtask for body in task.bodies[1:]] == [0, 1]  # type: ignore[attr-defined]
    assert task.call(subtask=1).text == "step 1"
    assert task.call(subtask=1).whole_text == STEPS
    task.completes("researcher", "facts", subtask=1)
    assert task.then == []
    task.completes("researcher", "text", subtask=0)
    assert task.body.question == "synthesize"
    call = task.call("supervisor")
    assert [(r.subtask, r.result) for r in call.results] == [(0, "text"), (1, "facts")]
    task.answers({"answer": "all of it", "sources": [1]})
    assert task.body.type == "task.completed"
    assert task.body.decomposed
    assert task.body.result == {
        "answer": "all of it",
        "sources": [{"subtask": 1, "agent_id": "researcher", "description": "step 1"}],
    }
    assert task.body.agent_results == {"researcher#0": "text", "researcher#1": "facts"}
    assert task.then[0].call_chain == ("user", "supervisor", "researcher")


def test_a_dependent_step_waits_and_gets_its_prerequisites_results() -> None:
    task = Supervised(pair(to=by_text), STEPS).answers(split((), (), (0, 1)))
    assert [body.subtask for body in task.bodies if body.type == "task.routed"] == [0, 1]  # type: ignore[attr-defined]
    task.completes("researcher", "a", subtask=0)
    assert task.then == []
    task.completes("researcher", "b", subtask=1)
    assert (task.body.type, task.body.subtask, task.body.agent_id) == ("task.routed", 2, "writer")
    assert [(r.subtask, r.agent_id, r.result) for r in task.call("writer").results] == [
        (0, "researcher", "a"),
        (1, "researcher", "b"),
    ]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (split((1,), (2,), (0,)), "0 → 1 → 2 → 0"),
        (split((0,), ()), "0 → 0"),
        (split((), (7,)), "subtask 1 depends on subtask 7, which does not exist"),
        ({"subtasks": []}, "subtasks"),
        (split(*[()] * 21), "21 subtasks"),
    ],
)
def test_a_split_that_makes_no_sense_is_an_error_that_names_it(answer: Any, named: str) -> None:
    task = Supervised(pair(to=by_text), STEPS).answers(answer)
    assert task.body.type == "task.failed"
    assert named in task.body.reason


def test_a_task_that_needs_no_splitting_after_all_is_routed_whole() -> None:
    task = Supervised(pair(to=by_text), STEPS).answers(split(()))
    assert (task.body.type, task.body.subtask) == ("task.routed", None)


def test_steps_without_a_rule_are_routed_by_a_model_each() -> None:
    task = Supervised(pair(), STEPS).answers(split((), ()))
    assert task.types == ["task.decomposed", "supervisor.asked", "supervisor.asked"]
    task.answers({"agent_id": "writer"}, subtask=1)
    assert (task.body.agent_id, task.body.subtask, task.body.routed_by) == ("writer", 1, "llm")


def test_a_failed_step_fails_the_task_after_its_backup_with_both_reasons() -> None:
    team = rules(agent("a", backup_agent_id="b"), agent("b"), to="a")
    task = Supervised(team, STEPS).answers(split((), ()))
    task.fails("a", "first", subtask=0)
    assert (task.body.type, task.body.agent_id, task.body.subtask) == ("task.routed", "b", 0)
    task.fails("b", "second", subtask=0)
    assert task.body.type == "task.failed"
    assert task.body.reason == "subtask 0: a: ValueError: first; b: ValueError: second"
    assert task.body.decomposed


def test_a_synthesis_without_an_answer_fails_the_task_with_the_reason() -> None:
    task = Supervised(pair(to=by_text), STEPS).answers(split((), ()))
    task.completes("researcher", 1, subtask=0).completes("researcher", 2, subtask=1)
    task.answers(error="ProviderError: down")
    assert "down" in task.body.reason
    assert task.body.agent_results == {"researcher#0": 1, "researcher#1": 2}


@pytest.mark.parametrize(
    ("text", "split_it"),
    [
        ("Please help me with my invoice.", False),
        ("1. read it\n2. answer it", True),
        ("- one\n- two\n- three", True),
        ("- one\n- two", False),
        ("My order from 3. October did not arrive, the number is 12.", False),
        ("Step 1: read\nStep 2: write", True),
        ("First " + "word " * 90 + "then do that, after that do this, finally stop", True),
        ("word " * 500, False),
    ],
)
def test_what_counts_as_complex(text: str, split_it: bool) -> None:
    assert (Supervised(pair(to="writer"), text).body.type == "supervisor.asked") is split_it


# Semantic checks (C3)


def handed_over(strictness: StrictnessConfig = SEMANTIC, **more: Any) -> Supervised:
    return Supervised(pair(to="researcher", strictness=strictness)).proposes("researcher", "writer", **more)


def test_a_strict_handoff_is_checked_by_a_model_before_it_goes_on() -> None:
    task = handed_over()
    assert (task.body.type, task.body.question) == ("supervisor.asked", "check")
    call = task.call("supervisor")
    assert call.handoff is not None
    assert (call.handoff.content, call.given) == ({"notes": "found it"}, ("1-1",))
    task.answers({"grounded": True})
    assert (task.body.type, task.body.verification, task.body.checks) == (
        "handoff.accepted",
        "verified",
        ("structural", "semantic"),
    )
    assert task.call("writer").call_chain == ("user", "supervisor", "researcher", "writer")


def test_an_ungrounded_handoff_goes_back_once_and_then_to_the_supervisor() -> None:
    task = handed_over().answers({"grounded": False, "reasons": ["the price is not in the context"]})
    assert (task.body.type, task.body.returned_to, task.body.failed_check) == ("handoff.rejected", "sender", "semantic")
    assert task.call("researcher").repair_reasons == ("the price is not in the context",)
    task.proposes("researcher", "writer").answers({"grounded": False, "reasons": ["still not"]})
    assert task.types == ["handoff.rejected", "task.failed"]
    assert "still not" in task.bodies[1].reason  # type: ignore[attr-defined]


def test_a_repaired_handoff_goes_on() -> None:
    task = handed_over().answers({"grounded": False, "reasons": ["no"]})
    task.proposes("researcher", "writer", content="better").answers({"grounded": True})
    assert task.body.type == "handoff.accepted"


@pytest.mark.parametrize("answer", [{"error": "ProviderError: down"}, {"answer": {"verdict": "fine"}}])
def test_a_check_that_cannot_run_never_claims_to_be_verified(answer: dict[str, Any]) -> None:
    task = handed_over().answers(answer.get("answer"), error=answer.get("error"))
    assert (task.body.type, task.body.verification, task.body.checks) == (
        "handoff.accepted",
        "unverified",
        ("structural",),
    )
    assert "could not run" in task.body.warnings[0]


def test_fail_closed_stops_what_cannot_be_checked() -> None:
    closed = StrictnessConfig(on_unavailable={"research_result": FailPolicy.FAIL_CLOSED})
    task = handed_over(closed).answers(error="ProviderError: down")
    assert task.types == ["handoff.rejected", "task.failed"]
    rejected: Any = task.bodies[0]
    assert (rejected.verification, rejected.returned_to) == ("unverified", "supervisor")
    assert handed_over(closed, payload_type="deal_data").answers(error="x").body.type == "handoff.accepted"


def test_a_lenient_handoff_is_not_checked_by_a_model() -> None:
    task = handed_over(payload_type="status_update")
    assert (task.body.type, task.body.verification, task.body.strictness) == (
        "handoff.accepted",
        "not_required",
        "lenient",
    )


def test_strictness_can_differ_by_tenant() -> None:
    config = StrictnessConfig(tenants={"acme": {"research_result": ValidationStrictness.LENIENT}})
    assert handed_over(config).body.type == "handoff.accepted"
    other = Supervised(pair(to="researcher", strictness=config), tenant="globex").proposes("researcher", "writer")
    assert other.body.type == "supervisor.asked"


def test_a_malformed_handoff_asks_no_model() -> None:
    task = handed_over(target_agent_id="nobody")
    assert (task.body.type, task.body.failed_check) == ("handoff.rejected", "structural")


# Cancellation


def test_a_cancelled_task_ends_once_with_what_there_was() -> None:
    task = Supervised(pair(to=by_text), STEPS).answers(split((), (0,)))
    task.completes("researcher", "facts", subtask=0)
    task.cancel("too slow")
    assert (task.body.type, task.body.reason, task.body.agent_results) == (
        "task.cancelled",
        "too slow",
        {"researcher#0": "facts"},
    )
    assert task.state is None
    assert task.cancel().then == []
