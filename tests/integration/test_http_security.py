"""Who gets in, as whom, and what a hostile request gets: contract rows F1 and B2, invariant I8."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from headwater.api import guard
from headwater.app import create_app
from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.api_keys import SCOPES, create_key, list_keys, revoke_key
from projections.db import Pool, tenant_connection
from schemas.bodies import LlmAttempted, TaskCompleted
from schemas.content import canonical_json, content_hash
from schemas.errors import InvalidInputError
from schemas.money import TokenCounts
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.retries import ORIGIN
from tests.projecting import event, project
from tests.serving import assert_problem, key_of, served

SECRET = "swordfish"
"""Planted wherever tenant globex can have text of its own."""
LARGE = SECRET * 1000
"""So large that it stands in a blob."""
LIMIT = 64 * 1024


@dataclass
class Site:
    """A running application; tenant globex has a task, a session, costs and events full of `SECRET`."""

    url: str
    client: httpx.AsyncClient
    pool: Pool
    streams: Streams
    task_id: str
    event_id: str
    letter_id: str


@pytest.fixture
async def site(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> AsyncIterator[Site]:
    bus = TenantEventBus(streams, "globex")
    accepted = await bus.submit(
        NewTask(tenant="globex", session=SECRET, text=SECRET, data={SECRET: SECRET}, idempotency_key=SECRET)
    )
    await bus.submit(NewTask(tenant="globex", session=SECRET, text=LARGE))
    for body in (attempt(), TaskCompleted(result=SECRET, routed_by="rules", agent_results={SECRET: SECRET})):
        await bus.publish(event(body, "globex", session=SECRET, task=accepted.task_id, agent=SECRET))
    origin = dict(zip(ORIGIN, ("decider", "1-0", "w", "1", SECRET, ""), strict=True))
    entry: dict[Any, Any] = {**origin, "task": SECRET, "text": SECRET}
    letter = await streams.redis.xadd(streams.keys.parked("globex"), entry)
    there = Endpoints(endpoints.redis_url, database_url)
    async with Headwater(settings, there) as hw:
        event_id = await hw.memory.store("globex", SECRET, SECRET, agent_id=SECRET)
    await project(streams, pool)
    small = settings.model_copy(update={"max_request_bytes": LIMIT, "max_wait_s": 0.2})
    async with (
        served(small, there) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        letter_id = letter.decode() if isinstance(letter, bytes) else letter
        yield Site(url, client, pool, streams, accepted.task_id, event_id, letter_id)


def attempt() -> LlmAttempted:
    return LlmAttempted(
        call_id="c",
        ordinal=0,
        attempt=1,
        delivery=1,
        agent_id=SECRET,
        tier="fast",
        requested_model=f"openai/{SECRET}",
        params={},
        request_hash="0",
        request=SECRET,
        response=SECRET,
        status="ok",
        started_at=datetime.now(UTC),
        ended_at=datetime.now(UTC),
        duration_us=1,
        tokens=TokenCounts(input_uncached=10),
        cost_usd="0.5",
        cost_status="priced",
    )


def operations() -> Iterator[tuple[str, str]]:
    """(method, path) of everything under /v1, from the application's own description."""
    for path, methods in create_app(Settings()).openapi()["paths"].items():
        for method in methods:
            if path.startswith("/v1/"):
                yield method.upper(), path


OPERATIONS = sorted(operations())
_BODIES = {"/v1/tasks": {"session": "s", "text": "t"}}


def filled(path: str, site: Site) -> str:
    """A path with real ids of globex."""
    ids = {"task_id": site.task_id, "other_id": site.task_id, "sha256": content_hash(canonical_json(LARGE))}
    where = path.format(session_id=SECRET, letter_id=site.letter_id, event_id=site.event_id, **ids)
    return where + ("?q=anything" if path == "/v1/memories" else "")


async def answer(site: Site, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, httpx.Headers]:
    """Status, text and headers; of a stream, what it sends at once."""
    where = filled(path, site)
    async with site.client.stream(method, where, headers=headers, json=_BODIES.get(path)) as response:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            # An acme without events would say no more than this first line.
            text = ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    async for part in response.aiter_text():
                        text += part
                        if "\ndata: " in text:
                            break
            return response.status_code, text, response.headers
        return response.status_code, (await response.aread()).decode(), response.headers


def test_every_operation_is_here() -> None:
    assert len(OPERATIONS) >= 14
    assert ("GET", "/v1/events/stream") in OPERATIONS


async def test_nothing_under_v1_answers_without_a_good_key(site: Site) -> None:
    key, text = await create_key(site.pool, "globex", SCOPES)
    gone, revoked = await create_key(site.pool, "globex", SCOPES)
    await revoke_key(site.pool, gone.key_id)
    prefix, _, secret = text.rpartition("_")
    bad = [
        "",
        "Bearer",
        f"Basic {text}",
        f"Bearer {text}x",
        f"Bearer {text[:-1]}",
        f"Bearer {prefix}_{'A' * 43}",
        f"Bearer hw_{'0' * 24}_{secret}",
        f"Bearer {revoked}",
        f"Bearer hw_{key.key_id}_' OR true --",
        "Bearer hw_\u00e9",
        "Bearer " + "x" * 5000,
    ]
    for method, path in OPERATIONS:
        for value in bad:
            headers = [(b"authorization", value.encode("latin-1"))] if value else []
            where = filled(path, site)
            response = await site.client.request(method, where, headers=headers, json=_BODIES.get(path))
            assert_problem(response, 401)
            assert response.headers["www-authenticate"].startswith('Bearer realm="headwater"')
            assert SECRET not in response.text


async def test_no_answer_to_one_tenant_holds_anything_of_another(site: Site) -> None:
    globex, acme = await key_of(site.pool, "globex", "admin"), await key_of(site.pool, "acme", "admin")
    for method, path in OPERATIONS:
        _, text, _ = await answer(site, method, path, acme)
        # What the request itself named may be named in the answer.
        assert SECRET not in re.sub(r"(session|task) '[^']*'", "", text), (method, path)
        status, text, _ = await answer(site, method, path, acme | {"Headwater-Tenant": "globex"})
        assert status == 403, (method, path)
        assert SECRET not in text
    for method, path in OPERATIONS:
        # What a decision cost names no text of the tenant's where nothing was spent under it, and a list of forks has
        # ids and costs only. Verifying needs a team, which this application has none of.
        if method == "GET" and not path.startswith("/v1/costs/decisions") and not path.endswith(("/verify", "/forks")):
            status, text, _ = await answer(site, method, path, globex)
            assert (status, SECRET in text) == (200, True), f"{path}: no marker where it could leak from"


async def test_metrics_of_a_tenants_key_are_its_own(site: Site) -> None:
    theirs = await site.client.get("/metrics", headers=await key_of(site.pool, "globex", "read"))
    assert SECRET in theirs.text
    ours = await site.client.get("/metrics", headers=await key_of(site.pool, "acme", "read"))
    assert ours.status_code == 200
    assert SECRET not in ours.text
    assert "globex" not in ours.text
    operator = await site.client.get("/metrics", headers=await key_of(site.pool, None, "admin"))
    assert 'tenant_id="globex"' in operator.text
    assert_problem(await site.client.get("/metrics", headers=await key_of(site.pool, "acme", "submit")), 403)


async def test_metrics_without_a_key_are_for_this_machine_only(site: Site) -> None:
    assert (await site.client.get("/metrics")).status_code == 200
    for headers in ({"X-Forwarded-For": "203.0.113.9"}, {"Host": "evil.example"}, {"Forwarded": "for=203.0.113.9"}):
        assert_problem(await site.client.get("/metrics", headers=headers), 401, "HEADWATER_METRICS_PORT")
    assert_problem(await site.client.get("/metrics", headers={"Authorization": "Bearer no"}), 401)


async def test_what_is_open_stays_open_and_tells_nothing(site: Site) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/asyncapi", "/asyncapi.json"):
        response = await site.client.get(path)
        assert response.status_code == 200, path
        assert SECRET not in response.text
        assert "globex" not in response.text


async def test_the_documentation_loads_nothing_from_elsewhere(site: Site) -> None:
    for path in ("/docs", "/asyncapi"):
        page = (await site.client.get(path)).text
        loaded = re.findall(r'(?:src|href)="?([^" >]+)', page)
        assert loaded
        for link in loaded:
            assert link.startswith("/"), link
            assert (await site.client.get(link)).status_code == 200, link
    assert "swagger-ui-bundle.js" in (await site.client.get("/docs")).text


async def test_scopes(site: Site) -> None:
    submit, read = await key_of(site.pool, "acme", "submit"), await key_of(site.pool, "acme", "read")
    task = {"session": "s", "text": "t"}
    assert (await site.client.get("/v1/costs", headers=read)).status_code == 200
    assert (await site.client.post("/v1/tasks", json=task, headers=submit)).status_code == 202
    refused = await site.client.post("/v1/tasks", json=task, headers=read)
    assert_problem(refused, 403, "needs submit")
    assert 'scope="submit"' in refused.headers["www-authenticate"]
    assert_problem(await site.client.post("/v1/tasks/x/cancel", headers=read), 403)
    assert_problem(await site.client.delete("/v1/sessions/x", headers=read), 403)
    for other in (read, submit):
        assert_problem(await site.client.post("/v1/dead-letters/1-0/redrive", headers=other), 403, "needs admin")
        assert_problem(await site.client.delete("/v1/dead-letters/1-0", headers=other), 403, "needs admin")
    for path in ("/v1/events", "/v1/events/stream", "/v1/costs", "/v1/tasks/x", "/v1/sessions/x", "/v1/dead-letters"):
        assert_problem(await site.client.get(path, headers=submit), 403, "needs read")


async def test_keys_are_stored_hashed_and_seen_by_their_tenant_without_the_hash(site: Site) -> None:
    key, text = await create_key(site.pool, "acme", ["read"], "for the tests")
    await create_key(site.pool, "globex", ["read"], SECRET)
    rows = await site.pool.fetch("SELECT * FROM api_keys")
    assert text.rpartition("_")[2] not in str([dict(row) for row in rows])
    async with tenant_connection(site.pool, "acme") as conn:
        assert [row["id"] for row in await conn.fetch("SELECT id, tenant, name FROM api_keys")] == [key.key_id]
    with pytest.raises(Exception, match="permission denied"):
        async with tenant_connection(site.pool, "acme") as conn:
            await conn.fetch("SELECT secret_sha256 FROM api_keys")
    assert [found.key_id for found in await list_keys(site.pool, "acme")] == [key.key_id]


@pytest.mark.parametrize(
    ("tenant", "scopes", "name"),
    [("acme", [], ""), ("acme", ["root"], ""), (None, ["read"], ""), ("a:b", ["read"], ""), ("acme", ["read"], "\x00")],
)
async def test_keys_that_make_no_sense_are_not_made(
    pool: Pool, tenant: str | None, scopes: list[str], name: str
) -> None:
    with pytest.raises(InvalidInputError):
        await create_key(pool, tenant, scopes, name)
    assert await list_keys(pool) == []


async def test_a_body_over_the_limit_is_refused_while_it_comes(site: Site) -> None:
    headers = await key_of(site.pool, "acme")
    announced = await site.client.post("/v1/tasks", content=b" " * (LIMIT + 1), headers=headers)
    assert_problem(announced, 413, "65,536 bytes")
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * LIMIT:
            sent += 8192
            yield b" " * 8192
            await asyncio.sleep(0)

    chunked = httpx.AsyncClient(base_url=site.url, headers=headers, timeout=20)
    async with chunked:
        # The server answers and closes; whether the client still gets to read it depends on the network between.
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):
            assert_problem(await chunked.post("/v1/tasks", content=endless()), 413)
    assert sent < 100 * LIMIT
    # Refused before anything of the body is read.
    stranger = await site.client.post("/v1/tasks", content=b" " * (LIMIT + 1))
    assert_problem(stranger, 401)


async def test_a_body_that_does_not_arrive_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.2)
    parts = urlsplit(site.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    key = (await key_of(site.pool, "acme"))["Authorization"]
    writer.write(
        f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 100\r\n\r\n{{".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)
    assert head == b"HTTP/1.1 408 Request Timeout\r\n"
    writer.close()
    await writer.wait_closed()


HOSTILE: list[tuple[bytes, int]] = [
    (b"", 422),
    (b"{", 400),
    (b"[]", 422),
    (b"null", 422),
    (b"\xff\xfe", 400),
    (b'{"session": "s", "text": "t", "data": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", 400),
    (b'{"session": "s", "text": "t", "data": ' + b'{"a":' * 600 + b"1" + b"}" * 600 + b"}", 422),
    (b'{"session": "s", "text": "t", "data": {"a": NaN}}', 400),
    (b'{"session": "s", "text": "t", "data": {"a": Infinity}}', 400),
    (b'{"session": "s", "text": "\\ud800"}', 400),
    (b'{"session": "\\ud800", "text": "t"}', 400),
    (b'{"session": "s", "text": "t", "data": {"\\udfff": 1}}', 400),
    (b'{"session": "a\\u0000b", "text": "t"}', 422),
    (b'{"session": "s", "text": "t", "type": "a\\u0000b"}', 422),
    (b'{"session": "s", "text": ""}', 422),
    (b'{"session": "s", "text": 7}', 422),
    (b'{"session": "s", "text": "t", "priority": "urgent"}', 422),
    (b'{"session": "s", "text": "t", "surprise": 1}', 422),
    (b'{"session": "s", "text": "t", "idempotency_key": "a b"}', 422),
    (b'{"session": "s", "text": "t", "idempotency_key": "\\u00e9"}', 422),
    (b'{"session": "' + b"s" * 200 + b'", "text": "t"}', 422),
]


async def test_a_hostile_body_is_refused_with_a_reason(site: Site) -> None:
    headers = await key_of(site.pool, "acme") | {"Content-Type": "application/json"}
    for body, status in HOSTILE:
        problem = assert_problem(await site.client.post("/v1/tasks", content=body, headers=headers), status)
        assert problem["detail"]
    assert await site.streams.log.end("acme") == "0-0"


async def test_what_is_odd_but_allowed_comes_back_as_it_went_in(site: Site) -> None:
    headers = await key_of(site.pool, "acme")
    odd: dict[str, Any] = {
        "session": "Grüße / 你好 %00 ?&#",
        "text": "nul \x00, emoji 👩🏽‍🚀, rtl \u202e",
        "data": {"\x00": "\x00", "$blob": "x", "bytes": 1, "big": 2**63, "deep": [[[[[1.5e300]]]]]},
    }
    accepted = await site.client.post("/v1/tasks", json=odd, headers=headers)
    assert accepted.status_code == 202, accepted.text
    await project(site.streams, site.pool)
    [seen] = (await site.client.get("/v1/events", headers=headers)).json()["events"]
    assert (seen["session"], seen["body"]["text"]) == (odd["session"], odd["text"])
    found = await site.client.get(f"/v1/tasks/{accepted.json()['task']}", headers=headers)
    assert found.json()["session"] == odd["session"]


ABSURD = [
    "/v1/events?limit=0",
    "/v1/events?limit=-1",
    "/v1/events?limit=1001",
    "/v1/events?limit=99999999999999999999999",
    "/v1/events?limit=x",
    "/v1/events?session=%00",
    "/v1/events?task=%00",
    "/v1/events?task=a%20b",
    "/v1/events/stream?after=%00",
    "/v1/costs?days=0",
    "/v1/costs?days=99999999999",
    "/v1/costs?by=tenant%00",
    "/v1/costs?agent=%27%3B--",
    "/v1/costs?limit=0",
    "/v1/tasks/%00",
    "/v1/tasks/x?wait=-1",
    "/v1/tasks/x?wait=nan",
    "/v1/tasks/x?wait=inf",
    "/v1/tasks/x?wait=1e9",
    "/v1/events?surprise=1",
    "/v1/memories?q=%00",
    "/v1/memories?q=a&limit=0",
    "/v1/dead-letters?after=x",
    "/v1/dead-letters/%00",
    "/v1/sessions/%00",
    "/v1/sessions/" + "s" * 129,
    "/v1/tasks/" + "x" * 65,
]


async def test_absurd_parameters_are_refused(site: Site) -> None:
    headers = await key_of(site.pool, "acme")
    for query in ABSURD:
        problem = assert_problem(await site.client.get(query, headers=headers), 422)
        assert problem["errors"][0]["where"].partition(".")[0] in ("query", "path"), query


async def test_what_is_not_there_and_what_is_not_possible_are_problems_too(site: Site) -> None:
    headers = await key_of(site.pool, "acme")
    assert_problem(await site.client.get("/nowhere"), 404, "/nowhere")
    assert_problem(await site.client.get("/v1/nowhere", headers=headers), 404)
    wrong = await site.client.put("/v1/tasks", headers=headers)
    assert_problem(wrong, 405, "POST")
    assert wrong.headers["allow"] == "POST"


async def test_a_database_that_is_away_is_a_503(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    headers = await key_of(pool, "acme")
    async with (
        served(settings, Endpoints(endpoints.redis_url, database_url)) as url,
        httpx.AsyncClient(base_url=url, timeout=20, headers=headers) as client,
    ):
        name = urlsplit(database_url).path[1:]
        assert (await client.get("/v1/events")).status_code == 200
        admin = await asyncpg.connect(endpoints.database_url)
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
            name,
        )
        response = await client.get("/v1/events")
        assert_problem(response, 503)
        assert response.headers["retry-after"] == "1"
        assert (await client.get("/readyz")).status_code == 503
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.close()
        assert (await client.get("/v1/events")).status_code == 200
