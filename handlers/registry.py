"""Which agents there are (contract row A2)."""

from collections.abc import Iterable, Iterator
from typing import Any

from handlers.agents import BaseAgent
from schemas.errors import InvalidInputError, NotFoundError

RESERVED = frozenset({"user", "supervisor"})
"""Ids that stand in call chains for those who are no agents."""


class AgentRegistry:
    """The agents of a team, by id, in the order they were registered."""

    def __init__(self, agents: Iterable[BaseAgent] = ()) -> None:
        self._agents: dict[str, BaseAgent] = {}
        for agent in agents:
            self.register(agent)

    def register(self, agent: BaseAgent) -> None:
        """Add an agent. Raises `InvalidInputError` if its id is taken, or reserved for the user or the supervisor."""
        if agent.agent_id in RESERVED:
            raise InvalidInputError(f"agent id {agent.agent_id!r} is reserved: choose another")
        if agent.agent_id in self._agents:
            raise InvalidInputError(f"agent {agent.agent_id!r} is registered already: ids are unique in a team")
        self._agents[agent.agent_id] = agent

    def unregister(self, agent_id: str) -> None:
        """Remove an agent. Raises `NotFoundError` if there is none of that id."""
        self.get(agent_id)
        del self._agents[agent_id]

    def get(self, agent_id: str) -> BaseAgent:
        """The agent of that id. Raises `NotFoundError`, naming those there are."""
        try:
            return self._agents[agent_id]
        except KeyError:
            raise NotFoundError(f"no agent {agent_id!r} is registered; there are: {', '.join(self._agents)}") from None

    def get_backup(self, agent_id: str) -> BaseAgent | None:
        """The agent that takes over when `agent_id` fails, or None if it names none that is registered."""
        return self._agents.get(self.get(agent_id).registration.backup_agent_id or "")

    def find_by_capability(self, name: str) -> list[BaseAgent]:
        """Agents with a capability of that name."""
        return [a for a in self if any(c.name == name for c in a.registration.capabilities)]

    def find_by_tag(self, tag: str) -> list[BaseAgent]:
        """Agents with that tag."""
        return [a for a in self if tag in a.registration.tags]

    def list_agents(self) -> list[dict[str, Any]]:
        """Id, name, description and capability names of every agent, ready to put in an LLM prompt."""
        return [
            {
                "agent_id": a.agent_id,
                "name": a.registration.name,
                "description": a.registration.description,
                "capabilities": [c.name for c in a.registration.capabilities],
            }
            for a in self
        ]

    def __contains__(self, agent_id: object) -> bool:
        return agent_id in self._agents

    def __iter__(self) -> Iterator[BaseAgent]:
        return iter(self._agents.values())

    def __len__(self) -> int:
        return len(self._agents)


_process_registry = AgentRegistry()


def get_agent_registry() -> AgentRegistry:
    """The registry of this process, for code that registers its agents one by one. `Team()` uses one of its own."""
    return _process_registry
