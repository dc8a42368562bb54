"""Which shards a reader should look at, without polling: it blocks on the shards' bells while nothing is ready."""

import asyncio
import time

from redis.asyncio.cluster import RedisCluster

from streams.functions import RedisClient
from streams.keys import Keys

SWEEP_S = 1.0
"""An idle reader looks at every shard this often: for leases that ended, and for bells lost with a connection."""
LISTEN_S = 0.005
"""A busy reader asks for newly rung bells this often, so that no shard waits for the busy ones."""
BUSY_S = 0.001
"""A blocking read that returns this soon found a bell that had been rung before."""


class Doorbell:
    """Tracks the *hot* shards of one reader: those that may have something ready."""

    def __init__(self, redis: RedisClient, keys: Keys, reader: str) -> None:
        self._redis = redis
        self._bells = [keys.bell(shard, reader) for shard in range(keys.shards)]
        self._hot = set(range(keys.shards))
        self._listened_at = 0.0
        self.swept = True
        """True when the last call of `shards` was a sweep over all of them."""
        # One blocking read serves all bells of one server; a cluster forbids keys of several slots in one command.
        cluster = isinstance(redis, RedisCluster)
        self._groups = [[s] for s in range(keys.shards)] if cluster else [list(range(keys.shards))]
        self._waits: dict[int, asyncio.Task[int | None]] = {}

    async def shards(self) -> list[int]:
        """The shards to look at now; waits up to `SWEEP_S` while there are none, then returns all."""
        self.swept = False
        if not self._hot:
            await self._wait()
        elif time.monotonic() - self._listened_at > LISTEN_S:
            await self._listen()
        return sorted(self._hot)

    def cold(self, shard: int) -> None:
        """Nothing is ready in this shard until its bell rings."""
        self._hot.discard(shard)

    async def close(self) -> None:
        """Stop waiting."""
        for task in self._waits.values():
            task.cancel()
        await asyncio.gather(*self._waits.values(), return_exceptions=True)

    async def _wait(self) -> None:
        asked_at = time.monotonic()
        for index, group in enumerate(self._groups):
            if index not in self._waits:
                self._waits[index] = asyncio.create_task(self._block(group))
        await asyncio.wait(self._waits.values(), return_when=asyncio.FIRST_COMPLETED)
        rung = set()
        for index, task in list(self._waits.items()):
            if task.done():
                del self._waits[index]
                rung.add(task.result())
        if rung == {None}:
            self._hot = set(range(len(self._bells)))
            self.swept = True
        else:
            self._hot = {shard for shard in rung if shard is not None}
            if time.monotonic() - asked_at < BUSY_S:
                # The bell was rung already: then others may be too, and a blocking read names only the first.
                await self._listen()
        self._listened_at = time.monotonic()

    async def _block(self, group: list[int]) -> int | None:
        popped = await self._redis.blpop([self._bells[shard] for shard in group], timeout=SWEEP_S)
        if popped is None:
            return None
        name = popped[0]
        return self._bells.index(name.decode() if isinstance(name, bytes) else name)

    async def _listen(self) -> None:
        cold = [shard for shard in range(len(self._bells)) if shard not in self._hot]
        if cold:
            pipeline = self._redis.pipeline(transaction=False)
            for shard in cold:
                pipeline.lpop(self._bells[shard])
            rung = await pipeline.execute()
            self._hot.update(shard for shard, token in zip(cold, rung, strict=True) if token is not None)
        self._listened_at = time.monotonic()
