"""A team: the agents, the routing and the rules that belong together. `--agents module:object` names one."""

from collections.abc import Iterable

from handlers.agents import BaseAgent
from handlers.decomposition import Decomposes, is_complex
from handlers.registry import AgentRegistry
from handlers.router import HybridRouter
from handlers.strictness import StrictnessConfig


class Team:
    """Agents, a router, how closely handoffs are checked, and which tasks are split. Nothing happens until it is run.

    `decomposes` says of a task whether it is split into subtasks; `handlers.decomposition.never` splits none.
    """

    def __init__(
        self,
        agents: Iterable[BaseAgent] = (),
        router: HybridRouter | None = None,
        *,
        strictness: StrictnessConfig | None = None,
        decomposes: Decomposes = is_complex,
    ) -> None:
        self.registry = AgentRegistry(agents)
        self.router = router or HybridRouter()
        self.strictness = strictness or StrictnessConfig()
        self.decomposes = decomposes
