"""Hears which shards have something ready, without polling: it blocks on the shards' bells while there is nothing."""

import asyncio
import time
from collections.abc import Collection

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from streams.keys import Keys
from streams.pipe import Pipe, RedisClient, open_pipe

SWEEP_S = 1.0
"""A reader looks at every shard this often: for leases that ended, and for bells lost with a connection."""
LISTEN_S = 0.005
"""A busy reader asks for newly rung bells this often, so that no shard waits for the busy ones."""
BUSY_S = 0.001
"""A blocking read that returns this soon found a bell that had been rung before."""
MAX_TOKENS = 256
"""How many tokens of one bell are taken at once."""

Heard = dict[int, set[str]]
"""Shard → what was rung for: the agents that calls wait for, or "1" for a log reader."""


class Doorbell:
    """The bells of one reader, on all shards. Holds one connection while it waits."""

    def __init__(self, redis: RedisClient, pipe: Pipe, keys: Keys, reader: str) -> None:
        """`pipe` is for what is answered at once."""
        self._redis = redis
        self._pipe = pipe
        self._blocking = None if isinstance(redis, RedisCluster) else open_pipe(redis)
        self._bells = [keys.bell(shard, reader) for shard in range(keys.shards)]
        self._listened_at = 0.0
        self._swept_at = 0.0
        # One blocking read serves all bells of one server; a cluster forbids keys of several slots in one command.
        one = self._blocking is not None
        self._groups = [list(range(keys.shards))] if one else [[s] for s in range(keys.shards)]
        self._waits: dict[int, asyncio.Task[tuple[int, str] | None]] = {}

    def sweep_is_due(self) -> bool:
        """True once every `SWEEP_S`, at the first call too: time to look at every shard."""
        now = time.monotonic()
        if now - self._swept_at < SWEEP_S:
            return False
        self._swept_at = now
        return True

    def sweep_again(self) -> None:
        """Bells may have been lost: the next sweep is due now."""
        self._swept_at = 0.0

    async def hear(self, wait_s: float, *, skip: Collection[int] = (), interrupt: asyncio.Event | None = None) -> Heard:
        """What was rung for since the last call; waits for it until `wait_s`, the next sweep or `interrupt`.

        With `wait_s` 0 it asks no more often than every `LISTEN_S`, and not for the shards in `skip`.
        """
        now = time.monotonic()
        wait_s = min(wait_s, self._swept_at + SWEEP_S - now)
        if wait_s > 0:
            return await self._wait(wait_s, interrupt)
        if now - self._listened_at > LISTEN_S:
            return await self._listen(skip)
        return {}

    async def close(self) -> None:
        """Stop waiting."""
        for task in self._waits.values():
            task.cancel()
        await asyncio.gather(*self._waits.values(), return_exceptions=True)
        if self._blocking is not None:
            await self._blocking.close()

    async def _wait(self, wait_s: float, interrupt: asyncio.Event | None) -> Heard:
        asked_at = time.monotonic()
        for index, group in enumerate(self._groups):
            if index not in self._waits:
                self._waits[index] = asyncio.create_task(self._block(group))
        interrupted = None if interrupt is None else asyncio.create_task(interrupt.wait())
        waits = [*self._waits.values(), *([interrupted] if interrupted else [])]
        try:
            await asyncio.wait(waits, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if interrupted is not None:
                interrupted.cancel()
        heard: Heard = {}
        for index, task in list(self._waits.items()):
            if task.done():
                del self._waits[index]
                if (rung := task.result()) is not None:
                    heard.setdefault(rung[0], set()).add(rung[1])
        if heard and time.monotonic() - asked_at < BUSY_S:
            # The bell was rung already: then others may be too, and a blocking read names only the first.
            for shard, tokens in (await self._listen(())).items():
                heard.setdefault(shard, set()).update(tokens)
        return heard

    async def _block(self, group: list[int]) -> tuple[int, str] | None:
        bells = [self._bells[shard] for shard in group]
        if self._blocking is None:
            popped = await self._redis.blpop(bells, timeout=SWEEP_S)
        else:
            (popped,) = await self._blocking.execute([("BLPOP", *bells, str(SWEEP_S))])
        if isinstance(popped, ResponseError):
            raise popped
        if popped is None:
            return None
        name, token = (item.decode() if isinstance(item, bytes) else item for item in popped)
        return self._bells.index(name), token

    async def _listen(self, skip: Collection[int]) -> Heard:
        asked = [shard for shard in range(len(self._bells)) if shard not in skip]
        heard: Heard = {}
        if asked:
            replies = await self._pipe.execute([("LPOP", self._bells[shard], MAX_TOKENS) for shard in asked])
            for shard, tokens in zip(asked, replies, strict=True):
                if isinstance(tokens, ResponseError):
                    raise tokens
                if tokens:
                    heard[shard] = {token.decode() for token in tokens}
        self._listened_at = time.monotonic()
        return heard
