"""`SessionStore`: the sessions of the log, read from the projection and cleared by an event (contract row D1)."""

from datetime import UTC, datetime

import asyncpg
import orjson

from projections.contents import read_contents
from projections.db import Connection, Pool, tenant_connection
from projections.reading import catch_up
from schemas.bodies import SessionCleared
from schemas.content import Json
from schemas.errors import NotFoundError
from schemas.event import AgentEvent
from schemas.ids import check_session_id, new_id
from schemas.session import Session, SessionMessage
from streams.bus import USER, TenantEventBus
from streams.connection import Streams

MAX_MESSAGES = 10_000
CATCH_UP_S = 10.0
"""How long a reader waits for the projections before it gives up, as if PostgreSQL were away."""

_MESSAGES = """
SELECT m.ms, m.seq, m.role, m.task, m.content FROM messages m
LEFT JOIN sessions s USING (tenant, session)
WHERE m.tenant = $1 AND m.session = $2 AND (m.ms, m.seq) > (coalesce(s.cleared_ms, 0), coalesce(s.cleared_seq, 0))
    AND ($3::bigint IS NULL OR (m.ms, m.seq) < ($3, $4))
ORDER BY m.ms DESC, m.seq DESC LIMIT $5
"""


class SessionStore:
    """Sessions by tenant *and* session. They survive restarts and pauses, and end only by `clear`."""

    def __init__(self, pool: Pool, streams: Streams, *, catch_up_s: float = CATCH_UP_S) -> None:
        self._pool = pool
        self._streams = streams
        self._catch_up_s = catch_up_s

    async def get(self, tenant_id: str, session_id: str) -> Session | None:
        """A session with everything that the log says now, or None if the tenant has no such session.

        Raises:
            UnavailableError: PostgreSQL or Redis is away, or the projections did not catch up in time.
        """
        await self._catch_up(tenant_id)
        async with tenant_connection(self._pool, tenant_id) as conn:
            key = (tenant_id, check_session_id(session_id))
            row = await conn.fetchrow("SELECT cleared_at FROM sessions WHERE tenant = $1 AND session = $2", *key)
            if row is None:
                return None
            return Session(
                tenant_id=tenant_id,
                session_id=session_id,
                messages=tuple(await _messages(conn, *key, None, MAX_MESSAGES)),
                state=await _state(conn, *key),
                cleared_at=row["cleared_at"],
            )

    async def clear(self, tenant_id: str, session_id: str, *, reason: str = "") -> str:
        """End a session's messages and state, by an event. What was said stays in the log. Returns its position.

        Raises:
            NotFoundError: the tenant has no such session. Nothing was written.
        """
        await self._catch_up(tenant_id)
        async with tenant_connection(self._pool, tenant_id) as conn:
            key = (tenant_id, check_session_id(session_id))
            if not await conn.fetchval("SELECT true FROM sessions WHERE tenant = $1 AND session = $2", *key):
                raise NotFoundError(f"tenant {tenant_id!r} has no session {session_id!r}")
        event = AgentEvent(
            id=new_id(),
            tenant_id=tenant_id,
            session_id=session_id,
            task_id="",
            source_agent_id=USER,
            call_chain=(USER,),
            at=datetime.now(UTC),
            body=SessionCleared(reason=reason),
        )
        return await TenantEventBus(self._streams, tenant_id).publish(event)

    async def before_task(self, tenant_id: str, session_id: str, task_id: str, *, limit: int) -> list[SessionMessage]:
        """The newest `limit` messages that the session had when a task was submitted, oldest first.

        Raises:
            UnavailableError: PostgreSQL or Redis is away, or the projections did not catch up in time.
        """
        await self._catch_up(tenant_id)
        async with tenant_connection(self._pool, tenant_id) as conn:
            own = await conn.fetchrow(
                "SELECT ms, seq FROM messages WHERE tenant = $1 AND task = $2 ORDER BY ms, seq LIMIT 1",
                tenant_id,
                task_id,
            )
            return await _messages(conn, tenant_id, session_id, own, limit)

    async def state(self, tenant_id: str, session_id: str) -> dict[str, Json]:
        """The values that agents set in this session, as the log says now."""
        await self._catch_up(tenant_id)
        async with tenant_connection(self._pool, tenant_id) as conn:
            return await _state(conn, tenant_id, session_id)

    async def _catch_up(self, tenant_id: str) -> None:
        await catch_up(self._pool, self._streams.log, tenant_id, timeout_s=self._catch_up_s)


async def _messages(
    conn: Connection, tenant_id: str, session_id: str, before: asyncpg.Record | None, limit: int
) -> list[SessionMessage]:
    place = (None, None) if before is None else (before["ms"], before["seq"])
    rows = await conn.fetch(_MESSAGES, tenant_id, session_id, *place, limit)
    contents = await read_contents(conn, tenant_id, [orjson.loads(row["content"]) for row in rows])
    return [
        SessionMessage(role=row["role"], content=content, task_id=row["task"], position=f"{row['ms']}-{row['seq']}")
        for row, content in reversed(list(zip(rows, contents, strict=True)))
    ]


async def _state(conn: Connection, tenant_id: str, session_id: str) -> dict[str, Json]:
    rows = await conn.fetch(
        "SELECT key, value FROM session_state WHERE tenant = $1 AND session = $2 ORDER BY key", tenant_id, session_id
    )
    contents = await read_contents(conn, tenant_id, [orjson.loads(row["value"]) for row in rows])
    return {row["key"]: content for row, content in zip(rows, contents, strict=True)}
