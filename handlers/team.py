"""A team: the agents and the routing that belong together. `--agents module:object` names one."""

from collections.abc import Iterable

from handlers.agents import BaseAgent
from handlers.registry import AgentRegistry
from handlers.router import HybridRouter


class Team:
    """Agents and a router. Nothing happens until a worker runs it."""

    def __init__(self, agents: Iterable[BaseAgent] = (), router: HybridRouter | None = None) -> None:
        self.registry = AgentRegistry(agents)
        self.router = router or HybridRouter()
