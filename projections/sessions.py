"""Sessions and tasks: what was asked, what came of it, the messages in between, and a session's state (row D1).

Clearing a session ends its messages and state for every later reader. The messages' rows stay, before the session's
`cleared` position; the values of its state go.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from projections.archive import clean
from projections.db import Connection
from projections.projection import Recorded
from schemas.bodies import (
    SessionCleared,
    SessionStateSet,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskForked,
    TaskRouted,
    TaskSubmitted,
)

_INSERT_TASK = """
INSERT INTO tasks (tenant, task, session, status, type, priority, submitted_at, text, data, fork_of)
VALUES ($1, $2, $3, 'submitted', $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING
"""
_ROUTE_TASK = "UPDATE tasks SET status = 'running', routed_by = $3 WHERE tenant = $1 AND task = $2 AND ended_at IS NULL"
_END_TASK = """
UPDATE tasks SET status = $3, ended_at = $4, call_chain = $5, routed_by = coalesce($6, routed_by), decomposed = $7,
    result = $8, agent_results = $9, error = $10, errors = $11
WHERE tenant = $1 AND task = $2
"""
_TOUCH_SESSION = """
INSERT INTO sessions (tenant, session, first_at, last_at, tasks) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant, session) DO UPDATE
SET last_at = greatest(sessions.last_at, excluded.last_at), tasks = sessions.tasks + excluded.tasks
"""
_CLEAR_SESSION = """
UPDATE sessions SET cleared_ms = $3, cleared_seq = $4, cleared_at = $5 WHERE tenant = $1 AND session = $2
"""
_CLEAR_STATE = "DELETE FROM session_state WHERE tenant = $1 AND session = $2"
_UNSET_STATE = "DELETE FROM session_state WHERE tenant = $1 AND session = $2 AND key = $3"
_SET_STATE = """
INSERT INTO session_state (tenant, session, key, value, ms, seq) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant, session, key) DO UPDATE SET value = excluded.value, ms = excluded.ms, seq = excluded.seq
"""

_Session = tuple[str, str]
"""(tenant, session)"""


class Sessions:
    """Tables `sessions`, `tasks`, `messages` and `session_state`. Contents may be blob references, resolved on read."""

    name = "sessions"
    tables: tuple[str, ...] = ("sessions", "tasks", "messages", "session_state")
    event_types: frozenset[str] | None = frozenset(
        body.type
        for body in (
            TaskSubmitted,
            TaskForked,
            TaskRouted,
            TaskCompleted,
            TaskFailed,
            TaskCancelled,
            SessionStateSet,
            SessionCleared,
        )
    )

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """A task's status only moves forward, so a batch may be written kind by kind."""
        submitted, routed, ended, messages = [], [], [], []
        touched: dict[tuple[str, str], list[Any]] = {}
        for entry in batch:
            event, body = entry.event, entry.event.body
            key = (event.tenant_id, event.task_id)
            span = touched.setdefault((event.tenant_id, event.session_id), [event.at, event.at, 0])
            span[1] = max(span[1], event.at)
            match body:
                case TaskSubmitted() | TaskForked():
                    span[2] += 1
                    text = _json(body.text)
                    data = None if body.data is None else _json(body.data)
                    fork_of = clean(body.origin_task_id) if isinstance(body, TaskForked) else None
                    what = (clean(body.task_type), event.priority, event.at, text, data, fork_of)
                    submitted.append((*key, event.session_id, *what))
                    # What a fork asks and answers was not said in the session.
                    if fork_of is None:
                        where = (event.tenant_id, event.session_id, *entry.position)
                        messages.append((*where, "user", event.task_id, text))
                case TaskRouted():
                    routed.append((*key, body.routed_by))
                case TaskCompleted() | TaskFailed() | TaskCancelled():
                    ended.append((*key, *_outcome(entry)))
                    if isinstance(body, TaskCompleted) and body.fork_of is None:
                        where = (event.tenant_id, event.session_id, *entry.position)
                        messages.append((*where, "assistant", event.task_id, _json(body.result)))
        await conn.executemany(_INSERT_TASK, submitted)
        await conn.executemany(_ROUTE_TASK, routed)
        await conn.executemany(_END_TASK, ended)
        await conn.executemany(_TOUCH_SESSION, [(*key, *span) for key, span in sorted(touched.items())])
        await conn.copy_records_to_table(
            "messages", records=messages, columns=("tenant", "session", "ms", "seq", "role", "task", "content")
        )
        await _apply_state(conn, batch)


async def _apply_state(conn: Connection, batch: Sequence[Recorded]) -> None:
    """Clearings and values, the last word of the batch on each."""
    cleared: dict[_Session, tuple[object, ...]] = {}
    values: dict[tuple[str, str, str], tuple[object, ...] | None] = {}
    for entry in batch:
        event, body = entry.event, entry.event.body
        session = (event.tenant_id, event.session_id)
        if isinstance(body, SessionCleared):
            cleared[session] = (*entry.position, event.at)
            values = {key: value for key, value in values.items() if key[:2] != session}
        elif isinstance(body, SessionStateSet):
            is_set = body.value is not None
            values[(*session, body.key)] = (_json(body.value), *entry.position) if is_set else None
    await conn.executemany(_CLEAR_SESSION, [(*session, *where) for session, where in sorted(cleared.items())])
    await conn.executemany(_CLEAR_STATE, sorted(cleared))
    await conn.executemany(_UNSET_STATE, sorted(key for key, value in values.items() if value is None))
    await conn.executemany(_SET_STATE, [(*key, *value) for key, value in sorted(values.items()) if value is not None])


def _outcome(entry: Recorded) -> tuple[object, ...]:
    event, body = entry.event, entry.event.body
    chain = _json(event.call_chain)
    assert isinstance(body, TaskCompleted | TaskFailed | TaskCancelled)
    results = _json(body.agent_results)
    how = (event.at, chain, body.routed_by, body.decomposed)
    if isinstance(body, TaskCompleted):
        return ("completed", *how, _json(body.result), results, None, None)
    if isinstance(body, TaskCancelled):
        return ("cancelled", *how, None, results, _json(body.reason), None)
    errors = _json([error.model_dump(exclude_defaults=True) for error in body.errors])
    return ("failed", *how, None, results, _json(body.reason), errors)


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
