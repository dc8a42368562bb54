"""Entries that a reader cannot handle: tried again with growing delays, then parked (contract row B3).

The order inside a task is kept: what follows a deferred entry of its task waits behind it, while other tasks and
tenants go on. A parked entry stands on the tenant's dead-letter stream with its fields, behind fields of ours that say
where it comes from (`ORIGIN`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from schemas.bodies import EventBody, EventParked
from schemas.errors import HeadwaterError
from schemas.event import AgentEvent, encode, entry_fields
from schemas.ids import check_session_id, derived_id
from streams.functions import Commit, Delivery, Fields, Retry, TenantBatch
from streams.log import Entry

logger = structlog.get_logger(__name__)

ORIGIN = ("reader", "position", "waits", "attempts", "error", "call")
"""What stands before a parked entry's own fields. `waits` names what waits behind it; it is empty for a call."""
DEFAULT_DELAYS_MS = (1_000, 4_000, 16_000)
MAX_ERROR_CHARS = 2_000
NOBODY = "supervisor"


def task_of(entry: Entry) -> str:
    """The task that an entry names. One that names none has a place of its own, so that nothing waits behind it."""
    position, flat = entry
    return dict(zip(flat[::2], flat[1::2], strict=False)).get("task") or f"@{position}"


class Setbacks:
    """What could not be handled of one batch. Ask `holds` before each entry, and say afterwards what came of it."""

    def __init__(self, reader: str, batch: TenantBatch, commit: Commit, delays_ms: Sequence[int]) -> None:
        self._reader = reader
        self._batch = batch
        self._commit = commit
        self._delays_ms = delays_ms
        self._held: set[str] = set()
        self._done: dict[str, int] = {}

    def holds(self, entry: Entry) -> bool:
        """Must this entry wait, because an earlier one of its task could not be handled? Then it is taken care of."""
        task = task_of(entry)
        if task not in self._held:
            return False
        if not self._batch.tried:
            self._commit.behind.append((task, entry[0]))
        return True

    def handled(self, entry: Entry) -> None:
        """The entry was handled."""
        task = task_of(entry)
        self._done[task] = self._done.get(task, 0) + 1

    def failed(self, entry: Entry, error: Exception, *, for_good: bool = False) -> None:
        """The entry could not be handled: it is tried again, or parked when that was its last attempt or `for_good`."""
        task, done = task_of(entry), self._done.get(task_of(entry), 0)
        attempts = 1 + (self._batch.tried.get(task, (0, 0))[0] if done == 0 else 0)
        park = for_good or attempts > len(self._delays_ms)
        delay_ms = None if park else self._delays_ms[attempts - 1]
        self._held.add(task)
        if self._batch.tried:
            self._commit.tried[task] = done
        self._commit.retries.append(Retry(task, attempts, delay_ms, entry[0]))
        text = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
        logger.error(
            "entry_parked" if park else "entry_deferred",
            reader=self._reader,
            tenant=self._batch.tenant_id,
            position=entry[0],
            task=task,
            attempts=attempts,
            retry_in_ms=delay_ms,
            error=text,
        )
        if park:
            self._park(entry, task, attempts, text)

    def _park(self, entry: Entry, task: str, attempts: int, error: str) -> None:
        position, flat = entry
        self._commit.parked.append(_with_origin(self._reader, position, task, attempts, error, "", flat))
        fields = entry_fields(flat[: len(flat) // 2 * 2])
        body = EventParked(
            reader=self._reader,
            position=position,
            event_id=printable(fields.get("id", "")),
            event_type=printable(fields.get("type", "")),
            attempts=attempts,
            error=printable(error, MAX_ERROR_CHARS),
        )
        # The number of the lease tells one parking of an entry from the next one, after it was redriven.
        event_id = derived_id(self._batch.tenant_id, position, "parked", self._batch.epoch)
        event = about(self._batch.tenant_id, fields, body, event_id, source=NOBODY)
        self._commit.facts.append(encode(event, self._commit.blobs))


def about(tenant_id: str, fields: dict[str, str], body: EventBody, event_id: str, *, source: str) -> AgentEvent:
    """An event about an entry, which may itself be unreadable: as much of its session and task as can be told."""
    session = printable(fields.get("session", ""), 128)
    try:
        check_session_id(session)
    except HeadwaterError:
        session = "-"
    return AgentEvent(
        id=event_id,
        tenant_id=tenant_id,
        session_id=session,
        task_id=printable(fields.get("task", ""), 64) or "-",
        source_agent_id=source,
        call_chain=(source,),
        parent_event_id=printable(fields.get("id", ""), 64) or None,
        at=datetime.now(UTC),
        body=body,
    )


def parked_calls(delivery: Delivery, events: Sequence[AgentEvent]) -> list[Fields]:
    """The dead letters among the events that settle a call: one for each `event.parked`."""
    return [
        _with_origin("worker", "", "", event.body.attempts, event.body.error, delivery.call_id, [
            "id", event.body.event_id, "type", event.body.event_type, "session", event.session_id,
            "task", event.task_id, "agent", delivery.agent_id, "body", delivery.body,
        ])
        for event in events if isinstance(event.body, EventParked)
    ]  # fmt: skip


def damaged_call(delivery: Delivery, error: Exception) -> AgentEvent:
    """The event of a call that was taken and cannot be read: its task is not known."""
    text = printable(f"the call cannot be read: {error}", MAX_ERROR_CHARS)
    logger.error("call_parked", tenant=delivery.tenant_id, call=delivery.call_id, error=text)
    body = EventParked(
        reader="worker", position="", event_id=delivery.call_id, event_type="call", attempts=1, error=text
    )
    event_id = derived_id(delivery.tenant_id, delivery.call_id, "parked", delivery.delivery)
    return about(delivery.tenant_id, {}, body, event_id, source=NOBODY)


def _with_origin(
    reader: str, position: str, waits: str, attempts: int, error: str, call: str, flat: Sequence[str]
) -> Fields:
    values = (reader, position, waits, str(attempts), error, call)
    return [*(item for pair in zip(ORIGIN, values, strict=True) for item in pair), *flat]


def printable(text: str, limit: int = 200) -> str:
    """Text of an entry that may hold anything, such that an event can hold it."""
    clean = text.encode(errors="surrogateescape").decode(errors="backslashreplace").replace("\x00", "\\x00")
    return clean[:limit]
