"""Dead letters and memories over real HTTP, and through the remote client (contract rows B3, D2 and F1)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx

from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.remote import RemoteHeadwater
from headwater.settings import Settings
from projections.db import Pool
from schemas.task import Accepted
from streams.connection import Streams
from streams.parked import DeadLetters
from tests.deciding import BROKEN, Rule, submit, supervisor, until_types
from tests.processes import until
from tests.projecting import project
from tests.serving import DEADLINE_S, assert_problem, key_of, served


@contextlib.asynccontextmanager
async def parked(
    settings: Settings, endpoints: Endpoints, streams: Streams, rule: Rule
) -> AsyncIterator[dict[str, Accepted]]:
    """A supervisor that could not handle one task of each of two tenants."""
    letters = DeadLetters(streams)
    once = settings.model_copy(update={"retry_delays_s": ()})
    async with supervisor(streams, endpoints, once, rule):
        accepted: dict[str, Accepted] = {}

        async def there() -> bool:
            return all([await letters.count(tenant) == 1 for tenant in accepted])

        # One after the other: two tenants' letters of the same millisecond would have the same id.
        for tenant in ("acme", "globex"):
            accepted[tenant] = await submit(streams, tenant, f"{BROKEN} {tenant}")
            await until(there, "it was parked")
        yield accepted


async def test_a_dead_letter_is_seen_and_redriven_once_by_its_own_tenant(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    rule = Rule()
    async with (
        parked(settings, endpoints, streams, rule) as accepted,
        served(settings, Endpoints(endpoints.redis_url, database_url)) as url,
        httpx.AsyncClient(base_url=url, timeout=DEADLINE_S) as client,
    ):
        acme, reader = await key_of(pool, "acme", "admin"), await key_of(pool, "acme", "read", "submit")
        page = (await client.get("/v1/dead-letters", headers=reader)).json()
        [letter] = page["dead_letters"]
        assert (letter["task"], letter["error"]) == (accepted["acme"].task_id, "LookupError: no such customer")
        assert page["next"] is None
        where = f"/v1/dead-letters/{letter['id']}"
        assert (await client.get(where, headers=reader)).json() == letter
        for answer in (
            await client.get(where, headers=await key_of(pool, "globex", "admin")),
            await client.post(f"{where}/redrive", headers=await key_of(pool, "globex", "admin")),
            await client.delete(where, headers=await key_of(pool, "globex", "admin")),
        ):
            assert_problem(answer, 404, "'globex'")
        assert_problem(await client.post(f"{where}/redrive", headers=reader), 403, "needs admin")
        assert_problem(await client.delete(where, headers=reader), 403, "needs admin")
        assert_problem(await client.get("/v1/dead-letters/x", headers=reader), 422)
        rule.mended = True
        pressed = await asyncio.gather(*(client.post(f"{where}/redrive", headers=acme) for _ in range(5)))
        assert sorted(answer.status_code for answer in pressed) == [200, 404, 404, 404, 404]
        await until_types(
            streams, accepted["acme"], ["task.submitted", "event.parked", "event.redriven", "task.routed"]
        )
        assert (await client.get("/v1/dead-letters", headers=acme)).json()["dead_letters"] == []
        assert_problem(await client.get(where, headers=acme), 404)


async def test_the_remote_client_has_the_same_dead_letters(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    async with (
        parked(settings, endpoints, streams, Rule()) as accepted,
        served(settings, Endpoints(endpoints.redis_url, database_url)) as url,
    ):
        operator = (await key_of(pool, None, "admin"))["Authorization"].removeprefix("Bearer ")
        async with RemoteHeadwater(url, operator) as hw:
            local = DeadLetters(streams)
            for tenant in accepted:
                [letter] = await hw.dead_letters.page(tenant)
                assert [letter] == await local.page(tenant)
                assert await hw.dead_letters.show(tenant, letter.id) == letter
                assert await hw.dead_letters.drop(tenant, letter.id, reason="nonsense") == letter
                await until_types(
                    streams, accepted[tenant], ["task.submitted", "event.parked", "event.dropped", "task.failed"]
                )
                assert await hw.dead_letters.page(tenant) == []


async def test_memories_are_searched_within_the_tenant(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    there = Endpoints(endpoints.redis_url, database_url)
    texts = {"acme": "The customer pays by invoice.", "globex": "The customer pays by credit card."}
    async with (
        served(settings, there) as url,
        httpx.AsyncClient(base_url=url, timeout=DEADLINE_S) as client,
        Headwater(settings, there) as hw,
    ):
        for tenant, text in texts.items():
            await hw.memory.store(tenant, "s1", text, agent_id="researcher")
            await hw.memory.store(tenant, "s1", f"Something else of {tenant}.", agent_id="writer")
        await project(streams, pool)
        for tenant, text in texts.items():
            headers = await key_of(pool, tenant, "read")
            found = (await client.get("/v1/memories", params={"q": "How do they pay?"}, headers=headers)).json()
            assert [memory["text"] for memory in found["memories"]] == [text, f"Something else of {tenant}."]
            assert {memory["tenant"] for memory in found["memories"]} == {tenant}
            one = await client.get("/v1/memories", params={"q": "pay", "agent": "writer", "limit": 1}, headers=headers)
            assert [memory["agent"] for memory in one.json()["memories"]] == ["writer"]
            for bad in ("", "?q=", "?q=%20", "?q=a%00", "?q=a&limit=51"):
                assert_problem(await client.get(f"/v1/memories{bad}", headers=headers), 422)


async def test_without_an_embedder_there_are_no_memories_and_everything_else(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    without = settings.model_copy(update={"embedder": "none"})
    async with (
        served(without, Endpoints(endpoints.redis_url, database_url)) as url,
        httpx.AsyncClient(base_url=url, headers=await key_of(pool, "acme"), timeout=DEADLINE_S) as client,
    ):
        refused = await client.get("/v1/memories", params={"q": "anything"})
        assert_problem(refused, 503, "long-term memory is not available")
        assert (await client.get("/v1/events")).status_code == 200
