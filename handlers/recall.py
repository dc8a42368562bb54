"""What agents can recall, as ports: the composition root fills them with the projections' read models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from handlers.embedders import Embedder
from handlers.tokens import TokenCounters
from schemas.content import Json
from schemas.errors import ConfigurationError
from schemas.memory import MemoryEntry
from schemas.session import SessionMessage


class SessionReader(Protocol):
    """The sessions, with everything that the log says now. Raises `UnavailableError` when that cannot be had."""

    async def before_task(self, tenant_id: str, session_id: str, task_id: str, *, limit: int) -> list[SessionMessage]:
        """The newest `limit` messages that the session had when a task was submitted, oldest first."""
        ...

    async def state(self, tenant_id: str, session_id: str) -> dict[str, Json]:
        """The values that agents set in a session since it was last cleared."""
        ...


class MemoryReader(Protocol):
    """The memories, with everything that the log says now. Raises `UnavailableError` when that cannot be had."""

    async def is_available(self) -> bool:
        """Can memories be searched? Not without pgvector."""
        ...

    async def search_vector(
        self, tenant_id: str, vector: Sequence[float], *, embedder: str, k: int, agent_id: str | None = None
    ) -> list[MemoryEntry]:
        """The `k` memories of a tenant nearest to `vector`, among those that the same embedder made; best first."""
        ...


@dataclass(frozen=True, slots=True)
class Recall:
    """Everything behind `context.session`, `context.memory` and `context.compile`.

    `memories` and `embedder` are None where the team runs without long-term memory.
    """

    sessions: SessionReader
    counters: TokenCounters
    memories: MemoryReader | None = None
    embedder: Embedder | None = None


class NoSessions:
    """Stands in where a worker was given no database."""

    async def before_task(self, tenant_id: str, session_id: str, task_id: str, *, limit: int) -> list[SessionMessage]:
        """Raises `ConfigurationError`."""
        raise ConfigurationError("this worker has no read models, so there is no session to read: set DATABASE_URL")

    async def state(self, tenant_id: str, session_id: str) -> dict[str, Json]:
        """Raises `ConfigurationError`."""
        raise ConfigurationError("this worker has no read models, so there is no session to read: set DATABASE_URL")
