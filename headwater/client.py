"""A connection to a running Headwater, for producers and for the command line."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from handlers.embedders import make_embedder
from handlers.provider import LitellmProvider
from headwater.embedded import Endpoints
from headwater.history import History, LogArchive
from headwater.long_term_memory import LongTermMemory
from headwater.runtime import make_llm
from headwater.settings import Settings
from headwater.tracking import TaskTracker
from projections import queries, reading
from projections.cost_tracker import CostTracker
from projections.costs import CostKey, CostRow, DecisionCosts
from projections.costs import costs as ledger_costs
from projections.costs import decision_costs as ledger_decision_costs
from projections.db import Pool, connect
from projections.forks import fork_costs
from projections.history import SeenEntry
from projections.langfuse_costs import LangfuseCosts
from projections.projection import START, Position
from projections.session_store import SessionStore
from schemas.errors import NotFoundError, UnavailableError
from schemas.task import Accepted, NewTask, TaskOutcome
from streams.bus import TenantEventBus
from streams.connection import Streams, open_streams
from streams.outcomes import Outcomes
from streams.parked import DeadLetters
from streams.tail import Tail

HOUR_MS = 60 * 60 * 1000
CATCH_UP_S = 5.0
PAGE = 1000


class Headwater:
    """`async with Headwater(settings, endpoints) as hw: outcome = await hw.run(NewTask(…))`."""

    def __init__(self, settings: Settings, endpoints: Endpoints, *, pool_size: int = 4) -> None:
        self.settings = settings
        self._endpoints = endpoints
        self._pool_size = pool_size
        self._memory: LongTermMemory | None = None
        # It imports and connects when it is first asked, which only an embedder that is a provider's does.
        self._provider = LitellmProvider(settings.llm_base_url, settings.llm_api_key)
        self.streams: Streams
        self.pool: Pool
        self.outcomes: Outcomes
        self.history: History
        self.tail: Tail

    async def __aenter__(self) -> "Headwater":
        self.streams = await open_streams(self._endpoints.redis_url, shards=self.settings.shards)
        try:
            self.pool = await connect(self._endpoints.database_url, max_size=self._pool_size)
        except BaseException:
            await self.streams.close()
            raise
        self.streams.log.archive = LogArchive(self.pool)
        self.outcomes = Outcomes(self.streams)
        self.history = History(self.streams.log, self.pool)
        self.tail = Tail(self.streams)
        self._tracker = TaskTracker(self.streams, self.pool, self.outcomes, self.history)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.tail.close()
        await self.outcomes.close()
        await self.pool.close()
        await self.streams.close()
        await self._provider.aclose()

    def bus(self, tenant_id: str) -> TenantEventBus:
        """The door to one tenant's log."""
        return TenantEventBus(self.streams, tenant_id, idempotency_ms=self.settings.idempotency_hours * HOUR_MS)

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
    def cost_tracker(self) -> CostTracker:
        """What tenants and agents cost, from the ledger; with Langfuse as a second opinion where it is set up."""
        return CostTracker(self.pool, langfuse_costs(self.settings))

    @property
    def dead_letters(self) -> DeadLetters:
        """What could not be handled, of all tenants; every question names its tenant."""
        return DeadLetters(self.streams)

    @property
    def sessions(self) -> SessionStore:
        """The sessions of all tenants; every question names its tenant."""
        return SessionStore(self.pool, self.streams)

    @property
    def memory(self) -> LongTermMemory:
        """The memories of all tenants; every question names its tenant."""
        if self._memory is None:
            embedder = make_embedder(self.settings.embedder)
            self._memory = LongTermMemory(
                self.streams, self.pool, embedder, lambda: make_llm(self.settings, self._provider)
            )
        return self._memory

    async def clear_session(self, tenant_id: str, session_id: str, *, reason: str = "") -> str:
        """Clear a session by an event, and return the event's position. Raises `NotFoundError` for an unknown one."""
        return await self.sessions.clear(tenant_id, session_id, reason=reason)

    async def wait(self, accepted: Accepted) -> TaskOutcome:
        """Wait for the outcome of a task that was accepted; bound it with `asyncio.timeout`."""
        return await self.outcomes.wait(accepted)

    async def task(self, tenant_id: str, task_id: str, *, wait_s: float = 0.0) -> dict[str, Any] | None:
        """A task as it stands, or None. With `wait_s`, wait so many seconds for its end if it has not ended.

        Raises:
            UnavailableError: the projections are too far behind to say whether there is such a task.
        """
        found = await self._look(tenant_id, task_id)
        if found is None or wait_s <= 0 or found["ended_at"] is not None:
            return found
        end = await self._tracker.wait(tenant_id, task_id, wait_s)
        found = await self._look(tenant_id, task_id)
        return found if found is None or end is None else await self._tracker.with_end(found, end)

    async def _look(self, tenant_id: str, task_id: str) -> dict[str, Any] | None:
        return await self._tracker.look(tenant_id, task_id, caught_up=await self.caught_up(tenant_id))

    async def forks(self, tenant_id: str, task_id: str) -> dict[str, Any] | None:
        """The forks of a task with their costs and its own, or None (`projections/forks.py` has the shape)."""
        await self.caught_up(tenant_id)
        return await fork_costs(self.pool, tenant_id, task_id)

    async def cancel(self, tenant_id: str, task_id: str, reason: str = "") -> str:
        """Ask for a task to be cancelled. Returns how it stood: "submitted" or "running", or its end, which stays.

        Raises:
            NotFoundError: the tenant has no such task.
        """
        found = await self.task(tenant_id, task_id)
        if found is None:
            raise NotFoundError(f"tenant {tenant_id!r} has no task {task_id!r}")
        if found["ended_at"] is None:
            await self.bus(tenant_id).cancel(task_id, found["session"], reason)
        return str(found["status"])

    async def session(self, tenant_id: str, session_id: str) -> dict[str, Any] | None:
        """A session with its messages, tasks and cost, or None.

        Raises:
            UnavailableError: it is not known, and the projections have not read the whole log yet.
        """
        caught_up = await self.caught_up(tenant_id)
        found = await queries.session(self.pool, tenant_id, session_id)
        if found is None and not caught_up:
            raise UnavailableError(f"the projections of tenant {tenant_id!r} are behind its log: try again later")
        return found

    async def costs(
        self,
        *,
        by: CostKey,
        tenant_id: str | None = None,
        agent_id: str | None = None,
        days: int = 30,
        limit: int | None = None,
    ) -> list[CostRow]:
        """What was spent, from the ledger: see `projections.costs.costs`."""
        if tenant_id is not None:
            await self.caught_up(tenant_id)
        return await ledger_costs(self.pool, by=by, tenant_id=tenant_id, agent_id=agent_id, days=days, limit=limit)

    async def decision_costs(self, tenant_id: str, event_id: str) -> DecisionCosts:
        """What an event cost with everything under it. Raises `NotFoundError` for an unknown one."""
        await self.caught_up(tenant_id)
        return await ledger_decision_costs(self.pool, tenant_id, event_id)

    async def events(
        self,
        tenant_id: str,
        *,
        after: Position = START,
        session_id: str | None = None,
        task_id: str | None = None,
        follow: bool = False,
    ) -> AsyncIterator[SeenEntry]:
        """The tenant's log after a position, unreadable entries among it; with `follow`, new entries as they come."""
        async with self.tail.watch(tenant_id) as grown:
            live = False
            while True:
                grown.clear()
                page = await self.history.page(
                    tenant_id, after=after, limit=PAGE, session_id=session_id, task_id=task_id, live=live
                )
                for entry in page.entries:
                    yield entry
                after = page.last
                if page.more:
                    continue
                if not follow:
                    return
                live = True
                await grown.wait()


def langfuse_costs(settings: Settings) -> LangfuseCosts | None:
    """Langfuse's metrics, if the settings name a server and both keys."""
    host, public_key, secret_key = settings.langfuse_host, settings.langfuse_public_key, settings.langfuse_secret_key
    return LangfuseCosts(host, public_key, secret_key) if host and public_key and secret_key else None
