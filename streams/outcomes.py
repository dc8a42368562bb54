"""Waiting for tasks to end: one subscription per process, whatever the number of waiters."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

import structlog

from schemas.bodies import EventBody, TaskCancelled, TaskCompleted, TaskFailed
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import Accepted, NewTask, TaskOutcome
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable

logger = structlog.get_logger(__name__)

RECHECK_S = 15.0
"""An announcement can be lost with a connection. A waiter reads the log again this often."""
READ_LIMIT = 1000
_STATUS: dict[type[EventBody], Literal["completed", "failed", "cancelled"]] = {
    TaskCompleted: "completed",
    TaskFailed: "failed",
    TaskCancelled: "cancelled",
}


class Outcomes:
    """Waiters for the ends of tasks, of any tenants. Call `close` at the end.

    Where the log has an archive, the ends of tasks are found there that are no longer in the stream.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._pubsub = streams.redis.pubsub(ignore_subscribe_messages=True)
        self._waiting: dict[str, list[asyncio.Future[str]]] = {}
        self._subscribed: set[str] = set()
        self._listener: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    async def submit_and_wait(self, bus: TenantEventBus, task: NewTask) -> TaskOutcome:
        """Submit a task and wait for its outcome. Waits for ever: bound it with `asyncio.timeout`."""
        task_id = new_id()
        async with self.expect(task.tenant, task_id) as future:
            accepted = await bus.submit(task, task_id=task_id)
            if not accepted.duplicate:
                return await self.outcome(await self._await(accepted, future, accepted.position))
        return await self.wait(accepted)

    async def wait(self, accepted: Accepted) -> TaskOutcome:
        """The outcome of a task that was accepted before. Waits for ever: bound it with `asyncio.timeout`."""
        async with self.expect(accepted.tenant_id, accepted.task_id) as future:
            # Subscribed first, then read: an end between the two is seen by one of them.
            found, after = await self._search(accepted, accepted.position)
            archive = self._streams.log.archive
            if found is None and archive is not None:
                found = await archive.end_of(accepted.tenant_id, accepted.task_id)
            return await self.outcome(found or await self._await(accepted, future, after))

    async def _await(self, accepted: Accepted, future: asyncio.Future[str], after: str) -> AgentEvent:
        while True:
            with contextlib.suppress(TimeoutError):
                position = await asyncio.wait_for(asyncio.shield(future), RECHECK_S)
                return (await self._streams.log.fetch(accepted.tenant_id, [position]))[0]
            found, after = await self._search(accepted, after)
            if found is not None:
                return found

    @contextlib.asynccontextmanager
    async def expect(self, tenant_id: str, task_id: str) -> AsyncIterator[asyncio.Future[str]]:
        """A future of the position of the task's end, if it is announced from now on. An announcement can be lost."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(task_id, [])
        waiting.append(future)
        try:
            if tenant_id not in self._subscribed:
                await self._pubsub.subscribe(self._streams.keys.done(tenant_id))
                self._subscribed.add(tenant_id)
            if self._listener is None:
                self._listener = asyncio.create_task(self._listen())
            yield future
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(task_id, None)

    async def outcome(self, event: AgentEvent) -> TaskOutcome:
        """A terminal event as an outcome, with its contents read in full."""
        body = event.body
        assert isinstance(body, TaskCompleted | TaskFailed | TaskCancelled)
        values = {"": getattr(body, "result", None), **{f".{k}": v for k, v in body.agent_results.items()}}
        resolved = {k: await self._streams.log.resolve(event.tenant_id, v) for k, v in values.items()}
        return TaskOutcome(
            tenant_id=event.tenant_id,
            task_id=event.task_id,
            status=_STATUS[type(body)],
            result=resolved.pop(""),
            error=None if isinstance(body, TaskCompleted) else body.reason,
            call_chain=event.call_chain,
            routed_by=body.routed_by,
            decomposed=body.decomposed,
            agent_results={k[1:]: v for k, v in resolved.items()},
        )

    async def _search(self, accepted: Accepted, after: str) -> tuple[AgentEvent | None, str]:
        while True:
            entries = await self._streams.log.read(accepted.tenant_id, after=after, limit=READ_LIMIT)
            for event in readable(accepted.tenant_id, entries)[0]:
                if event.task_id == accepted.task_id and event.body.terminal:
                    return event, after
            if entries:
                after = entries[-1][0]
            if len(entries) < READ_LIMIT:
                return None, after

    async def _listen(self) -> None:
        while True:
            try:
                async for message in self._pubsub.listen():
                    task_id, _, position = message["data"].decode().partition(" ")
                    for future in self._waiting.get(task_id, ()):
                        if not future.done():
                            future.set_result(position)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logger.warning("outcome_listener_failed", error=str(error))
                await asyncio.sleep(1)
