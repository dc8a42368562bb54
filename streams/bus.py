"""One tenant's door to the log: submit, read, wait (contract rows B2 and B4)."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

from schemas.bodies import TaskCancelRequested, TaskForked, TaskSubmitted
from schemas.content import canonical_json, content_hash, seal
from schemas.errors import IdempotencyConflictError, InvalidInputError, TenantMismatchError, UnreadableEventError
from schemas.event import FIELDS, AgentEvent, decode, encode
from schemas.ids import check_tenant_id, derived_id, new_id
from schemas.task import Accepted, NewTask, Priority
from streams.connection import Streams
from streams.log import Entry

USER = "user"
DAY_MS = 24 * 60 * 60 * 1000


class TenantEventBus:
    """Publishes to and reads from the stream of one tenant, and of no other."""

    def __init__(self, streams: Streams, tenant_id: str, *, idempotency_ms: int = DAY_MS) -> None:
        self._streams = streams
        self._idempotency_ms = idempotency_ms
        self.tenant_id = check_tenant_id(tenant_id)

    async def submit(self, task: NewTask, *, task_id: str | None = None) -> Accepted:
        """Accept a task: once per idempotency key within the key's life, else once per call.

        Raises:
            TenantMismatchError: the task is another tenant's.
            IdempotencyConflictError: the key was used for a different task.
        """
        if task.tenant != self.tenant_id:
            raise TenantMismatchError(f"task of tenant {task.tenant!r} does not match the bus of {self.tenant_id!r}")
        task_id = task_id or new_id()
        event = AgentEvent(
            id=new_id(),
            tenant_id=task.tenant,
            session_id=task.session,
            task_id=task_id,
            priority=task.priority,
            source_agent_id=USER,
            call_chain=(USER,),
            at=datetime.now(UTC),
            body=TaskSubmitted(
                task_type=task.type, text=task.text, data=seal(task.data), idempotency_key=task.idempotency_key
            ),
        )
        same = canonical_json([task.session, task.type, task.text, task.data, task.priority])
        outcome, position, known_id = await self._append(event, task.idempotency_key, content_hash(same)[:16])
        if outcome == "conflict":
            raise _key_in_use(task.idempotency_key, task.tenant, known_id)
        return Accepted(
            tenant_id=task.tenant,
            session_id=task.session,
            task_id=known_id,
            position=position,
            duplicate=outcome == "duplicate",
        )

    async def fork(
        self,
        body: TaskForked,
        *,
        task_id: str,
        session_id: str,
        priority: Priority,
        blobs: Mapping[str, bytes],
        fingerprint: str,
    ) -> Accepted:
        """Accept a forked task: once per idempotency key within the key's life, else once per task id.

        `blobs` are the large contents that the body refers to, `fingerprint` stands for what was asked for.

        Raises:
            IdempotencyConflictError: the key was used for something else.
        """
        event = AgentEvent(
            id=derived_id(task_id, "forked"),
            tenant_id=self.tenant_id,
            session_id=session_id,
            task_id=task_id,
            priority=priority,
            source_agent_id=USER,
            call_chain=(USER,),
            at=datetime.now(UTC),
            body=body,
        )
        _check_readable(event)
        key = body.idempotency_key
        outcome, position, known_id = await self._append(event, key, fingerprint, blobs)
        if outcome == "conflict":
            raise _key_in_use(key, self.tenant_id, known_id)
        return Accepted(
            tenant_id=self.tenant_id,
            session_id=session_id,
            task_id=known_id,
            position=position,
            duplicate=outcome == "duplicate",
        )

    async def cancel(self, task_id: str, session_id: str, reason: str = "") -> str:
        """Ask for a task to be cancelled, once however often it is asked. Returns the request's position.

        The supervisor decides: the task ends as cancelled, unless it has ended before the request is read.
        """
        return await self.publish(
            AgentEvent(
                id=derived_id("cancel", self.tenant_id, task_id),
                tenant_id=self.tenant_id,
                session_id=session_id,
                task_id=task_id,
                source_agent_id=USER,
                call_chain=(USER,),
                at=datetime.now(UTC),
                body=TaskCancelRequested(reason=reason),
            )
        )

    async def publish(self, event: AgentEvent) -> str:
        """Append an event of this tenant, once per event id. Returns its position.

        Raises:
            TenantMismatchError: the event is another tenant's.
            InvalidInputError: the entry could not be read back as this event. Nothing was written.
        """
        if event.tenant_id != self.tenant_id:
            raise TenantMismatchError(
                f"event {event.id} of tenant {event.tenant_id!r} does not match the bus of {self.tenant_id!r}"
            )
        _check_readable(event)
        _, position, _ = await self._append(event, None, "-")
        return position

    async def _append(
        self, event: AgentEvent, key: str | None, fingerprint: str, known: Mapping[str, bytes] | None = None
    ) -> tuple[str, str, str]:
        blobs = dict(known or {})
        fact = encode(event, blobs)
        return await self._streams.functions.append(
            self.tenant_id,
            key=f"k.{key}" if key else f"e.{event.id}",
            fingerprint=fingerprint,
            ttl_ms=self._idempotency_ms,
            task_id=event.task_id,
            fact=fact,
            blobs=blobs,
        )

    async def read(self, *, after: str = "0-0", limit: int = 1000) -> list[Entry]:
        """Up to `limit` entries after a position."""
        return await self._streams.log.read(self.tenant_id, after=after, limit=limit)

    def follow(self, *, after: str = "0-0") -> AsyncIterator[Entry]:
        """All entries after a position, then new ones as they come."""
        return self._streams.log.follow(self.tenant_id, after=after)


def _key_in_use(key: str | None, tenant_id: str, task_id: str) -> IdempotencyConflictError:
    return IdempotencyConflictError(
        f"idempotency key {key!r} of tenant {tenant_id!r} was used for another task ({task_id}): use a new key for a "
        "new task"
    )


def _check_readable(event: AgentEvent) -> None:
    values = [value.decode() if isinstance(value, bytes) else value for value in encode(event, {})]
    try:
        again = decode(event.tenant_id, "0-0", dict(zip(FIELDS, values, strict=True)))
    except UnreadableEventError as error:
        raise InvalidInputError(f"event {event.id!r} could not be read back: {error}") from error
    if again.call_chain != event.call_chain:
        raise InvalidInputError(f"event {event.id!r}: an agent id in {list(event.call_chain)} has the separator '>'")
