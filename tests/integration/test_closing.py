"""Who closes a log leaves nothing behind: no connection, and nobody who waits for ever."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.settings import Settings
from headwater.simulator import SimulatorConfig, SimulatorProcess
from schemas.errors import UnavailableError
from streams.connection import Streams, open_streams
from streams.doorbell import Doorbell
from tests.conftest import SHARDS
from tests.deciding import submit
from tests.processes import until


@asynccontextmanager
async def writes_wait(streams: Streams) -> AsyncIterator[None]:
    """Redis answers no write meanwhile."""
    await streams.redis.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    try:
        yield
    finally:
        await streams.redis.execute_command("CLIENT", "UNPAUSE")


async def connections(streams: Streams) -> set[int]:
    """Those that Redis knows of."""
    return {int(client["id"]) for client in await streams.redis.client_list()}


async def flushers(streams: Streams, count: int) -> None:
    """Wait until so many pipelines are on their way."""

    async def on_their_way() -> bool:
        return len(streams.functions._flushers) == count

    await until(on_their_way, f"{count} pipelines are on their way")


async def test_a_call_that_nobody_waits_for_leaves_no_connection(streams: Streams, endpoints: Endpoints) -> None:
    before = await connections(streams)
    own = await open_streams(endpoints.redis_url, shards=SHARDS)
    async with writes_wait(streams):
        sent = asyncio.create_task(submit(own, "acme", "x"))
        await flushers(own, 1)
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        await own.close()
        assert not own.functions._flushers

        async def closed() -> bool:
            return await connections(streams) <= before

        await until(closed, "its connections are gone")
    assert await streams.log.read("acme") == []


async def test_who_waits_for_a_call_is_told_that_the_log_was_closed(streams: Streams, endpoints: Endpoints) -> None:
    own = await open_streams(endpoints.redis_url, shards=SHARDS)
    async with writes_wait(streams):
        sent = [asyncio.create_task(submit(own, "acme", "on its way"))]
        await flushers(own, 1)
        sent += [asyncio.create_task(submit(own, "acme", "on its way, too"))]
        await flushers(own, 2)
        # No third pipeline: this one waits for its turn.
        sent += [asyncio.create_task(submit(own, "globex", "waits"))]
        await own.redis.ping()
        await own.close()
        for found in await asyncio.wait_for(asyncio.gather(*sent, return_exceptions=True), 10):
            assert isinstance(found, UnavailableError)
    with pytest.raises(UnavailableError, match="closed"):
        await submit(own, "acme", "later")


async def test_a_wait_that_is_cancelled_leaves_no_task(streams: Streams) -> None:
    doorbell = Doorbell(streams.redis, streams.functions.pipe, streams.keys, "decider")
    doorbell.sweep_is_due()
    before = asyncio.all_tasks()
    hearing = asyncio.create_task(doorbell.hear(1.0, interrupt=asyncio.Event()))

    async def waits() -> bool:
        return len(asyncio.all_tasks() - before) > 2

    await until(waits, "it waits for the bell and for the interrupt")
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    await doorbell.close()
    left = asyncio.all_tasks() - before
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 1)


async def test_a_memory_that_asks_a_provider_leaves_no_connection_to_it(
    streams: Streams, database_url: str, endpoints: Endpoints, settings: Settings
) -> None:
    with SimulatorProcess(SimulatorConfig()) as simulator:
        settings = settings.model_copy(
            update={"embedder": "openai/sim-embed", "llm_base_url": f"{simulator.url}/v1", "llm_api_key": "simulator"}
        )
        async with Headwater(settings, Endpoints(endpoints.redis_url, database_url)) as hw:
            await hw.memory.store("acme", "s", "Ada drinks tea.", agent_id="writer")
            # Looked up, not imported: the provider sets what LiteLLM reads when it is imported.
            litellm = sys.modules["litellm"]
            assert litellm.in_memory_llm_clients_cache.cache_dict
        assert not litellm.in_memory_llm_clients_cache.cache_dict
