"""The log over HTTP: by pages, or as a stream that goes on."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Header, Path, Query, Request, Response

from headwater.api.access import Reader
from headwater.api.models import POSITION_PATTERN, SESSION_ID_PATTERN, TASK_ID_PATTERN, EventOut, EventsOut
from headwater.api.models import UnreadableOut as Unreadable
from headwater.api.parts import Connection, router
from headwater.api.problems import problems
from headwater.api.sse import EventStream, Streamers
from headwater.history import check_position, event_json
from projections.projection import Position, format_position

events = router("events")

MAX_PAGE = 1000
After = Annotated[
    str, Query(pattern=POSITION_PATTERN, description="Only after this position; 0-0 is the beginning of the log.")
]
OneSession = Annotated[str | None, Query(pattern=SESSION_ID_PATTERN, description="Only this session.")]
OneTask = Annotated[str | None, Query(pattern=TASK_ID_PATTERN, description="Only this task.")]


@events.get("/events", summary="Read the log, a page at a time")
async def page(
    caller: Reader,
    hw: Connection,
    after: After = "0-0",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="At most so many events.")] = 100,
    session: OneSession = None,
    task: OneTask = None,
) -> EventsOut:
    """Events in log order, also those that were trimmed from the stream. A filtered page may be short, or even empty,
    and not be the last one: go on while there is a `next`."""
    found = await hw.history.page(
        caller.tenant_id,
        after=check_position(after, "after"),
        limit=limit,
        session_id=session,
        task_id=task,
    )
    last = format_position(found.last)
    more = {"after": last, "limit": limit, "session": session, "task": task}
    return EventsOut(
        events=[EventOut(**event_json(caller.tenant_id, one)) for one in found.entries if one.error is None],
        unreadable=[
            Unreadable(position=format_position(one.position), error=one.error)
            for one in found.entries
            if one.error is not None
        ],
        last=last,
        next="/v1/events?" + urlencode({k: v for k, v in more.items() if v is not None}) if found.more else None,
    )


@events.get(
    "/events/stream",
    summary="Follow the log (server-sent events)",
    status_code=200,
    response_class=EventStream,
    responses={
        200: {
            "description": "Each event is a message whose `id` is its position and whose `data` is its JSON, as in "
            "`GET /v1/events`; an entry that is no event is a message of the type `unreadable`. A comment comes every "
            "15 s while nothing happens. A client that reconnects with `Last-Event-ID` misses nothing.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def stream(
    request: Request,
    caller: Reader,
    hw: Connection,
    after: Annotated[
        str,
        Query(
            pattern=rf"{POSITION_PATTERN}|^end$",
            description="Only after this position: 0-0 is the beginning of the log, 'end' the newest event of now.",
        ),
    ] = "0-0",
    session: OneSession = None,
    task: OneTask = None,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", pattern=POSITION_PATTERN, description="Instead of `after`.")
    ] = None,
) -> EventStream:
    """All events after a position, then new ones as they come, until the client or the server ends it."""
    streamers: Streamers = request.app.state.streamers
    start: Position
    if last_event_id is not None:
        start = check_position(last_event_id, "Last-Event-ID")
    elif after == "end":
        start = await hw.history.end(caller.tenant_id)
    else:
        start = check_position(after, "after")
    return streamers.stream(caller, after=start, session_id=session, task_id=task)


@events.get(
    "/blobs/{sha256}",
    summary="Read a large content",
    response_class=Response,
    responses={
        200: {"description": "The content: any JSON value.", "content": {"application/json": {"schema": {}}}},
        **problems(404),
    },
)
async def content(
    caller: Reader,
    hw: Connection,
    sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description='What `{"$blob": …}` in an event names.')],
) -> Response:
    """A content that an event refers to because it is large, as the JSON whose SHA-256 it is."""
    return Response(await hw.history.blob(caller.tenant_id, sha256), media_type="application/json")
