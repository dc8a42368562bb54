"""One task as it stands now, also while the projections are behind the log, and waiting for its end."""

import asyncio
from typing import Any

from headwater.history import History
from projections import queries
from projections.db import Pool
from schemas.bodies import TaskForked, TaskSubmitted
from schemas.errors import UnavailableError
from schemas.event import AgentEvent, decode
from streams.connection import Streams
from streams.outcomes import RECHECK_S, Outcomes

MAX_PAGES = 10
PAGE = 200


class TaskTracker:
    """Looks up tasks for `Headwater`."""

    def __init__(self, streams: Streams, pool: Pool, outcomes: Outcomes, history: History) -> None:
        self._streams = streams
        self._pool = pool
        self._outcomes = outcomes
        self._history = history

    async def look(self, tenant_id: str, task_id: str, *, caught_up: bool) -> dict[str, Any] | None:
        """The task as the projections know it; without `caught_up`, also one that they have not read yet.

        Raises:
            UnavailableError: the projections are so far behind that nobody can say whether there is such a task.
        """
        found = await queries.task(self._pool, tenant_id, task_id)
        return found if found is not None or caught_up else await self._unprojected(tenant_id, task_id)

    async def wait(self, tenant_id: str, task_id: str, wait_s: float) -> AgentEvent | None:
        """The task's end, if it is announced within `wait_s` seconds and was not reached before; else None.

        Returns early, with None, when the projections say that the task has ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        async with self._outcomes.expect(tenant_id, task_id) as ended:
            while True:
                # Subscribed first, then looked: an end between the two is seen by one of them.
                found = await queries.task(self._pool, tenant_id, task_id)
                if found is not None and found["ended_at"] is not None:
                    return None
                left_s = deadline - loop.time()
                if left_s <= 0:
                    return None
                await asyncio.wait({ended}, timeout=min(left_s, RECHECK_S))
                if ended.done():
                    return (await self._streams.log.fetch(tenant_id, [ended.result()]))[0]

    async def with_end(self, found: dict[str, Any], end: AgentEvent) -> dict[str, Any]:
        """`found`, told how the task ended, for projections that have not read it yet. Its cost is not final then."""
        if found["ended_at"] is not None:
            return found
        outcome = (await self._outcomes.outcome(end)).model_dump(exclude={"tenant_id", "task_id", "cost_usd"})
        return found | outcome | {"ended_at": end.at.isoformat().replace("+00:00", "Z")}

    async def _unprojected(self, tenant_id: str, task_id: str) -> dict[str, Any] | None:
        after = await queries.position(self._pool, tenant_id)
        for _ in range(MAX_PAGES):
            page = await self._history.page(tenant_id, after=after, limit=PAGE, task_id=task_id, live=True)
            for entry in page.entries:
                if entry.error is None and entry.fields["type"] in (TaskSubmitted.type, TaskForked.type):
                    return _submitted(decode(tenant_id, "", entry.fields))
            if not page.more:
                return None
            after = page.last
        raise UnavailableError(
            f"the projections of tenant {tenant_id!r} are far behind its log: is a projector running? Try again later"
        )


def _submitted(event: AgentEvent) -> dict[str, Any]:
    assert isinstance(event.body, TaskSubmitted | TaskForked)
    return {
        "tenant": event.tenant_id,
        "session": event.session_id,
        "task": event.task_id,
        "type": event.body.task_type,
        "priority": event.priority,
        "status": "submitted",
        "result": None,
        "call_chain": None,
        "routed_by": None,
        "decomposed": False,
        "agent_results": {},
        "error": None,
        "errors": [],
        "submitted_at": event.at.isoformat().replace("+00:00", "Z"),
        "ended_at": None,
        "fork_of": event.body.origin_task_id if isinstance(event.body, TaskForked) else None,
        "cost_usd": None,
    }
