"""Dead letters: what was given up, for a person to look at, to have handled again, or to drop (contract row B3)."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from schemas.bodies import EventBody, EventDropped, EventRedriven
from schemas.errors import InvalidInputError, NotFoundError
from schemas.event import encode
from schemas.ids import check_tenant_id, derived_id
from streams.connection import Streams
from streams.log import Entry, entries_of
from streams.retries import ORIGIN, about, printable
from streams.wire import redis_errors

USER = "user"
MAX_PAGE = 1_000
MAX_REASON_CHARS = 2_000
_MAX_NUMBER = 2**64 - 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One parked entry or call. `fields` has the entry's own fields as they are stored; they may be damaged."""

    id: str
    tenant_id: str
    parked_at: datetime
    reader: str
    """Who could not handle it: "decider", or "worker" for a call that killed its workers."""
    position: str
    """Its place in the tenant's log; empty for a call."""
    attempts: int
    error: str
    event_id: str
    event_type: str
    session_id: str
    task_id: str
    call_id: str | None
    fields: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        named = {name.removesuffix("_id"): value for name, value in asdict(self).items()}
        return named | {"parked_at": self.parked_at.isoformat().replace("+00:00", "Z")}


class DeadLetters:
    """The dead letters of any tenant; the tenant is named in every call and decides the key."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def page(self, tenant_id: str, *, after: str = "0-0", limit: int = 100) -> list[DeadLetter]:
        """Up to `limit` (at most 1,000) after the id `after`, oldest first."""
        _check_id(after)
        found = await self._range(tenant_id, f"({after}", "+", min(limit, MAX_PAGE))
        return [_read(tenant_id, entry) for entry in found]

    async def show(self, tenant_id: str, parked_id: str) -> DeadLetter:
        """One of them. Raises `NotFoundError` if it is not there (any more)."""
        _check_id(parked_id)
        found = await self._range(tenant_id, parked_id, parked_id, 1)
        if not found:
            raise NotFoundError(
                f"tenant {tenant_id!r} has no dead letter {parked_id}: it may have been redriven or dropped; "
                "'headwater dead-letters list' shows those there are"
            )
        return _read(tenant_id, found[0])

    async def redrive(self, tenant_id: str, parked_id: str) -> DeadLetter:
        """Have the entry handled again, and after it what waited behind it. Only one of many at once succeeds.

        Raises:
            NotFoundError: it is not there (any more): somebody else redrove or dropped it. Nothing was done.
            InvalidInputError: it is a call. Its task went on without it.
        """
        letter = await self.show(tenant_id, parked_id)
        if letter.call_id is not None:
            raise InvalidInputError(
                f"dead letter {parked_id} is a call, and its task went on when the call failed: submit the task again "
                "if its result is wanted, and drop this"
            )
        body = EventRedriven(
            parked_id=parked_id,
            reader=letter.reader,
            position=letter.position,
            event_id=letter.event_id,
            event_type=letter.event_type,
        )
        await self._resolve(letter, "redrive", body)
        return letter

    async def drop(self, tenant_id: str, parked_id: str, *, reason: str = "") -> DeadLetter:
        """Give the entry up for good. Its task fails if it is still open, after what waited behind it was handled.

        Raises:
            NotFoundError: it is not there (any more): somebody else redrove or dropped it. Nothing was done.
        """
        letter = await self.show(tenant_id, parked_id)
        body = EventDropped(
            parked_id=parked_id,
            reader=letter.reader,
            position=letter.position,
            event_id=letter.event_id,
            event_type=letter.event_type,
            error=letter.error,
            reason=printable(reason, MAX_REASON_CHARS),
        )
        await self._resolve(letter, "drop", body)
        return letter

    async def count(self, tenant_id: str) -> int:
        """How many there are."""
        with redis_errors():
            return int(await self._streams.redis.xlen(self._streams.keys.parked(tenant_id)))

    async def _range(self, tenant_id: str, start: str, end: str, limit: int) -> list[Entry]:
        key = self._streams.keys.parked(check_tenant_id(tenant_id))
        with redis_errors():
            return entries_of(await self._streams.redis.xrange(key, start, end, count=limit))

    async def _resolve(self, letter: DeadLetter, how: Literal["redrive", "drop"], body: EventBody) -> None:
        # One id for each dead letter and way to resolve it: a call that is sent twice writes one fact.
        event = about(letter.tenant_id, letter.fields, body, derived_id(letter.tenant_id, letter.id, how), source=USER)
        blobs: dict[str, bytes] = {}
        fact = encode(event, blobs)
        if not await self._streams.functions.resolve(letter.tenant_id, letter.id, how, fact=fact, blobs=blobs):
            raise NotFoundError(
                f"dead letter {letter.id} of tenant {letter.tenant_id!r} was redriven or dropped by somebody else just "
                "now: nothing was done"
            )


def _read(tenant_id: str, entry: Entry) -> DeadLetter:
    parked_id, flat = entry
    # Ours come first: an entry's own field of the same name is one of `fields`.
    head = len(ORIGIN) if tuple(flat[: 2 * len(ORIGIN) : 2]) == ORIGIN else 0
    ours = dict.fromkeys(ORIGIN, "") | dict(zip(ORIGIN[:head], flat[1 : 2 * head : 2], strict=True))
    own = flat[2 * head :]
    fields = {printable(k): printable(v, len(v) * 4) for k, v in zip(own[::2], own[1::2], strict=True)}
    return DeadLetter(
        id=parked_id,
        tenant_id=tenant_id,
        parked_at=datetime.fromtimestamp(int(parked_id.partition("-")[0]) / 1000, UTC),
        reader=ours["reader"],
        position=ours["position"],
        attempts=int(ours["attempts"] or 0),
        error=printable(ours["error"], MAX_REASON_CHARS),
        event_id=fields.get("id", ""),
        event_type=fields.get("type", ""),
        session_id=fields.get("session", ""),
        task_id=fields.get("task", ""),
        call_id=ours["call"] or None,
        fields=fields,
    )


def _check_id(text: str) -> None:
    ms, dash, seq = text.partition("-")
    for part in (ms, seq if dash else "0"):
        if not (part.isascii() and part.isdigit() and len(part) <= 20 and int(part) <= _MAX_NUMBER):
            raise InvalidInputError(f"{text[:80]!r} is not the id of a dead letter, such as 1732450000000-0")
