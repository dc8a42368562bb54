"""The fixtures of the suite, on every implementation of the log's server."""

from collections.abc import AsyncIterator, Iterator

import pytest

from streams.connection import Streams, open_streams
from tests.conftest import SHARDS
from tests.contract.servers import implementations, redis_of


@pytest.fixture(scope="session", params=implementations())
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation in turn."""
    with redis_of(request.param) as url:
        yield url


@pytest.fixture
async def streams(redis_url: str) -> AsyncIterator[Streams]:
    """An empty log on it."""
    opened = await open_streams(redis_url, shards=SHARDS)
    await opened.redis.flushall()
    await opened.close()
    opened = await open_streams(redis_url, shards=SHARDS)
    yield opened
    await opened.close()


@pytest.fixture
async def other(streams: Streams, redis_url: str) -> AsyncIterator[Streams]:
    """The same log, as another process has it open."""
    opened = await open_streams(redis_url, shards=SHARDS)
    yield opened
    await opened.close()
