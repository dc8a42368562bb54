"""The examples run, as their readers would run them in a test of their own."""

import pytest

from examples.custom_router.agents import team as desks
from examples.minimal.agents import team as minimal
from examples.research_team.agents import team as research
from headwater.testing import TeamRunner

GROUNDED = {"system": "check a handoff", "json": {"grounded": True}}


def test_a_minimal_agent(headwater: TeamRunner) -> None:
    run = headwater.run_task(minimal, "What is a stream?", answers=[{"system": "one sentence", "answer": "A log."}])
    assert run.result == "A log."
    assert run.cost_usd > 0


def test_a_team_hands_over_what_it_found(headwater: TeamRunner) -> None:
    answers = [GROUNDED, {"system": "Answer from the facts", "user": "in the order", "answer": "In order."}]
    run = headwater.run_task(research, "How does redis keep a stream?", answers=answers)
    assert run.result == {"text": "In order.", "facts": 1}
    assert run.outcome.call_chain == ("user", "supervisor", "researcher", "writer")


def test_a_team_splits_a_list_of_jobs(headwater: TeamRunner) -> None:
    steps = [{"description": "redis?"}, {"description": "Sum up.", "depends_on": [0]}]
    answers = [
        GROUNDED,
        {"system": "Split the task", "json": {"subtasks": steps}},
        {"system": "Put the results", "json": {"answer": "Both done.", "sources": [0, 1]}},
        {"system": "Answer from the facts", "answer": "Written."},
    ]
    run = headwater.run_task(research, "Please:\n1. look into redis\n2. sum up", answers=answers)
    assert run.result["answer"] == "Both done."
    assert set(run.outcome.agent_results) == {"researcher#0", "writer#0", "researcher#1", "writer#1"}


def test_a_model_chooses_where_no_rule_does(headwater: TeamRunner) -> None:
    answers = [{"system": "Choose the one agent", "json": {"agent_id": "editor"}}, {"system": "briefly", "answer": "x"}]
    run = headwater.run_task(research, "Shorten this.", answers=answers)
    assert run.outcome.routed_by == "llm"
    assert run.result == {"text": "x", "facts": 0}


@pytest.mark.parametrize(
    ("tenant", "text", "desk"),
    [
        ("acme", "the bike is broken", "desk-en"),
        ("acme", "ich kann nicht", "desk-de"),
        ("berlin-bikes", "hi", "desk-de"),
    ],
)
def test_a_router_of_ones_own(headwater: TeamRunner, tenant: str, text: str, desk: str) -> None:
    run = headwater.run_task(desks, text, tenant=tenant)
    assert run.outcome.call_chain[-1] == desk
