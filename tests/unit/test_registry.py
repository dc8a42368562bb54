"""Which agents there are (row A2)."""

from typing import Any

import pytest
from pydantic import ValidationError

from handlers.agents import AgentCapability, AgentRegistration, BaseAgent
from handlers.registry import AgentRegistry
from headwater.testing import agent
from schemas.errors import InvalidInputError, NotFoundError

READ = AgentCapability(name="read", description="Reads.")


def registry() -> AgentRegistry:
    return AgentRegistry([
        agent("triage", capabilities=(READ,), tags=("front",), backup_agent_id="writer"),
        agent("writer", capabilities=(READ, AgentCapability(name="write", description="Writes.")), tags=("back",)),
        agent("clerk", backup_agent_id="nobody"),
    ])  # fmt: skip


def ids(agents: list[BaseAgent]) -> list[str]:
    return [one.agent_id for one in agents]


def test_agents_are_kept_in_the_order_they_were_registered() -> None:
    agents = registry()
    assert ids(list(agents)) == ["triage", "writer", "clerk"]
    assert len(agents) == 3
    assert "writer" in agents
    assert "nobody" not in agents
    assert agents.get("writer").registration.name == "writer"


@pytest.mark.parametrize("taken", ["writer", "user", "supervisor"])
def test_a_taken_or_reserved_id_is_an_error_and_changes_nothing(taken: str) -> None:
    agents = registry()
    before = list(agents)
    with pytest.raises(InvalidInputError, match=taken):
        agents.register(agent(taken))
    assert list(agents) == before


def test_unregister_and_an_unknown_id_is_an_error_that_names_those_there_are() -> None:
    agents = registry()
    agents.unregister("writer")
    assert ids(list(agents)) == ["triage", "clerk"]
    for call in (agents.unregister, agents.get, agents.get_backup):
        with pytest.raises(NotFoundError, match=r"'writer'.*triage, clerk"):
            call("writer")
    agents.register(agent("writer"))
    assert ids(list(agents)) == ["triage", "clerk", "writer"]


def test_backups() -> None:
    agents = registry()
    backup = agents.get_backup("triage")
    assert backup is agents.get("writer")
    assert agents.get_backup("writer") is None
    # One that names an agent that is not registered has none.
    assert agents.get_backup("clerk") is None


def test_find_by_capability_and_by_tag() -> None:
    agents = registry()
    assert ids(agents.find_by_capability("read")) == ["triage", "writer"]
    assert ids(agents.find_by_capability("write")) == ["writer"]
    assert agents.find_by_capability("Read") == []
    assert ids(agents.find_by_tag("front")) == ["triage"]
    assert agents.find_by_tag("middle") == []


def test_the_list_is_ready_for_a_prompt() -> None:
    assert registry().list_agents()[1] == {
        "agent_id": "writer",
        "name": "writer",
        "description": "does writer",
        "capabilities": ["read", "write"],
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent_id": "a b"},
        {"agent_id": "a:b"},
        {"backup_agent_id": "{a}"},
        {"max_concurrent_tasks": 0},
        {"capabilities": (7,)},
        {"colour": "red"},
    ],
)
def test_a_wrong_registration_is_refused(wrong: dict[str, Any]) -> None:
    fields = {"agent_id": "a", "name": "A", "description": "does"}
    assert AgentRegistration(**fields).max_concurrent_tasks == 5
    with pytest.raises(ValidationError):
        AgentRegistration(**fields | wrong)
