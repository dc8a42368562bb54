"""Sessions over HTTP: look at one, clear one."""

from typing import Annotated

from fastapi import Path, Query

from headwater.api.access import Reader, Submitter
from headwater.api.models import SESSION_ID_PATTERN, ClearedOut, SessionOut
from headwater.api.parts import Connection, router
from headwater.api.problems import problems
from schemas.errors import NotFoundError

sessions = router("sessions")

SessionId = Annotated[str, Path(pattern=SESSION_ID_PATTERN, description="The session's id.")]


@sessions.get("/sessions/{session_id:path}", summary="Look at a session", responses=problems(404))
async def session(caller: Reader, hw: Connection, session_id: SessionId) -> SessionOut:
    """A session's messages in order, its tasks, and its exact cost."""
    found = await hw.session(caller.tenant_id, session_id)
    if found is None:
        raise NotFoundError(f"tenant {caller.tenant_id!r} has no session {session_id!r}")
    return SessionOut(**found)


@sessions.delete("/sessions/{session_id:path}", status_code=202, summary="Clear a session", responses=problems(404))
async def clear(
    caller: Submitter,
    hw: Connection,
    session_id: SessionId,
    reason: Annotated[str, Query(max_length=2000, pattern=r"^[^\x00]*$", description="Why; kept in the log.")] = "",
) -> ClearedOut:
    """Clear a session: its messages so far are not part of any later context. The log keeps what happened."""
    position = await hw.clear_session(caller.tenant_id, session_id, reason=reason)
    return ClearedOut(session=session_id, position=position)
