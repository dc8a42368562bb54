"""Agents: what a team's author writes (contract row A1)."""

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import words_of
from schemas.ids import AgentId
from schemas.task import Task

if TYPE_CHECKING:
    from handlers.context import TaskContext

logger = structlog.get_logger(__name__)


class AgentStatus(StrEnum):
    """What an agent does in this process: BUSY while any run is on, ERROR when the last run that ended failed."""

    IDLE = "idle"
    BUSY = "busy"
    ERROR = "error"


class AgentCapability(BaseModel):
    """Something an agent can do, said so that a person or a model can choose by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str
    input_schema: type[BaseModel] | None = None
    """Enforced on the handoff's content, or on the task's data where there is no handoff."""
    output_schema: type[BaseModel] | None = None
    """Enforced on the result; a handoff is judged by its own rules."""


class AgentRegistration(BaseModel):
    """How an agent presents itself to the supervisor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: AgentId
    name: str
    description: str
    capabilities: tuple[AgentCapability, ...] = ()
    backup_agent_id: AgentId | None = None
    """Gets the task, once, when this agent fails."""
    tags: tuple[str, ...] = ()
    max_concurrent_tasks: int = Field(default=5, ge=1)
    """Runs of this agent at the same time, over all workers."""


class BaseAgent(ABC):
    """Base of every agent: set `registration` and write `execute`.

    An agent may be run again after a crash. What it gets through `context` (LLM answers, steps) is then the recorded
    result, so an agent is safe as long as its other effects go through `context.step`.
    """

    registration: ClassVar[AgentRegistration]

    def __init__(self) -> None:
        self._running = 0
        self._failed = False

    @abstractmethod
    async def execute(self, task: Task, context: "TaskContext") -> Any:
        """Do the work. Return a JSON-able result, or `context.hand_over(…)`. An exception fails the run."""

    @property
    def agent_id(self) -> str:
        """The id it is registered under."""
        return self.registration.agent_id

    @property
    def status(self) -> AgentStatus:
        """IDLE, BUSY or ERROR, in this process."""
        if self._running:
            return AgentStatus.BUSY
        return AgentStatus.ERROR if self._failed else AgentStatus.IDLE

    async def invoke(self, task: Task, context: "TaskContext") -> Any:
        """Run `execute` with status and logs around it. Raises what `execute` raises."""
        self._running += 1
        try:
            result = await self.execute(task, context)
        except Exception as error:
            self._failed = True
            logger.info("agent_failed", agent=self.agent_id, error=f"{type(error).__name__}: {words_of(error)}")
            raise
        else:
            self._failed = False
            return result
        finally:
            self._running -= 1
