"""`context.session`: the state of a session, in the name of one call (contract row D1)."""

from typing import Any

from pydantic import ValidationError

from handlers.journal import Journal
from handlers.patience import patiently
from handlers.recall import SessionReader
from handlers.steps import durable_step, jsonable, recorded, request_hash, stamp
from schemas.bodies import SessionStateSet
from schemas.content import Json, seal
from schemas.errors import InvalidInputError


class AgentSession:
    """Values that agents keep in a session. They survive restarts and pauses, and end when the session is cleared.

    Setting a value is an event; what was read is recorded, so that an agent that is run again sees what it saw. Of two
    agents that set the same key at once, the one whose event is later in the log wins.
    """

    def __init__(self, journal: Journal, reader: SessionReader) -> None:
        self._journal = journal
        self._reader = reader

    async def set(self, key: str, value: Any) -> None:
        """Keep a JSON-able value; None takes the key away.

        Raises:
            InvalidInputError: the value is not JSON-able, or the key has not 1 to 128 characters without control
                characters.
        """
        plain = jsonable(value)
        ordinal, asked = self._journal.next_ordinal(), request_hash("session.set", key, plain)
        if recorded(self._journal, ordinal, asked, SessionStateSet) is not None:
            return
        try:
            body = SessionStateSet(**stamp(self._journal, ordinal, asked), key=key, value=seal(plain))
        except ValidationError as error:
            raise InvalidInputError(
                f"a key of a session's state has 1 to 128 characters, none of them control characters: {key[:80]!r}"
            ) from error
        delivery = self._journal.delivery.delivery
        await self._journal.record(f"{ordinal}.0@{delivery}", self._journal.event(body, "state", ordinal, delivery))

    async def get(self, key: str, default: Any = None) -> Any:
        """A value as the session has it now, what this agent just set included; `default` if there is none."""
        return (await self.state()).get(key, default)

    async def state(self) -> dict[str, Json]:
        """All values of the session. Waits while PostgreSQL is away or the projections are behind."""
        call = self._journal.call
        found: dict[str, Json] = await durable_step(
            self._journal,
            self._journal.next_ordinal(),
            "session.state",
            request_hash("session.state"),
            lambda: patiently(self._journal, lambda: self._reader.state(call.tenant_id, call.session_id)),
        )
        return found
