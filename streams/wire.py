"""How calls of the function library travel: packed, in pipelines, with lost connections told apart from refusals.

Calls made in the same turn of the event loop, or while an earlier batch is on its way, travel together in one
pipeline: one FCALL per function, on a cluster per function and shard. Under load this is what makes a hop cheap; when
idle nothing waits.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import msgpack
import structlog
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError, TimeoutError

from schemas.errors import ConfigurationError, HeadwaterError, InvalidInputError, UnavailableError
from streams.keys import META, Keys
from streams.pipe import Command, RedisClient, open_pipe

log = structlog.get_logger(__name__)

_Group = tuple[str, str, list[tuple[bytes, asyncio.Future[Any]]]]
"""What one FCALL carries: function, its key, and (packed item, future of its reply) pairs."""

MAX_PIPELINES = 2
"""How many pipelines are on their way at once: one is prepared here while the server works on the other."""
MAX_ITEMS_PER_CALL = 64
"""How many items one FCALL carries at most: Redis serves nobody else while a function runs."""
MAX_LEASES_PER_CALL = 4
"""The same for `lease`, whose every item may reply hundreds of entries."""


class FunctionError(HeadwaterError):
    """A function of the library refused one item, for a reason that is a defect or a damaged key."""


def library_source() -> str:
    """The Lua source of the function library."""
    return resources.files("streams").joinpath("headwater.lua").read_text()


class FunctionCalls:
    """Sends items to functions. One per process; safe to share between tasks of one event loop."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self._pending: dict[tuple[str, str], list[tuple[bytes, asyncio.Future[Any]]]] = {}
        self._flushers: set[asyncio.Task[None]] = set()
        self._flushing = 0
        self._scheduled = False
        self._closed = False
        self.pipe = open_pipe(redis)
        self._one_node = not isinstance(redis, RedisCluster)

    def _submit(self, name: str, shard: int, item: dict[str, Any]) -> asyncio.Future[Any]:
        return self._submit_to(name, self.keys.prefixes[shard], item)

    def _submit_to(self, name: str, prefix: str, item: dict[str, Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            # On one node an item names its shard itself, and shares its FCALL with those of other shards.
            packed = pack({**item, "at": prefix} if self._one_node else item)
        except (TypeError, ValueError, OverflowError) as error:
            # One item that cannot be sent must not take the others of its pipeline with it.
            future.set_exception(InvalidInputError(f"{name}: a value cannot be sent to Redis: {error}"))
            return future
        if self._closed:
            future.set_exception(UnavailableError(f"{name}: the log was closed by this process"))
            return future
        key = self.keys.prefixes[0] if self._one_node else prefix
        self._pending.setdefault((name, key), []).append((packed, future))
        if self._flushing < MAX_PIPELINES and not self._scheduled:
            self._scheduled = True
            # Counted, for a flusher that has ended is still in the set until the event loop's next turn.
            self._flushing += 1
            flusher = asyncio.create_task(self._flush())
            self._flushers.add(flusher)
            flusher.add_done_callback(self._flushers.discard)
        return future

    async def close(self) -> None:
        """Send nothing any more. What is still on its way is given up, and whoever waits for it is told.

        A flusher that went on would find its connection closed, or open a new one that nobody closes.
        """
        self._closed = True
        flushers = list(self._flushers)
        for flusher in flushers:
            flusher.cancel()
        await asyncio.gather(*flushers, return_exceptions=True)
        left, self._pending = self._pending, {}
        groups = [(name, key, items) for (name, key), items in left.items()]
        _settle_all(groups, UnavailableError("the log was closed before a call was sent"))
        await self.pipe.close()

    async def _flush(self) -> None:
        self._scheduled = False
        try:
            while self._pending:
                pending, self._pending = self._pending, {}
                await self._send([
                    (name, key, items[i : i + most])
                    for (name, key), items in pending.items()
                    for most in (MAX_LEASES_PER_CALL if name == "lease" else MAX_ITEMS_PER_CALL,)
                    for i in range(0, len(items), most)
                ])  # fmt: skip
        finally:
            self._flushing -= 1

    async def _send(self, groups: list[_Group]) -> None:
        try:
            with redis_errors():
                replies = await self._execute(groups)
        except asyncio.CancelledError:
            _settle_all(groups, UnavailableError("Redis was disconnected from while a call was on its way"))
            raise
        except Exception as error:
            _settle_all(groups, error)
            return
        for (_, _, items), reply in zip(groups, replies, strict=True):
            values = [_told(reply)] * len(items) if isinstance(reply, Exception) else unpack(reply)
            for (_, future), value in zip(items, values, strict=True):
                _settle(future, value)

    async def _execute(self, groups: list[_Group]) -> list[Any]:
        commands: list[Command] = [
            ("FCALL", f"hw_{name}", 1, prefix, array_of([item for item, _ in items])) for name, prefix, items in groups
        ]
        replies = await self.pipe.execute(commands)
        if any(isinstance(r, ResponseError) and "not found" in str(r).lower() for r in replies):
            # The server lost its functions (FUNCTION FLUSH, a failover to an empty replica): put them back once.
            await load_library(self.redis, missing=True)
            replies = [
                (await self.pipe.execute([command]))[0] if isinstance(reply, ResponseError) else reply
                for command, reply in zip(commands, replies, strict=True)
            ]
        return replies


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Turns a lost or refused connection to Redis into `UnavailableError`."""
    try:
        yield
    except (RedisConnectionError, TimeoutError, OSError) as error:
        raise UnavailableError(f"Redis cannot be reached: {error}") from error


def _told(refusal: Exception) -> Exception:
    """A server that takes no writes for now is as good as away: who wrote waits, or tells the caller to come again."""
    if isinstance(refusal, OutOfMemoryError):
        return UnavailableError(
            f"Redis is at its memory limit and takes no writes ({refusal}): raise its maxmemory, or let "
            "'headwater trim' remove what is archived"
        )
    # Such as a replica that clients still ask, or a disk that is full.
    if isinstance(refusal, ReadOnlyError) or str(refusal).startswith(("MISCONF", "NOREPLICAS")):
        return UnavailableError(f"Redis takes no writes now: {refusal}")
    return refusal


async def all_of(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """The results in order. Raises the first error, after every future is done: none is left unobserved."""
    results = await asyncio.gather(*futures, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def pack(item: dict[str, Any]) -> bytes:
    """MessagePack for Lua, whose reader knows strings only, not the newer binary type.

    Bytes that came from Redis as surrogate escapes go back as the bytes they were.
    """
    return bytes(msgpack.packb(item, use_bin_type=False, unicode_errors="surrogateescape"))


def array_of(packed: list[bytes]) -> bytes:
    """A MessagePack array of packed items."""
    return b"".join([msgpack.Packer().pack_array_header(len(packed)), *packed])


def unpack(data: bytes) -> Any:
    """MessagePack from Lua. What is not UTF-8 survives as surrogate escapes, for its reader to refuse by name."""
    return msgpack.unpackb(data, unicode_errors="surrogateescape")


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if future.done():
        return
    if isinstance(value, BaseException):
        future.set_exception(value)
    elif isinstance(value, list) and value and value[0] == "error":
        future.set_exception(FunctionError(f"a function refused an item: {value[1]}"))
    else:
        future.set_result(value)


def _settle_all(groups: list[_Group], error: Exception) -> None:
    for _, _, items in groups:
        for _, future in items:
            _settle(future, error)


async def load_library(redis: RedisClient, *, missing: bool = False) -> None:
    """Load the function library if the server does not have this version of it; in a cluster, onto every primary.

    `missing` says that a node was found without it: then another node's having it proves nothing.

    Raises:
        ConfigurationError: the server has a newer one; an old process must not turn it back.
    """
    source = library_source()
    wanted = int(source.split("local VERSION = ", 1)[1].split("\n", 1)[0])
    mark = hashlib.sha256(source.encode()).hexdigest()
    try:
        found = int(await redis.execute_command("FCALL_RO", "hw_version", 1, META))
    except ResponseError:
        found = 0
    if found > wanted:
        raise ConfigurationError(
            f"Redis has version {found} of the Headwater functions, this process brings {wanted}: upgrade this process"
        )
    if missing or found < wanted or await redis.hget(META, "library") != mark.encode():
        await redis.function_load(source, replace=True)
        await redis.hset(META, "library", mark)
        log.info("functions_loaded", version=wanted)
