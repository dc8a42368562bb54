"""Opening the log: a Redis client with sane limits, checked and loaded before anything is written."""

from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError, TimeoutError

from schemas.errors import ConfigurationError, SettingError, UnavailableError
from streams.functions import Functions
from streams.keys import META, Keys
from streams.log import Log
from streams.pipe import TIMEOUT_S, RedisClient
from streams.wire import load_library

logger = structlog.get_logger(__name__)

MAX_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Streams:
    """An open log: the client, its keys, its functions, and a reader. One per process."""

    redis: RedisClient
    keys: Keys
    functions: Functions
    log: Log

    async def close(self) -> None:
        """Close every connection. What is still on its way to a function is given up."""
        await self.functions.close()
        await self.redis.aclose()


def _client(url: str, kind: type[Redis] | type[RedisCluster] = Redis) -> RedisClient:
    # Retrying is safe: every function of the library is fenced by a lease or idempotent by a key.
    return kind.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=5,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), 3),
    )


async def open_streams(url: str, *, shards: int) -> Streams:
    """Connect to Redis (one node or a cluster), check that it can hold a log, and load the functions.

    Raises:
        UnavailableError: nobody answers at `url`.
        ConfigurationError: the URL is none, or the server may evict keys, is too old, or holds a log with another
            number of shards.
    """
    try:
        redis = _client(url)
    except ValueError as error:
        raise SettingError(f"REDIS_URL {_without_password(url)!r} cannot be used: {error}") from error
    try:
        info = await redis.info()
        if info.get("redis_mode") == "cluster" or info.get("server_mode") == "cluster":
            await redis.aclose()
            redis = _client(url, RedisCluster)
        _check_server(info)
        await _check_shards(redis, shards)
        await load_library(redis)
    except (RedisConnectionError, TimeoutError, OSError) as error:
        await redis.aclose()
        raise UnavailableError(
            f"Redis cannot be reached at {_without_password(url)}: {error}. Is it running, is REDIS_URL right?"
        ) from error
    except ResponseError as error:
        await redis.aclose()
        raise ConfigurationError(f"Redis at {_without_password(url)} refused a command: {error}") from error
    except BaseException:
        await redis.aclose()
        raise
    keys = Keys(shards)
    return Streams(redis, keys, Functions(redis, keys), Log(redis, keys))


def _check_server(info: dict[str, object]) -> None:
    version = str(info.get("redis_version", "0"))
    if int(version.split(".")[0]) < 7:
        raise ConfigurationError(f"Redis {version} has no functions: version 7.0 or newer is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ConfigurationError(
            f"Redis may evict keys (maxmemory-policy {policy}), and the log would lose facts: "
            "set 'maxmemory-policy noeviction'"
        )


async def _check_shards(redis: RedisClient, shards: int) -> None:
    # Not written without need: a server at its memory limit can be read, and be trimmed.
    if await redis.hget(META, "shards") is None:
        await redis.hsetnx(META, "shards", shards)
    found = int(await redis.hget(META, "shards") or 0)
    if found != shards:
        raise ConfigurationError(
            f"this log has {found} shards and cannot be opened with {shards}: set HEADWATER_SHARDS={found}"
        )


def _without_password(url: str) -> str:
    head, _, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if head else url


async def is_reachable(redis: RedisClient) -> bool:
    """Does Redis answer now?"""
    try:
        return bool(await redis.ping())
    except (RedisError, OSError):
        return False
