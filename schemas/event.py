"""The event envelope, and how an event stands in a Redis stream entry.

An entry has plain, readable fields, always these and in this order (a stream stores equal field names once):
`id type v session task priority source chain parent at body`. The tenant is in the key. `chain` joins agent ids with
'>', `at` is RFC 3339 in UTC, `body` is JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import ValidationError

from schemas.bodies import BODIES, EventBody
from schemas.complaints import first_complaint
from schemas.content import INLINE_LIMIT_BYTES, offload
from schemas.errors import InvalidInputError, UnreadableEventError, UnreadableReason
from schemas.ids import check_session_id, check_tenant_id
from schemas.task import PRIORITY_RANK, Priority
from schemas.upcast import upcast

FIELDS = ("id", "type", "v", "session", "task", "priority", "source", "chain", "parent", "at", "body")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """One fact in a tenant's log.

    `call_chain` is never empty and contains `source_agent_id`. `parent_event_id` is the event's cause, None for a
    submitted task. `task_id` is empty for what happens outside any task, such as the clearing of a session.
    `position` is the entry's place in the log (`<ms>-<seq>`), None until it is appended.

    A dataclass with its few checks by hand: thousands are made per second, and the bodies, which carry the meaning,
    are validated by pydantic.

    Raises:
        InvalidInputError: the tenant or session id is not allowed, or source and chain disagree.
    """

    id: str
    tenant_id: str
    session_id: str
    task_id: str
    source_agent_id: str
    call_chain: tuple[str, ...]
    at: datetime
    body: EventBody
    priority: Priority = "normal"
    parent_event_id: str | None = None
    position: str | None = None

    def __post_init__(self) -> None:
        check_tenant_id(self.tenant_id)
        check_session_id(self.session_id)
        if not (0 < len(self.id) <= 64 and len(self.task_id) <= 64 and (self.task_id or not self.body.needs_task)):
            raise InvalidInputError(f"event {self.id[:80]!r}: event and task ids have 1 to 64 characters")
        if self.source_agent_id not in self.call_chain or not self.source_agent_id:
            raise InvalidInputError(
                f"event {self.id}: source {self.source_agent_id!r} is not in the call chain {list(self.call_chain)}"
            )
        if self.priority not in PRIORITY_RANK:
            raise InvalidInputError(f"event {self.id}: priority {self.priority!r} is not one of {list(PRIORITY_RANK)}")
        if self.at.tzinfo is None:
            raise InvalidInputError(f"event {self.id}: its time has no time zone")

    @property
    def type(self) -> str:
        """The event's type name, such as `task.submitted`."""
        return self.body.type

    @property
    def correlation_id(self) -> str:
        """What ties a task's events together: the task id."""
        return self.task_id


def encode(event: AgentEvent, blobs: dict[str, bytes]) -> list[str | bytes]:
    """The values of the entry's fields, in the order of `FIELDS`; large contents go to `blobs` (hash → JSON)."""
    return [
        event.id,
        event.body.type,
        str(event.body.version),
        event.session_id,
        event.task_id,
        event.priority,
        event.source_agent_id,
        ">".join(event.call_chain),
        event.parent_event_id or "",
        event.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        encode_body(event.body, blobs),
    ]


def encode_body(body: EventBody, blobs: dict[str, bytes]) -> bytes:
    """The body as JSON, with each large content moved to `blobs`. A small body is the common case and a short way."""
    try:
        data = body.__pydantic_serializer__.to_json(body)
    except ValueError as error:
        raise InvalidInputError(f"{body.type}: the body cannot be stored as JSON: {error}") from error
    if len(data) <= INLINE_LIMIT_BYTES and b'"$blob"' not in data:
        return data
    value = orjson.loads(data)
    for path in body.contents:
        name, _, key = path.partition(".")
        inner = value.get(name)
        if not key:
            value[name] = offload(inner, blobs)
        elif isinstance(inner, dict):
            inner.update({k: offload(v, blobs) for k, v in inner.items() if key in ("*", k)})
    return orjson.dumps(value)


def entry_fields(flat: Sequence[str]) -> dict[str, str]:
    """An entry's fields by name, from Redis's flat list of names and values."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decode(tenant_id: str, position: str, fields: Mapping[str, str]) -> AgentEvent:
    """The event that an entry's fields hold, upcast to today's version.

    Bytes that are not UTF-8 arrive as surrogate escapes and are refused here.

    Raises:
        UnreadableEventError: the fields make no event known here. The text names the entry and the culprit.
    """
    try:
        _check_text(fields)
        body = decode_body(fields["type"], fields["v"], fields["body"])
        return AgentEvent(
            id=fields["id"],
            tenant_id=tenant_id,
            session_id=fields["session"],
            task_id=fields["task"],
            priority=fields["priority"],  # type: ignore[arg-type]  # checked by __post_init__
            source_agent_id=fields["source"],
            call_chain=tuple(fields["chain"].split(">")),
            parent_event_id=fields["parent"] or None,
            at=datetime.fromisoformat(fields["at"]),
            body=body,
            position=position,
        )
    except (UnreadableEventError, ValueError, KeyError, TypeError) as error:
        raise UnreadableEventError(
            f"entry {position} of tenant {tenant_id!r}: {_short(error)}", _reason(error, fields)
        ) from error


def _check_text(fields: Mapping[str, str]) -> None:
    text = "".join(fields.values())
    text.encode()
    if "\x00" in text:
        raise UnreadableEventError("a field holds a NUL character", "not_text")


def decode_body(event_type: str, version: str, data: str | bytes) -> EventBody:
    """A body from its stored JSON, upcast if it is old. Raises `UnreadableEventError` or `ValidationError`."""
    known = BODIES.get(event_type)
    if known is not None and version == str(known.version):
        return known.model_validate_json(data)
    try:
        number = int(version)
    except ValueError as error:
        raise UnreadableEventError(f"field 'v' is {version[:40]!r}, which is no version", "unknown_version") from error
    value: Any = orjson.loads(data)
    if not isinstance(value, dict):
        raise UnreadableEventError("field 'body' is not a JSON object", "malformed_body")
    newest = upcast(event_type, number, value)
    return BODIES[event_type].model_validate_json(orjson.dumps(newest))


def _reason(error: Exception, fields: Mapping[str, str]) -> UnreadableReason:
    """In a word, what `_short` says."""
    match error:
        case UnreadableEventError():
            return error.reason
        case UnicodeEncodeError():
            return "not_text"
        case KeyError() if error.args[0] in FIELDS and error.args[0] not in fields:
            return "no_task" if error.args[0] == "task" else "missing_field"
        case ValidationError() | orjson.JSONDecodeError() | KeyError() | TypeError():
            return "malformed_body"
    # The body was read before, so its type is known.
    no_task = isinstance(error, InvalidInputError) and not fields["task"] and BODIES[fields["type"]].needs_task
    return "no_task" if no_task else "malformed_envelope"


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"{first_complaint(error, error.title)} ({error.title})"
    if isinstance(error, UnicodeEncodeError):
        return "a field is not UTF-8"
    return f"field {error} is missing" if isinstance(error, KeyError) else str(error)
