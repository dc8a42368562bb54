"""What the commands ask of a Headwater: the same of one on this machine and of one behind a URL."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from projections.costs import CostKey, CostRow, DecisionCosts
from projections.history import SeenEntry
from projections.projection import START, Position
from schemas.task import Accepted, NewTask, TaskOutcome
from streams.parked import DeadLetter


class Letters(Protocol):
    """Dead letters, as `streams.parked.DeadLetters` has them."""

    async def page(self, tenant_id: str, *, after: str = "0-0", limit: int = 100) -> list[DeadLetter]:
        """Up to `limit` after an id, oldest first."""
        ...

    async def show(self, tenant_id: str, parked_id: str) -> DeadLetter:
        """One of them."""
        ...

    async def redrive(self, tenant_id: str, parked_id: str) -> DeadLetter:
        """Have it handled again."""
        ...

    async def drop(self, tenant_id: str, parked_id: str, *, reason: str = "") -> DeadLetter:
        """Give it up."""
        ...


class Gateway(Protocol):
    """`headwater.client.Headwater`, which is connected to the servers, or `headwater.remote.RemoteHeadwater`."""

    @property
    def dead_letters(self) -> Letters:
        """What could not be handled."""
        ...

    async def submit(self, task: NewTask) -> Accepted:
        """Accept a task."""
        ...

    async def wait(self, accepted: Accepted) -> TaskOutcome:
        """Wait for the outcome of a task."""
        ...

    async def task(self, tenant_id: str, task_id: str, *, wait_s: float = 0.0) -> dict[str, Any] | None:
        """A task as it stands, or None."""
        ...

    async def forks(self, tenant_id: str, task_id: str) -> dict[str, Any] | None:
        """The forks of a task with their costs and its own, or None."""
        ...

    async def cancel(self, tenant_id: str, task_id: str, reason: str = "") -> str:
        """Ask for a task to be cancelled. Returns how it stood."""
        ...

    async def session(self, tenant_id: str, session_id: str) -> dict[str, Any] | None:
        """A session, or None."""
        ...

    async def clear_session(self, tenant_id: str, session_id: str, *, reason: str = "") -> str:
        """Clear a session. Returns the event's position."""
        ...

    async def costs(
        self,
        *,
        by: CostKey,
        tenant_id: str | None = None,
        agent_id: str | None = None,
        days: int = 30,
        limit: int | None = None,
    ) -> list[CostRow]:
        """What was spent, the dearest first."""
        ...

    async def decision_costs(self, tenant_id: str, event_id: str) -> DecisionCosts:
        """What an event cost with everything under it."""
        ...

    def events(
        self,
        tenant_id: str,
        *,
        after: Position = START,
        session_id: str | None = None,
        task_id: str | None = None,
        follow: bool = False,
    ) -> AsyncIterator[SeenEntry]:
        """The tenant's log after a position, in order."""
        ...
