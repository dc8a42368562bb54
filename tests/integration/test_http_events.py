"""The log over real HTTP: pages by position, and server-sent events that are resumed, bounded and ended (row F1)."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from headwater.api import sse
from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.api_keys import create_key, revoke_key
from projections.db import Pool
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from tests.conftest import SHARDS
from tests.processes import until
from tests.projecting import project
from tests.serving import DEADLINE_S, assert_problem, key_of, served

Message = dict[str, str]


@dataclass
class Site:
    """A running application, without any worker: what is in the logs is what a test put there."""

    url: str
    acme: httpx.AsyncClient
    globex: httpx.AsyncClient
    pool: Pool
    streams: Streams

    async def submit(self, tenant: str, *texts: str, session: str = "s1") -> list[str]:
        """Positions of new tasks."""
        bus = TenantEventBus(self.streams, tenant)
        return [(await bus.submit(NewTask(tenant=tenant, session=session, text=text))).position for text in texts]


@contextlib.asynccontextmanager
async def site_of(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> AsyncIterator[Site]:
    async with (
        served(settings, Endpoints(endpoints.redis_url, database_url)) as url,
        httpx.AsyncClient(base_url=url, headers=await key_of(pool, "acme"), timeout=DEADLINE_S) as acme,
        httpx.AsyncClient(base_url=url, headers=await key_of(pool, "globex"), timeout=DEADLINE_S) as globex,
    ):
        yield Site(url, acme, globex, pool, streams)


@pytest.fixture
async def site(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> AsyncIterator[Site]:
    async with site_of(settings, endpoints, streams, pool, database_url) as made:
        yield made


class Follower:
    """A client of the stream that collects what it is sent."""

    def __init__(self, client: httpx.AsyncClient, **params: str) -> None:
        self._client = client
        self._params = params
        self.messages: list[Message] = []
        self.comments: list[str] = []
        self.status: int | None = None
        self.changed = asyncio.Event()
        self.done = asyncio.create_task(self._run())

    async def _run(self) -> None:
        headers = {"Last-Event-ID": self._params.pop("resume")} if "resume" in self._params else {}
        async with self._client.stream("GET", "/v1/events/stream", params=self._params, headers=headers) as response:
            self.status = response.status_code
            self.changed.set()
            message: Message = {}
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if not line:
                    if "data" in message:
                        self.messages.append(message)
                    message = {}
                elif line.startswith(":"):
                    self.comments.append(line)
                else:
                    message[name] = value
                self.changed.set()

    async def until(self, condition: Callable[["Follower"], bool]) -> None:
        """Wait for a condition on what came so far."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    @property
    def texts(self) -> list[str]:
        """The texts of the submitted tasks that came."""
        return [orjson.loads(message["data"])["body"]["text"] for message in self.messages if "event" not in message]

    async def __aenter__(self) -> "Follower":
        await self.until(lambda f: f.status is not None)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.done.cancel()
        await asyncio.gather(self.done, return_exceptions=True)


async def pages(client: httpx.AsyncClient, first: str) -> AsyncIterator[dict[str, Any]]:
    """Follow the next links."""
    link: str | None = first
    while link:
        page = await client.get(link)
        assert page.status_code == 200, page.text
        yield page.json()
        link = page.json()["next"]


async def test_pages_join_the_archive_and_the_stream_without_gap_or_double(site: Site) -> None:
    positions = await site.submit("acme", *(f"t{n}" for n in range(7)))
    await site.submit("globex", "theirs")
    await project(site.streams, site.pool)
    positions += await site.submit("acme", *(f"t{n}" for n in range(7, 12)))
    # Trimmed: the first events stand only in the archive, the last only in the stream.
    await site.streams.redis.xtrim(site.streams.keys.log("acme"), maxlen=8, approximate=False)
    for limit in (1, 3, 5, 12, 1000):
        seen = [page async for page in pages(site.acme, f"/v1/events?limit={limit}")]
        assert [event["position"] for page in seen for event in page["events"]] == positions
        assert [event["body"]["text"] for page in seen for event in page["events"]] == [f"t{n}" for n in range(12)]
        assert all(len(page["events"]) <= limit for page in seen)
        assert seen[-1]["last"] == positions[-1]
    rest = (await site.acme.get("/v1/events", params={"after": positions[9]})).json()
    assert [event["position"] for event in rest["events"]] == positions[10:]
    theirs = (await site.globex.get("/v1/events", params={"after": positions[0]})).json()
    assert [event["body"]["text"] for event in theirs["events"]] == ["theirs"]


async def test_pages_of_one_session_or_task(site: Site) -> None:
    await site.submit("acme", "a1", "a2", session="a")
    await site.submit("acme", "b1", session="b")
    await project(site.streams, site.pool)
    await site.submit("acme", "b2", session="b")
    await site.submit("globex", "theirs", session="b")
    found = [e async for page in pages(site.acme, "/v1/events?session=b&limit=1") for e in page["events"]]
    assert [event["body"]["text"] for event in found] == ["b1", "b2"]
    one = (await site.acme.get("/v1/events", params={"task": str(found[1]["task"])})).json()
    assert [event["id"] for event in one["events"]] == [found[1]["id"]]


async def test_an_entry_that_is_no_event_is_named_and_the_rest_goes_on(site: Site) -> None:
    log = site.streams.keys.log("acme")
    await site.submit("acme", "before")
    first: bytes = await site.streams.redis.xadd(log, {"id": "x", "type": "no.such", "garbage": "1"})  # type: ignore[assignment]
    await project(site.streams, site.pool)
    second: bytes = await site.streams.redis.xadd(log, {b"\xff": b"\x00"})  # type: ignore[assignment]
    bad = [first.decode(), second.decode()]
    await site.submit("acme", "after")
    page = (await site.acme.get("/v1/events")).json()
    assert [event["body"]["text"] for event in page["events"]] == ["before", "after"]
    assert [entry["position"] for entry in page["unreadable"]] == bad
    assert bad[0] in page["unreadable"][0]["error"]
    async with Follower(site.acme) as follower:
        await follower.until(lambda f: len(f.messages) == 4)
        assert [message.get("event") for message in follower.messages] == [None, "unreadable", "unreadable", None]


async def test_a_stream_goes_on_where_it_was_left(site: Site) -> None:
    positions = await site.submit("acme", "t0", "t1")
    async with Follower(site.acme) as first:
        await first.until(lambda f: len(f.messages) == 2)
        positions += await site.submit("acme", "t2")
        await site.submit("globex", "theirs")
        await first.until(lambda f: len(f.messages) == 3)
        assert [message["id"] for message in first.messages] == positions
    positions += await site.submit("acme", "t3")
    async with Follower(site.acme, resume=positions[1]) as second, Follower(site.acme, after="end") as third:
        await second.until(lambda f: len(f.messages) == 2)
        await site.submit("acme", "t4", session="other")
        await second.until(lambda f: len(f.messages) == 3)
        await third.until(lambda f: len(f.messages) == 1)
        assert second.texts == ["t2", "t3", "t4"]
        assert third.texts == ["t4"]
    async with Follower(site.acme, session="other") as fourth, Follower(site.globex) as other:
        await fourth.until(lambda f: len(f.messages) == 1)
        await other.until(lambda f: len(f.messages) == 1)
        assert (fourth.texts, other.texts) == (["t4"], ["theirs"])


async def test_many_streams_share_one_blocking_connection(site: Site) -> None:
    await site.submit("acme", "t0")
    await site.submit("globex", "g0")
    async with contextlib.AsyncExitStack() as stack:
        clients = [site.acme, site.globex] * 10
        followers = [await stack.enter_async_context(Follower(client)) for client in clients]
        for follower in followers:
            await follower.until(lambda f: len(f.messages) == 1)
        blocked = [c for c in await site.streams.redis.client_list() if c["cmd"] == "xread"]
        assert len(blocked) == 1
        await site.submit("acme", "t1")
        await site.submit("globex", "g1")
        for follower in followers:
            await follower.until(lambda f: len(f.messages) == 2)
        assert [follower.texts for follower in followers] == [["t0", "t1"], ["g0", "g1"]] * 10


async def test_a_quiet_stream_says_that_it_is_there_and_ends_with_its_key(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)
    key, text = await create_key(site.pool, "acme", ["read"])
    async with httpx.AsyncClient(base_url=site.url, headers={"Authorization": f"Bearer {text}"}) as client:
        async with Follower(client) as follower, Follower(site.acme) as other:
            await follower.until(lambda f: len(f.comments) >= 2)
            await revoke_key(site.pool, key.key_id)
            await asyncio.wait_for(follower.done, DEADLINE_S)
            # Somebody else's stream goes on.
            await site.submit("acme", "t0")
            await other.until(lambda f: len(f.messages) == 1)
        assert_problem(await client.get("/v1/events"), 401, "revoked")


async def test_streams_are_bounded(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    few = settings.model_copy(update={"max_streams": 2})
    async with site_of(few, endpoints, streams, pool, database_url) as site, Follower(site.globex) as second:
        async with Follower(site.acme) as first:
            refused = await site.acme.get("/v1/events/stream")
            assert_problem(refused, 503, "HEADWATER_MAX_STREAMS")
            assert refused.headers["retry-after"] == "1"
            assert not first.done.done()
        # The place of the one that left is free again, as soon as the server has seen it leave.
        async with asyncio.timeout(DEADLINE_S):
            status: int | None = 503
            while status == 503:
                async with Follower(site.acme) as third:
                    status = third.status
        assert status == 200
        assert not second.done.done()


async def test_streams_end_when_the_process_is_told_to_stop(
    endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    socket = tmp_path / "http.sock"
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    env |= {"REDIS_URL": endpoints.redis_url, "DATABASE_URL": database_url, "HEADWATER_SHARDS": str(SHARDS)}
    command = [sys.executable, "-m", "uvicorn", "--factory", "headwater:create_app", "--uds", str(socket)]
    with (tmp_path / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(*command, env=env, stdout=log, stderr=log)
    try:
        await until(lambda: asyncio.to_thread(socket.exists), "the server listens")
        async with httpx.AsyncClient(
            base_url="http://headwater",
            headers=await key_of(pool, "acme"),
            transport=httpx.AsyncHTTPTransport(uds=str(socket)),
            timeout=DEADLINE_S,
        ) as client:
            accepted = await client.post("/v1/tasks", json={"session": "s1", "text": "t0"})
            assert accepted.status_code == 202
            async with Follower(client) as follower:
                await follower.until(lambda f: len(f.messages) == 1)
                server.send_signal(signal.SIGTERM)
                # Ended in order, not cut off: the client's loop over the lines just ends.
                await asyncio.wait_for(follower.done, DEADLINE_S)
        await asyncio.wait_for(server.wait(), DEADLINE_S)
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


@pytest.mark.parametrize("garbage", ["x", "-1", "1-2-3", "9" * 40, "0x10", "1.5", "18446744073709551616-0"])
async def test_a_position_that_is_none_is_refused(site: Site, garbage: str) -> None:
    assert_problem(await site.acme.get("/v1/events", params={"after": garbage}), 422, "after")
    header = await site.acme.get("/v1/events/stream", headers={"Last-Event-ID": garbage})
    assert_problem(header, 422, "Last-Event-ID")
