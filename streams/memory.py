"""How full Redis is. It evicts nothing: when it is over its limit, it refuses to append."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from streams.connection import Streams
from streams.wire import redis_errors

SOCKET = "socket"
"""The name of a node that is reached by a Unix socket, whose path may be another at each start."""


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What one node that takes writes holds in memory."""

    node: str
    """host:port, or `SOCKET`."""
    used_bytes: int
    limit_bytes: int
    """Its `maxmemory`; 0: none was set."""


async def node_memory(streams: Streams) -> list[NodeMemory]:
    """The memory of every primary. Raises `UnavailableError` if Redis is away."""
    redis: Any = streams.redis
    with redis_errors():
        if isinstance(redis, RedisCluster):
            found: Mapping[str, Any] = {
                node.name: await redis.info("memory", target_nodes=node) for node in redis.get_primaries()
            }
        else:
            found = {_name(redis): await redis.info("memory")}
    return [
        NodeMemory(name, int(info["used_memory"]), int(info.get("maxmemory", 0)))
        for name, info in sorted(found.items())
    ]


def _name(redis: Redis) -> str:
    where = redis.connection_pool.connection_kwargs
    return SOCKET if "path" in where else f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
