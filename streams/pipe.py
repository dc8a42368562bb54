"""Commands to one Redis server, many in flight on one connection: replies come in the order of the commands.

redis-py lends a connection to each pipeline, and reads its replies through a stream, a lock and a timeout for each one:
100 µs of CPU for a command, where this takes 17. It still connects: addresses, TLS, authentication and the database
are its own. A cluster, where commands go to many servers, stays with redis-py altogether.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import hiredis
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, TimeoutError

RedisClient = Redis | RedisCluster
Command = tuple[str | bytes | int, ...]

TIMEOUT_S = 15.0
"""Longer than any blocking read here (at most one second), short enough to notice a dead server."""
RETRIES = 3
FIRST_RETRY_S = 0.05
MAX_RETRY_S = 1.0


class Pipe(Protocol):
    """Sends commands. Safe to share between tasks of one event loop."""

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order; one that Redis refuses is a `redis.exceptions.ResponseError` in its place.

        A lost connection is made anew, and the commands are sent again: only send what may be sent twice.

        Raises:
            redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: nobody answers.
        """
        ...

    async def close(self) -> None:
        """Close what was opened here."""
        ...


def open_pipe(redis: RedisClient, *, timeout_s: float = TIMEOUT_S) -> Pipe:
    """A pipe to what `redis` is connected to. A reply that takes longer than `timeout_s` is given up."""
    return ClusterPipe(redis) if isinstance(redis, RedisCluster) else NodePipe(redis, timeout_s=timeout_s)


class _Replies(asyncio.Protocol):
    """A connection's replies, given to who waits for them, first come, first served."""

    def __init__(self, connection: AbstractConnection) -> None:
        """Take over a connection that redis-py has opened."""
        # Kept: a writer that is collected closes its transport.
        self._writer = connection._writer
        assert self._writer is not None, "it is connected"
        # redis-py takes it for closed from here on.
        connection._reader = connection._writer = None
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=DefaultParser.parse_error)
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int]] = deque()
        self._partial: list[Any] = []
        self._lost: Exception | None = None
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.connection_lost(None)

    @property
    def lost(self) -> bool:
        """Is it of no use any more?"""
        return self._lost is not None

    def send(self, data: bytes, replies: int) -> asyncio.Future[list[Any]]:
        """Send packed commands. The future has so many replies."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            future.set_exception(self._lost)
        else:
            self._waiting.append((future, replies))
            self._transport.write(data)
        return future

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.PushNotification):
                    # The server's own news, such as of its maintenance: nothing asked for.
                    continue
                self._partial.append(reply)
                if self._waiting and len(self._partial) == self._waiting[0][1]:
                    future, _ = self._waiting.popleft()
                    replies, self._partial = self._partial, []
                    if not future.done():
                        future.set_result(replies)
        except RedisError as error:
            self.end(RedisConnectionError(f"what Redis answered cannot be read: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._fail(RedisConnectionError(f"the connection to Redis was lost{'' if exc is None else f': {exc}'}"))

    def end(self, why: Exception) -> None:
        """Close it now. Who waits gets `why`."""
        self._fail(why)
        self._transport.abort()

    def _fail(self, why: Exception) -> None:
        self._lost = self._lost or why
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(why)


class NodePipe:
    """A pipe to one server."""

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._replies: _Replies | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """See `Pipe`."""
        if not commands:
            return []
        # Its annotation describes a tuple of one element, and means any number of them.
        data = b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]
        for tried in range(RETRIES + 1):
            try:
                return await self._try(data, len(commands))
            except (RedisConnectionError, TimeoutError, OSError):
                if tried == RETRIES or self._closed:
                    raise
                await asyncio.sleep(min(MAX_RETRY_S, FIRST_RETRY_S * 2**tried))
        raise AssertionError("the last try returns or raises")

    async def _try(self, data: bytes, count: int) -> list[Any]:
        link = self._replies
        if link is None or link.lost:
            link = await self._connected()
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._give_up, link)
        try:
            replies = await link.send(data, count)
        finally:
            timer.cancel()
        for reply in replies:
            # Such as of a server that is still loading its data.
            if isinstance(reply, RedisConnectionError):
                raise reply
        return replies

    async def _connected(self) -> _Replies:
        async with self._connecting:
            if self._closed:
                raise RedisConnectionError("the connection to Redis was closed")
            if self._replies is None or self._replies.lost:
                connection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
                try:
                    # Once: who waits here tries again.
                    await connection.connect_check_health(check_health=False, retry_socket_connect=False)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                self._replies = _Replies(connection)
            return self._replies

    def _give_up(self, link: _Replies) -> None:
        # What comes after the late reply could not be told from it.
        link.end(TimeoutError(f"Redis did not answer within {self._timeout_s:g} s"))

    async def close(self) -> None:
        """See `Pipe`."""
        self._closed = True
        if self._replies is not None:
            self._replies.end(RedisConnectionError("the connection to Redis was closed"))
            # The transport closes its socket in the event loop's next turn.
            await asyncio.sleep(0)


class ClusterPipe:
    """A pipe to a cluster: redis-py knows which server a key is on."""

    def __init__(self, redis: RedisCluster) -> None:
        self._redis = redis

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """See `Pipe`."""
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    async def close(self) -> None:
        """The client's connections are closed by who opened it."""
