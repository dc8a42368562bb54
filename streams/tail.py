"""Knowing when logs grow: one blocking read for all watchers of a process (on a cluster, one a shard).

A watcher is told that there is something new; it reads it itself, at its own pace and from its own position, so a slow
watcher holds up nobody and nothing is kept for it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import structlog
from redis.asyncio.cluster import RedisCluster

from streams.connection import Streams

logger = structlog.get_logger(__name__)

BLOCK_MS = 250
"""How long one blocking read takes at most, and so how long a tenant waits that begins to be watched meanwhile."""
RETRY_S = 1.0


class Tail:
    """Watches the logs of any tenants. Call `close` at the end."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._cluster = isinstance(streams.redis, RedisCluster)
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._cursors: dict[str, str] = {}
        self._readers: dict[int, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def watch(self, tenant_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever the tenant's log has grown. Clear it, then read, then wait for it."""
        grown = asyncio.Event()
        self._watchers.setdefault(tenant_id, set()).add(grown)
        try:
            if tenant_id not in self._cursors:
                self._cursors[tenant_id] = await self._streams.log.end(tenant_id)
            # What came in before the cursor was known is there to be read.
            grown.set()
            group = self._group(tenant_id)
            reader = self._readers.get(group)
            if reader is None or reader.done():
                self._readers[group] = asyncio.create_task(self._read(group))
            yield grown
        finally:
            watchers = self._watchers[tenant_id]
            watchers.discard(grown)
            if not watchers:
                del self._watchers[tenant_id]
                self._cursors.pop(tenant_id, None)

    async def close(self) -> None:
        """Stop reading."""
        for reader in self._readers.values():
            reader.cancel()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)

    def _group(self, tenant_id: str) -> int:
        # A cluster forbids keys of several slots in one command.
        return self._streams.keys.shard_of(tenant_id) if self._cluster else 0

    async def _read(self, group: int) -> None:
        """Runs while somebody watches."""
        while tenants := {t for t in self._cursors if self._group(t) == group}:
            keys = {self._streams.keys.log(tenant): tenant for tenant in tenants}
            try:
                # One entry is enough to know; the watchers read what they need.
                reply: Any = await self._streams.redis.xread(
                    {key: self._cursors[tenant] for key, tenant in keys.items() if tenant in self._cursors},
                    count=1,
                    block=BLOCK_MS,
                )
                names = reply if isinstance(reply, dict) else [name for name, _ in reply or []]
                for name in names:
                    tenant = keys[name.decode() if isinstance(name, bytes) else name]
                    end = await self._streams.log.end(tenant)
                    if tenant in self._cursors:
                        self._cursors[tenant] = end
                    self._tell(tenant)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logger.warning("tail_failed", error=str(error))
                # Their own reads tell them what is wrong.
                for tenant in tenants:
                    self._tell(tenant)
                await asyncio.sleep(RETRY_S)

    def _tell(self, tenant_id: str) -> None:
        for grown in self._watchers.get(tenant_id, ()):
            grown.set()
