"""What waits in Redis: how far each reader is behind, and calls that are queued or running.

Reading it is bounded whatever the number of tenants: a set per shard is counted, and only its first `SAMPLE` tenants
are looked into.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from streams.connection import Streams
from streams.wire import redis_errors

READERS = ("decider", "projector")
SAMPLE = 20
"""Tenants that are looked into, per shard and reader (or agent): those whose turn is next."""

SCAN_KEYS = 1_000
SCAN_TENANTS = 500
"""How many keys are gone through, and how many tenants are looked into, in one step."""

Place = tuple[str, str]
"""(tenant, position in its log)"""


@dataclass(frozen=True, slots=True)
class ReaderBacklog:
    """What a reader of the log has before it. `tenants` is exact; `places` are where it stands in some of them."""

    reader: str
    tenants: int
    """Tenants with facts that were not read, or are being read."""
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls without a result. `queued` is exact up to `SAMPLE` tenants per agent and shard, else a lower bound."""

    queued: int
    running: int


async def reader_backlog(streams: Streams, reader: str) -> ReaderBacklog:
    """How far `reader` is behind. Raises `UnavailableError` if Redis is away."""
    redis, keys = streams.redis, streams.keys
    pipeline = redis.pipeline(transaction=False)
    for shard in range(keys.shards):
        pipeline.zcard(keys.ready(shard, reader))
        pipeline.zrange(keys.ready(shard, reader), 0, SAMPLE - 1)
    with redis_errors():
        replies = await pipeline.execute()
    tenants = [name.decode() for names in replies[1::2] for name in names]
    pipeline = redis.pipeline(transaction=False)
    for tenant in tenants:
        pipeline.hget(keys.readers(tenant), reader)
    with redis_errors():
        read = await pipeline.execute() if tenants else []
    places = tuple((tenant, value.decode() if value else "0-0") for tenant, value in zip(tenants, read, strict=True))
    return ReaderBacklog(reader, sum(replies[::2]), places)


async def read_places(streams: Streams, reader: str) -> AsyncIterator[list[Place]]:
    """Where `reader` stands in the log of every tenant that it has read, some tenants at a time.

    Goes through all keys of Redis, which takes a second a million; Redis serves others in between. A tenant may come
    twice. Raises `UnavailableError` if Redis is away.
    """
    redis, keys = streams.redis, streams.keys
    with redis_errors():
        names: list[bytes] = []
        async for name in redis.scan_iter(match=keys.any_readers, count=SCAN_KEYS):
            names.append(name)
            if len(names) == SCAN_TENANTS:
                yield await _places(streams, names, reader)
                names = []
        if names:
            yield await _places(streams, names, reader)


async def _places(streams: Streams, names: Sequence[bytes], reader: str) -> list[Place]:
    tenants = [tenant for name in names if (tenant := streams.keys.tenant_of(name.decode(errors="replace")))]
    pipeline = streams.redis.pipeline(transaction=False)
    for tenant in tenants:
        pipeline.hget(streams.keys.readers(tenant), reader)
    read = await pipeline.execute() if tenants else []
    return [(tenant, value.decode()) for tenant, value in zip(tenants, read, strict=True) if value]


async def oldest_unread_s(streams: Streams, places: Sequence[Place]) -> float:
    """The age in seconds of the oldest fact after any of these places; 0 where there is none.

    By Redis' own clock, which also made the positions. Raises `UnavailableError` if Redis is away.
    """
    pipeline = streams.redis.pipeline(transaction=False)
    for tenant, position in places:
        pipeline.xrange(streams.keys.log(tenant), f"({position}", "+", count=1)
    with redis_errors():
        found = await pipeline.execute() if places else []
        seconds, microseconds = await streams.redis.time()
    now_ms = seconds * 1000 + microseconds // 1000
    return max((now_ms - int(entries[0][0].split(b"-")[0]) for entries in found if entries), default=0) / 1000


async def calls(streams: Streams, agents: Iterable[str]) -> Calls:
    """Calls that wait for one of `agents`, and calls that any worker runs. Raises `UnavailableError`."""
    redis, keys = streams.redis, streams.keys
    waiting = [(shard, agent) for agent in sorted(set(agents)) for shard in range(keys.shards)]
    pipeline = redis.pipeline(transaction=False)
    for shard in range(keys.shards):
        pipeline.zcard(keys.leases(shard))
    for shard, agent in waiting:
        pipeline.zcard(keys.ready(shard, f"agent:{agent}"))
    with redis_errors():
        replies = await pipeline.execute()
    running = sum(replies[: keys.shards])
    busy = [(place, count) for place, count in zip(waiting, replies[keys.shards :], strict=True) if count]
    pipeline = redis.pipeline(transaction=False)
    for (shard, agent), _ in busy:
        pipeline.zrange(keys.ready(shard, f"agent:{agent}"), 0, SAMPLE - 1)
    with redis_errors():
        sampled = await pipeline.execute() if busy else []
    pipeline = redis.pipeline(transaction=False)
    queued = 0
    for ((_, agent), count), tenants in zip(busy, sampled, strict=True):
        queued += count - len(tenants)  # each of them has one call at least
        for tenant in tenants:
            pipeline.zcard(keys.queue(tenant.decode(), agent))
    with redis_errors():
        queued += sum(await pipeline.execute()) if busy else 0
    return Calls(queued, running)
