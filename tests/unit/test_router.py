"""Routing rules: in the order they were added, the first that names an agent wins (row A3)."""

from collections.abc import Callable
from typing import Any

import pytest
import structlog

from handlers.router import HybridRouter, RoutingDecision
from schemas.task import Task

TASK = Task(tenant_id="acme", session_id="s1", task_id="t1", type="bug", text="it broke", data={"n": 1})


def names(agent_id: Any, why: str = "") -> Callable[[Task], str | None]:
    def rule(task: Task) -> str | None:
        found: str | None = agent_id
        return found

    rule.__doc__ = why
    return rule


def raises(task: Task) -> str | None:
    """Never works."""
    raise LookupError(f"nothing about {task.task_id}")


def test_the_first_rule_that_names_an_agent_wins_and_says_why() -> None:
    def bugs(task: Task) -> str | None:
        """Bugs go to the engineer.

        More about it.
        """
        return "engineer" if task.type == "bug" else None

    router = HybridRouter([names(None), bugs, names("writer")])
    assert router.match(TASK) == RoutingDecision(
        agent_id="engineer", routed_by="rules", confidence=1.0, reasoning="rule bugs: Bugs go to the engineer."
    )
    other = router.match(TASK.model_copy(update={"type": "howto"}))
    assert other is not None
    assert (other.agent_id, other.reasoning) == ("writer", "rule rule")


def test_rules_are_asked_in_the_order_they_were_added_and_no_further_than_needed() -> None:
    asked: list[int] = []

    def rule(number: int, agent_id: str | None) -> Callable[[Task], str | None]:
        def ask(task: Task) -> str | None:
            asked.append(number)
            return agent_id

        return ask

    router = HybridRouter()
    for number, agent_id in enumerate([None, None, "a", "b"]):
        router.add_rule(rule(number, agent_id))
    found = router.match(TASK)
    assert found is not None
    assert (found.agent_id, asked) == ("a", [0, 1, 2])


def test_no_match_is_none_and_nobody_silently_gets_the_task() -> None:
    assert HybridRouter().match(TASK) is None
    assert HybridRouter([names(None)] * 3).match(TASK) is None


@pytest.mark.parametrize("bad", [raises, names(7), names("no such agent!"), names(""), names(["a"]), names(True)])
def test_a_rule_that_raises_or_names_no_id_is_logged_and_skipped(bad: Callable[[Task], str | None]) -> None:
    with structlog.testing.capture_logs() as logs:
        found = HybridRouter([bad, names("writer")]).match(TASK)
        assert HybridRouter([bad]).match(TASK) is None
    assert found is not None
    assert found.agent_id == "writer"
    assert [(entry["event"], entry["rule"], entry["task"]) for entry in logs] == [
        ("rule_failed", bad.__name__, "t1"),
    ] * 2
    assert logs[0]["error"]


def test_a_rule_may_be_any_callable() -> None:
    class Rule:
        """Everything."""

        def __call__(self, task: Task) -> str:
            return "writer"

    found = HybridRouter([Rule()]).match(TASK)
    assert found is not None
    assert found.reasoning == "rule Rule: Everything."
    lambda_found = HybridRouter([lambda task: "writer"]).match(TASK)
    assert lambda_found is not None
    assert lambda_found.agent_id == "writer"
