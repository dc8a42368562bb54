"""Real servers for the whole suite: those given by REDIS_URL and DATABASE_URL, containers, or the embedded ones."""

import gc
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import ClientSession

from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.db import Pool, connect, create_database, drop_database, migrate
from streams.connection import Streams, open_streams
from tests.containers import serving

SHARDS = 4


@pytest.fixture(scope="session")
def endpoints() -> Iterator[Endpoints]:
    """Where Redis and PostgreSQL answer, for the whole session."""
    with serving() as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def _leaks_are_found_here() -> Iterator[None]:
    """What a module leaves open is reported at its end, not in some later test that has nothing to do with it."""
    yield
    gc.collect()
    # LiteLLM holds its HTTP clients in a cache of its own, where the collector finds nothing to complain of.
    left = [found for found in gc.get_objects() if type(found) is ClientSession and not found.closed]
    assert not left, "HTTP clients are left open: close the LitellmProvider that made them"


@pytest.fixture
def settings() -> Settings:
    """Settings that do not depend on the environment of whoever runs the tests."""
    return Settings(shards=SHARDS, lease_ms=5_000, llm_retry_ms=1, log_level="warning")


@pytest.fixture
async def streams(endpoints: Endpoints) -> AsyncIterator[Streams]:
    """An empty log."""
    opened = await open_streams(endpoints.redis_url, shards=SHARDS)
    await opened.redis.flushall()
    await opened.close()
    opened = await open_streams(endpoints.redis_url, shards=SHARDS)
    yield opened
    await opened.close()


@pytest.fixture
async def other(streams: Streams, endpoints: Endpoints) -> AsyncIterator[Streams]:
    """The same log, as another process has it open."""
    opened = await open_streams(endpoints.redis_url, shards=SHARDS)
    yield opened
    await opened.close()


@pytest.fixture
async def database_url(endpoints: Endpoints) -> AsyncIterator[str]:
    """An empty database of its own."""
    url = await create_database(endpoints.database_url)
    yield url
    await drop_database(endpoints.database_url, url)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """A migrated database."""
    opened = await connect(database_url)
    await migrate(opened)
    yield opened
    await opened.close()
