"""A connection to a running Headwater, for producers and for the command line."""

from types import TracebackType
from typing import Any

from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections import queries, reading
from projections.cost_tracker import CostTracker
from projections.db import Pool, connect
from projections.langfuse_costs import LangfuseCosts
from projections.session_store import SessionStore
from schemas.task import Accepted, NewTask, TaskOutcome
from streams.bus import TenantEventBus
from streams.connection import Streams, open_streams
from streams.outcomes import Outcomes

HOUR_MS = 60 * 60 * 1000
CATCH_UP_S = 5.0


class Headwater:
    """`async with Headwater(settings, endpoints) as hw: outcome = await hw.run(NewTask(…))`."""

    def __init__(self, settings: Settings, endpoints: Endpoints) -> None:
        self._settings = settings
        self._endpoints = endpoints
        self.streams: Streams
        self.pool: Pool
        self.outcomes: Outcomes

    async def __aenter__(self) -> "Headwater":
        self.streams = await open_streams(self._endpoints.redis_url, shards=self._settings.shards)
        try:
            self.pool = await connect(self._endpoints.database_url, max_size=4)
        except BaseException:
            await self.streams.close()
            raise
        self.outcomes = Outcomes(self.streams)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.outcomes.close()
        await self.pool.close()
        await self.streams.close()

    def bus(self, tenant_id: str) -> TenantEventBus:
        """The door to one tenant's log."""
        return TenantEventBus(self.streams, tenant_id, idempotency_ms=self._settings.idempotency_hours * HOUR_MS)

    async def submit(self, task: NewTask) -> Accepted:
        """Accept a task. Raises `IdempotencyConflictError` when its key was used for another one."""
        return await self.bus(task.tenant).submit(task)

    async def run(self, task: NewTask) -> TaskOutcome:
        """Submit a task and wait for its outcome; bound it with `asyncio.timeout`."""
        return await self.outcomes.submit_and_wait(self.bus(task.tenant), task)

    async def caught_up(self, tenant_id: str, *, timeout_s: float = CATCH_UP_S) -> bool:
        """Wait until the projections have read what is in the tenant's log now. False: they are still behind."""
        return await reading.caught_up(self.pool, self.streams.log, tenant_id, timeout_s=timeout_s)

    @property
    def costs(self) -> CostTracker:
        """What tenants and agents cost, from the ledger; with Langfuse as a second opinion where it is set up."""
        return CostTracker(self.pool, langfuse_costs(self._settings))

    @property
    def sessions(self) -> SessionStore:
        """The sessions of all tenants; every question names its tenant."""
        return SessionStore(self.pool, self.streams)

    async def clear_session(self, tenant_id: str, session_id: str, *, reason: str = "") -> str:
        """Clear a session by an event, and return the event's position. Raises `NotFoundError` for an unknown one."""
        return await self.sessions.clear(tenant_id, session_id, reason=reason)

    async def task(self, tenant_id: str, task_id: str) -> dict[str, Any] | None:
        """A task as the projections know it, or None."""
        await self.caught_up(tenant_id)
        return await queries.task(self.pool, tenant_id, task_id)


def langfuse_costs(settings: Settings) -> LangfuseCosts | None:
    """Langfuse's metrics, if the settings name a server and both keys."""
    host, public_key, secret_key = settings.langfuse_host, settings.langfuse_public_key, settings.langfuse_secret_key
    return LangfuseCosts(host, public_key, secret_key) if host and public_key and secret_key else None
