"""What a projection is: a name, its tables, the event types it reads, and how it applies a batch."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from projections.db import Connection
from schemas.errors import UnreadableReason
from schemas.event import AgentEvent

Position = tuple[int, int]
"""A place in a tenant's log: (milliseconds, sequence)."""
START: Position = (0, 0)


class Recorded(NamedTuple):
    """An event with its place in the log and the fields that it was stored with."""

    event: AgentEvent
    position: Position
    fields: dict[str, str]


class Unreadable(NamedTuple):
    """An entry of a tenant's log that makes no event, and why."""

    tenant_id: str
    position: Position
    fields: Sequence[str]
    """Names and values in turn, as Redis gives them; empty when the projection is rebuilt."""
    error: str
    reason: UnreadableReason


class Projection(Protocol):
    """A read model of the log. `apply` runs inside the transaction that also moves the projection's position."""

    name: str
    tables: tuple[str, ...]
    event_types: frozenset[str] | None
    """The types it reads, or None for all of them."""

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """Write what `batch` means. Events of one tenant come in log order, each exactly once."""
        ...


@runtime_checkable
class ReadsUnreadable(Protocol):
    """A projection that reads the entries too that make no event, each exactly once."""

    async def apply_unreadable(self, conn: Connection, batch: Sequence[Unreadable]) -> None:
        """Write what `batch` means, in the transaction of `Projection.apply`."""
        ...


class Relevant:
    """A batch for several projections, each of which gets the entries of the types it reads."""

    def __init__(self, entries: Sequence[Recorded]) -> None:
        self.entries = entries
        self._types = [entry.event.body.type for entry in entries]

    def to(self, projection: Projection) -> Sequence[Recorded]:
        """The entries that `projection` reads, in order."""
        wanted = projection.event_types
        if wanted is None:
            return self.entries
        return [entry for entry, name in zip(self.entries, self._types, strict=True) if name in wanted]


def parse_position(text: str) -> Position:
    """'1732450000000-3' → (1732450000000, 3)."""
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)


def format_position(position: Position) -> str:
    """(1732450000000, 3) → '1732450000000-3'."""
    return f"{position[0]}-{position[1]}"


def columns(rows: Iterable[Sequence[object]], width: int) -> list[list[object]]:
    """Rows as columns, for `unnest`; `width` empty columns when there are no rows."""
    turned = [list(column) for column in zip(*rows, strict=True)]
    return turned or [[] for _ in range(width)]
