"""The typed face of the function library `headwater.lua`, and the one place that sends it.

Calls made in the same turn of the event loop, or while an earlier batch is on its way, travel together in one
pipeline, one FCALL per function and shard. Under load this is what makes a hop cheap; when idle nothing waits.
"""

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import msgpack
import structlog
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError, TimeoutError

from schemas.errors import (
    ConfigurationError,
    HeadwaterError,
    InvalidInputError,
    StaleLeaseError,
    UnavailableError,
)
from streams.keys import META, Keys

log = structlog.get_logger(__name__)

RedisClient = Redis | RedisCluster
Fields = list[str | bytes]
"""The values of one log entry, in the order of `schemas.event.FIELDS`."""
_Group = tuple[str, int, list[tuple[bytes, asyncio.Future[Any]]]]
"""What one FCALL carries: function, shard, and (packed item, future of its reply) pairs."""

MAX_PIPELINES = 2
"""How many pipelines are on their way at once: one is prepared here while the server works on the other."""
MAX_ITEMS_PER_CALL = 64
"""How many items one FCALL carries at most: Redis serves nobody else while a function runs."""


class FunctionError(HeadwaterError):
    """A function of the library refused one item, for a reason that is a defect or a damaged key."""


@dataclass(slots=True)
class TenantBatch:
    """What a log reader leased of one tenant: entries after `start`, up to and including `end`."""

    shard: int
    tenant_id: str
    epoch: int
    start: str
    end: str
    entries: list[tuple[str, list[str]]]
    """(position, flat list of field names and values) per entry."""
    states: dict[str, str]


@dataclass(slots=True)
class NewCall:
    """A call to put on a tenant's queue for `agent_id`; `rank` 0 goes first."""

    call_id: str
    agent_id: str
    rank: int
    body: bytes


@dataclass(slots=True)
class Commit:
    """Everything a log reader makes of one batch. `states` maps an open task to its new state."""

    facts: list[Fields] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    calls: list[NewCall] = field(default_factory=list)
    states: dict[str, bytes] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    parked: list[Fields] = field(default_factory=list)
    notify: list[tuple[str, int]] = field(default_factory=list)
    """(task, 0-based index of its terminal fact in `facts`)"""
    cancels: list[str] = field(default_factory=list)
    """Calls that are not wanted any more: one that waits is dropped, one that runs is told."""


@dataclass(slots=True)
class Delivery:
    """One delivery of a call to a worker; with `delivery`, the fencing token of all it writes."""

    shard: int
    tenant_id: str
    agent_id: str
    call_id: str
    delivery: int
    worker: str
    body: str
    steps: dict[str, str]
    """Step key → position in the log of what an earlier delivery recorded."""
    cancelled: bool = False
    """Its task has ended: what runs is to stop, and to settle what it knows."""
    lease_ends_at: float = math.inf
    """Monotonic seconds until which the lease is held for certain, reckoned from when it was asked for."""

    def lease_over(self) -> bool:
        """Is it unsure whether the lease is still held? Then nothing new may be begun."""
        return time.monotonic() >= self.lease_ends_at


def library_source() -> str:
    """The Lua source of the function library."""
    return resources.files("streams").joinpath("headwater.lua").read_text()


class Functions:
    """Calls the function library. One per process; safe to share between tasks of one event loop."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self._pending: dict[tuple[str, int], list[tuple[bytes, asyncio.Future[Any]]]] = {}
        self._flushers: set[asyncio.Task[None]] = set()
        self._flushing = 0
        self._scheduled = False

    async def append(
        self,
        tenant_id: str,
        *,
        key: str,
        fingerprint: str,
        ttl_ms: int,
        task_id: str,
        fact: Fields,
        blobs: dict[str, bytes],
    ) -> tuple[str, str, str]:
        """Append a producer's fact once per `key`. Returns ("new" | "duplicate" | "conflict", position, task id)."""
        item = {
            "tenant": tenant_id,
            "key": key,
            "fingerprint": fingerprint,
            "ttl_ms": ttl_ms,
            "task": task_id,
            "fact": fact,
            "blobs": list(blobs.items()),
        }
        outcome, position, task = await self._call("append", self.keys.shard_of(tenant_id), item)
        return outcome, position, task

    async def lease(
        self,
        shards: Sequence[int],
        reader: str,
        *,
        lease_ms: int,
        max_tenants: int,
        max_entries: int,
        types: Iterable[str] | None = None,
        states: bool = False,
    ) -> list[list[TenantBatch]]:
        """For each shard, its next ready tenants for `reader`, each with a batch to commit within `lease_ms`."""
        item: dict[str, Any] = {
            "reader": reader,
            "lease_ms": lease_ms,
            "max_tenants": max_tenants,
            "max_entries": max_entries,
            "states": states,
        }
        if types is not None:
            item["types"] = dict.fromkeys(types, True)
        replies = await _all([self._submit("lease", shard, item) for shard in shards])
        for _, damaged in replies:
            _report(reader, damaged)
        return [
            [
                TenantBatch(shard, tenant, epoch, start, end, entries, dict(zip(found[::2], found[1::2], strict=True)))
                for tenant, epoch, start, end, entries, found in batches
            ]
            for shard, (batches, _) in zip(shards, replies, strict=True)
        ]

    async def commit(self, reader: str, commits: Sequence[tuple[TenantBatch, Commit]]) -> list[bool]:
        """Write what came of each batch and move the reader past it. False: the lease was lost, nothing written.

        Raises:
            FunctionError: a batch was refused, because of a damaged key or a defect, and wrote nothing. Each one is
                logged; the other batches are written.
        """
        futures = [
            self._submit("commit", batch.shard, {
                "reader": reader, "tenant": batch.tenant_id, "epoch": batch.epoch, "from": batch.start,
                "to": batch.end, "facts": commit.facts, "blobs": list(commit.blobs.items()),
                "calls": [(c.call_id, c.agent_id, c.rank, c.body) for c in commit.calls],
                "states": list(commit.states.items()), "ended": commit.ended, "parked": commit.parked,
                "notify": [(task, index + 1) for task, index in commit.notify], "cancels": commit.cancels,
            })
            for batch, commit in commits
        ]  # fmt: skip
        await asyncio.wait(futures)
        for (batch, _), future in zip(commits, futures, strict=True):
            if isinstance(error := future.exception(), FunctionError):
                log.error("commit_refused", reader=reader, tenant=batch.tenant_id, error=str(error))
        return [future.result() == 1 for future in futures]

    async def take(
        self, wants: Sequence[tuple[int, Sequence[tuple[str, int]]]], worker: str, *, lease_ms: int
    ) -> list[list[Delivery]]:
        """For each (shard, [(agent, count), …]), up to `count` calls for each agent, in fair order over tenants."""
        lease_ends_at = _from_now(lease_ms)
        futures = [
            self._submit("take", shard, {"worker": worker, "lease_ms": lease_ms, "wants": agents})
            for shard, agents in wants
        ]
        replies = await _all(futures)
        for _, damaged in replies:
            _report("worker", damaged)
        return [
            [
                Delivery(
                    shard,
                    tenant,
                    agent,
                    call,
                    number,
                    worker,
                    body,
                    dict(zip(steps[::2], steps[1::2], strict=True)),
                    cancelled == 1,
                    lease_ends_at,
                )
                for tenant, agent, call, number, body, steps, cancelled in taken
            ]
            for (shard, _), (taken, _) in zip(wants, replies, strict=True)
        ]

    async def record(
        self, delivery: Delivery, *, lease_ms: int, key: str, facts: list[Fields], blobs: dict[str, bytes]
    ) -> str:
        """Append facts of a running call under a step key, once; the last fact is the step's. Renews the lease.

        Returns the position of the step's fact.

        Raises:
            StaleLeaseError: the call was given to another worker, or the lease ended. Nothing was written.
        """
        item = self._token(delivery) | {"lease_ms": lease_ms, "key": key, "facts": facts, "blobs": list(blobs.items())}
        lease_ends_at = _from_now(lease_ms)
        _, position = await self._fenced("record", delivery.shard, item)
        delivery.lease_ends_at = max(delivery.lease_ends_at, lease_ends_at)
        return str(position)

    async def settle(self, delivery: Delivery, *, facts: list[Fields], blobs: dict[str, bytes]) -> None:
        """End a call with its last facts. Raises `StaleLeaseError`: another worker has it, nothing was written."""
        item = self._token(delivery) | {"facts": facts, "blobs": list(blobs.items())}
        await self._fenced("settle", delivery.shard, item)

    async def renew(self, deliveries: Sequence[Delivery], *, lease_ms: int) -> list[bool]:
        """Keep calls for another `lease_ms`. False: that lease was lost. Marks those that were cancelled."""
        lease_ends_at = _from_now(lease_ms)
        futures = [self._submit("renew", d.shard, self._token(d) | {"lease_ms": lease_ms}) for d in deliveries]
        replies = await _all(futures)
        for delivery, reply in zip(deliveries, replies, strict=True):
            delivery.cancelled = delivery.cancelled or reply == ["cancelled"]
            delivery.lease_ends_at = -math.inf if reply == ["stale"] else max(delivery.lease_ends_at, lease_ends_at)
        return [reply != ["stale"] for reply in replies]

    async def reclaim(self, shards: Sequence[int], *, max_calls: int = 100) -> int:
        """Put calls whose lease ended back into their queues, up to `max_calls` a shard. Returns how many."""
        return sum(await _all([self._submit("reclaim", shard, {"max": max_calls}) for shard in shards]))

    @staticmethod
    def _token(delivery: Delivery) -> dict[str, Any]:
        return {"tenant": delivery.tenant_id, "call": delivery.call_id, "worker": delivery.worker,
                "delivery": delivery.delivery}  # fmt: skip

    async def _fenced(self, name: str, shard: int, item: dict[str, Any]) -> Any:
        reply = await self._call(name, shard, item)
        if reply == ["stale"]:
            raise StaleLeaseError(f"{name} of tenant {item['tenant']!r}: the lease is no longer held; nothing written")
        return reply

    async def _call(self, name: str, shard: int, item: dict[str, Any]) -> Any:
        return (await _all([self._submit(name, shard, item)]))[0]

    def _submit(self, name: str, shard: int, item: dict[str, Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            packed = pack(item)
        except (TypeError, ValueError, OverflowError) as error:
            # One item that cannot be sent must not take the others of its pipeline with it.
            future.set_exception(InvalidInputError(f"{name}: a value cannot be sent to Redis: {error}"))
            return future
        self._pending.setdefault((name, shard), []).append((packed, future))
        if self._flushing < MAX_PIPELINES and not self._scheduled:
            self._scheduled = True
            # Counted, for a flusher that has ended is still in the set until the event loop's next turn.
            self._flushing += 1
            flusher = asyncio.create_task(self._flush())
            self._flushers.add(flusher)
            flusher.add_done_callback(self._flushers.discard)
        return future

    async def _flush(self) -> None:
        self._scheduled = False
        try:
            while self._pending:
                pending, self._pending = self._pending, {}
                await self._send([
                    (name, shard, items[i : i + MAX_ITEMS_PER_CALL])
                    for (name, shard), items in pending.items()
                    for i in range(0, len(items), MAX_ITEMS_PER_CALL)
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
            values = [reply] * len(items) if isinstance(reply, Exception) else unpack(reply)
            for (_, future), value in zip(items, values, strict=True):
                _settle(future, value)

    async def _execute(self, groups: list[_Group]) -> list[Any]:
        commands = [
            ("FCALL", f"hw_{name}", 1, self.keys.prefixes[shard], array_of([item for item, _ in items]))
            for name, shard, items in groups
        ]
        replies = await self._pipeline(commands)
        if any(isinstance(r, ResponseError) and "not found" in str(r).lower() for r in replies):
            # The server lost its functions (FUNCTION FLUSH, a failover to an empty replica): put them back once.
            await load_library(self.redis)
            replies = [
                (await self._pipeline([command]))[0] if isinstance(reply, ResponseError) else reply
                for command, reply in zip(commands, replies, strict=True)
            ]
        return replies

    async def _pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipeline = self.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Turns a lost or refused connection to Redis into `UnavailableError`."""
    try:
        yield
    except (RedisConnectionError, TimeoutError, OSError) as error:
        raise UnavailableError(f"Redis cannot be reached: {error}") from error


def _from_now(lease_ms: int) -> float:
    return time.monotonic() + lease_ms / 1000


async def _all(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """The results in order. Raises the first error, after every future is done: none is left unobserved."""
    results = await asyncio.gather(*futures, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _report(reader: str, damaged: Sequence[tuple[str, str]]) -> None:
    for tenant, error in damaged:
        log.error("tenant_damaged", reader=reader, tenant=tenant, error=error)


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


async def load_library(redis: RedisClient) -> None:
    """Load the function library if the server does not have this version of it.

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
    if found < wanted or await redis.hget(META, "library") != mark.encode():
        kwargs = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(redis, RedisCluster) else {}
        await redis.execute_command("FUNCTION", "LOAD", "REPLACE", source, **kwargs)
        await redis.hset(META, "library", mark)
        log.info("functions_loaded", version=wanted)
