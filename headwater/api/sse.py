"""Server-sent events over the log: bounded clients, heartbeats, and an end when the server stops."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import orjson
import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from headwater.api.access import Caller
from headwater.api.problems import ApiProblem
from headwater.history import History, Page, event_json
from projections.api_keys import is_active
from projections.db import Pool
from projections.projection import Position, format_position
from schemas.errors import HeadwaterError
from streams.tail import Tail

logger = structlog.get_logger(__name__)

HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for so long is dropped; it can come back with Last-Event-ID."""
CANCEL_AGAIN_S = 0.5
PAGE = 200
RECONNECT_MS = 2000


class EventStream(Response):
    """A response that sends what a generator yields until it ends, the client leaves, or the client is stuck."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes] | None = None) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(leaving)
            await _cancelled(sending)
        error = None if sending.cancelled() else sending.exception()
        if error is not None:
            # The status line is out: all that is left is to end, and the client to come back.
            logger.warning("stream_ended", error=str(error) or type(error).__name__)

    async def _send(self, send: Send) -> None:
        assert self._chunks is not None
        chunks = self._chunks
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in chunks:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]  # an async generator


async def _cancelled(job: "asyncio.Task[None]") -> None:
    # More than once if need be: before Python 3.12, `asyncio.wait_for` can swallow a cancellation that comes just as
    # what it waits for is done, and a client that left would keep its place for ever.
    while not job.done():
        job.cancel()
        await asyncio.wait({job}, timeout=CANCEL_AGAIN_S)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Streamers:
    """The streams of one process. `close` ends them all."""

    def __init__(self, history: History, tail: Tail, pool: Pool, *, max_streams: int) -> None:
        self._history = history
        self._tail = tail
        self._pool = pool
        self._max_streams = max_streams
        self._running = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every stream."""
        self._closing.set()

    def stream(self, caller: Caller, *, after: Position, session_id: str | None, task_id: str | None) -> EventStream:
        """A stream for one client. Raises a problem when there are too many, or the server is stopping."""
        if self._closing.is_set():
            raise ApiProblem(503, "the server is stopping: connect again")
        if self._running >= self._max_streams:
            raise ApiProblem(
                503, f"{self._max_streams} clients follow logs already: try again later, or raise HEADWATER_MAX_STREAMS"
            )
        return EventStream(self._messages(caller, after, session_id, task_id))

    async def _messages(
        self, caller: Caller, after: Position, session_id: str | None, task_id: str | None
    ) -> AsyncIterator[bytes]:
        self._running += 1
        loop = asyncio.get_running_loop()
        closing = asyncio.create_task(self._closing.wait())
        try:
            async with self._tail.watch(caller.tenant_id) as grown:
                yield b"retry: %d\n\n" % RECONNECT_MS
                live, checked_at, spoke_at = False, loop.time(), loop.time()
                while not self._closing.is_set():
                    grown.clear()
                    page = await self._history.page(
                        caller.tenant_id, after=after, limit=PAGE, session_id=session_id, task_id=task_id, live=live
                    )
                    after = page.last
                    if page.entries:
                        yield _lines(caller.tenant_id, page)
                        spoke_at = loop.time()
                    if loop.time() - checked_at >= HEARTBEAT_S:
                        # A key that is revoked ends the streams that it opened, too.
                        if not await is_active(self._pool, caller.key.key_id):
                            return
                        checked_at = loop.time()
                    if page.more:
                        continue
                    live = True
                    await _first_of(grown, closing, spoke_at + HEARTBEAT_S - loop.time())
                    if loop.time() - spoke_at >= HEARTBEAT_S:
                        yield b": still here\n\n"
                        spoke_at = loop.time()
        except HeadwaterError as error:
            logger.warning("stream_ended", tenant=caller.tenant_id, error=str(error))
        finally:
            self._running -= 1
            closing.cancel()


async def _first_of(grown: asyncio.Event, closing: "asyncio.Task[Any]", timeout_s: float) -> None:
    waiting = asyncio.create_task(grown.wait())
    try:
        await asyncio.wait({waiting, closing}, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _lines(tenant_id: str, page: Page) -> bytes:
    messages = []
    for entry in page.entries:
        position = format_position(entry.position)
        if entry.error is None:
            data, kind = orjson.dumps(event_json(tenant_id, entry)), b""
        else:
            data, kind = orjson.dumps({"position": position, "error": entry.error}), b"event: unreadable\n"
        messages.append(b"%bid: %b\ndata: %b\n\n" % (kind, position.encode(), data))
    return b"".join(messages)


@contextlib.contextmanager
def closing_on_signals(streamers: Streamers) -> Iterator[None]:
    """End the streams as soon as the process is told to stop.

    A server waits for its open responses before it ends the lifespan, and these would never end. Whatever handler is
    installed is called as before.
    """
    loop = asyncio.get_running_loop()
    replaced: dict[int, Any] = {}

    def chained(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(streamers.close)
        before = replaced[number]
        if callable(before):
            before(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        # Without a handler in Python the signal ends the process at once, and so it shall.
        if callable(before) and before is not signal.default_int_handler:
            with contextlib.suppress(ValueError):  # not the main thread: it gets no signals
                replaced[number] = before
                signal.signal(number, chained)
    try:
        yield
    finally:
        for signum, previous in replaced.items():
            with contextlib.suppress(ValueError):
                if signal.getsignal(signum) is chained:
                    signal.signal(signum, previous)
