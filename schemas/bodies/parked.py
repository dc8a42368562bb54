"""Dead letters: entries that could not be handled, and what people did about them."""

from schemas.bodies.base import EventBody, Ordinal


class EventParked(EventBody):
    """An entry was given up after every retry, or a call after it killed its workers: a person has to look at it.

    It stands on the tenant's dead-letter stream; what comes later in its task waits behind it. `call_id` is set for a
    call, which nothing waits behind: its task went on with the agent's failure.
    """

    type = "event.parked"

    reader: str
    position: str
    """Of the entry that could not be handled; for a call, empty."""
    event_id: str
    event_type: str
    attempts: Ordinal
    error: str
    call_id: str | None = None


class EventRedriven(EventBody):
    """Somebody had a parked entry handled again, and after it what waited behind it."""

    type = "event.redriven"

    parked_id: str
    reader: str
    position: str
    event_id: str
    event_type: str


class EventDropped(EventBody):
    """Somebody gave a parked entry up for good: it is never handled, and its task fails if it is still open."""

    type = "event.dropped"

    parked_id: str
    reader: str
    position: str
    event_id: str
    event_type: str
    error: str
    """Why it was parked."""
    reason: str = ""
    """Why it was dropped."""
