"""Metrics of the running process, on real Redis and PostgreSQL and over real HTTP."""

import asyncio
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis

from headwater.embedded import Endpoints
from headwater.instruments import Instruments
from headwater.process_metrics import Gauges, backlog_metrics
from headwater.settings import Settings
from projections.db import Pool
from projections.metric_names import METRICS, PROCESS_METRICS
from schemas.bodies import TaskRouted
from schemas.ids import new_id
from schemas.task import NewTask
from streams import backlog
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.functions import Commit, Functions, NewCall
from streams.log import Log
from streams.memory import node_memory
from tests.conftest import SHARDS
from tests.metric_logs import read, value
from tests.processes import until
from tests.projecting import event, project
from tests.serving import Echo, echo_team, key_of, served, working

LONG_MS = 60_000


async def gauges(streams: Streams, pool: Pool) -> dict[tuple[str, str], float]:
    """(name, its only label's value) → value."""
    registry = CollectorRegistry()
    registry.register(Gauges(await backlog_metrics(streams, pool)))
    return {(name, labels[0][1]): value for (name, labels), value in read(generate_latest(registry).decode()).items()}


async def submit(streams: Streams, tenant: str) -> None:
    await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text="hello"))


async def order(streams: Streams, agent: str, calls: int) -> None:
    """What the decider does: read everything, and order so many calls of `agent` for every tenant."""
    for shard in range(SHARDS):
        (batches,) = await streams.functions.lease(
            [shard], "decider", lease_ms=LONG_MS, max_tenants=100, max_entries=100
        )
        commits = [(b, Commit(calls=[NewCall(new_id(), agent, 2, b"{}") for _ in range(calls)])) for b in batches]
        assert not commits or all(await streams.functions.commit("decider", commits))


async def test_lag_of_readers_and_projections(streams: Streams, pool: Pool) -> None:
    idle = await gauges(streams, pool)
    assert {idle["consumer_lag_tenants", reader] for reader in backlog.READERS} == {0}
    assert idle["consumer_lag_seconds", "projector"] == idle["projection_lag_seconds", "ledger"] == 0
    for tenant in ("acme", "globex", "initech"):
        await submit(streams, tenant)
    await asyncio.sleep(0.05)  # the age of what is unread is what is measured
    behind = await gauges(streams, pool)
    assert behind["consumer_lag_tenants", "decider"] == behind["consumer_lag_tenants", "projector"] == 3
    for name, label in (
        ("consumer_lag_seconds", "decider"),
        ("consumer_lag_seconds", "projector"),
        ("projection_lag_seconds", "ledger"),
        ("projection_lag_seconds", "archive"),
    ):
        assert 0.05 <= behind[name, label] < 60, (name, label)
    await project(streams, pool)
    done = await gauges(streams, pool)
    assert done["consumer_lag_tenants", "projector"] == 0
    assert done["projection_lag_seconds", "ledger"] == done["consumer_lag_seconds", "projector"] == 0
    assert done["consumer_lag_tenants", "decider"] == 3, "the other reader has its own place"
    # A tenant that was idle and gets a fact is as far behind as that fact is old, not as its last one is.
    await submit(streams, "acme")
    late = await gauges(streams, pool)
    assert late["consumer_lag_tenants", "projector"] == 1
    assert late["projection_lag_seconds", "ledger"] < done["consumer_lag_seconds", "decider"] + 1


async def test_calls_that_wait_and_calls_that_run(streams: Streams, pool: Pool) -> None:
    for tenant in ("acme", "globex"):
        await submit(streams, tenant)
        # From this fact the agent is known here.
        routed = TaskRouted(agent_id="writer", call_id="c", routed_by="rules", confidence=1, reasoning="")
        await TenantEventBus(streams, tenant).publish(event(routed, tenant, agent="supervisor"))
    await order(streams, "writer", 3)
    await project(streams, pool)
    assert (await gauges(streams, pool))["pending_calls", "queued"] == 6
    wants = [(shard, [("writer", 1)]) for shard in {streams.keys.shard_of("acme")}]
    (taken,) = await streams.functions.take(wants, "worker-1", lease_ms=LONG_MS)
    found = await gauges(streams, pool)
    assert (found["pending_calls", "queued"], found["pending_calls", "running"]) == (5, 1)
    await streams.functions.settle(taken[0], facts=[], blobs={})
    assert (await gauges(streams, pool))["pending_calls", "running"] == 0


async def test_reading_the_backlog_is_bounded(streams: Streams, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = [f"tenant-{n}" for n in range(40)]
    for tenant in tenants:
        await submit(streams, tenant)
    monkeypatch.setattr(backlog, "SAMPLE", 2)
    found = await backlog.reader_backlog(streams, "decider")
    assert found.tenants == 40, "counted without looking into each"
    assert len(found.places) <= 2 * SHARDS
    await order(streams, "writer", 3)
    calls = await backlog.calls(streams, ["writer"])
    looked_into = min(40, sum(min(2, count) for count in await shard_counts(streams, tenants)))
    assert calls.queued == 3 * looked_into + (40 - looked_into), "at least one call for each of the others"


async def shard_counts(streams: Streams, tenants: list[str]) -> list[int]:
    return [sum(streams.keys.shard_of(tenant) == shard for tenant in tenants) for shard in range(SHARDS)]


async def test_the_application_shows_its_requests_and_everything_else(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    here = Endpoints(endpoints.redis_url, database_url)
    elsewhere = Instruments()
    async with (
        served(settings, here) as url,
        working(settings, here, echo_team(Echo())),
        httpx.AsyncClient(base_url=url, headers=await key_of(pool, "acme"), timeout=30) as acme,
        httpx.AsyncClient(base_url=url, timeout=30) as local,
    ):
        body: dict[str, Any] = {"session": "s", "text": "hello"}
        tasks = [(await acme.post("/v1/tasks", json=body)).json()["task"] for _ in range(2)]
        for task in tasks:
            assert (await acme.get(f"/v1/tasks/{task}", params={"wait": 20})).json()["status"] == "completed"
        assert (await local.get("/v1/tasks/nobody")).status_code == 401
        assert (await local.get("/no/such/path")).status_code == 404
        await local.request("BREW", "/healthz")
        async with elsewhere.track_agent_invocation("echo", "acme"):
            pass
        text = (await local.get("/metrics")).text
        series = read(text)

        def requests(**labels: str) -> float:
            return series.get(("http_requests_total", tuple(sorted(labels.items()))), 0)

        assert requests(method="POST", route="/v1/tasks", status="202") == 2
        assert requests(method="GET", route="/v1/tasks/{task_id}", status="200") == 2
        assert requests(method="GET", route="_none", status="401") == 1, "refused before any route was looked for"
        assert requests(method="GET", route="_none", status="404") == 1
        assert (
            requests(method="_other", route="/healthz", status="405")
            + requests(method="_other", route="_none", status="405")
            == 1
        )
        assert not any(task in text for task in tasks), "no path of a request is a label"
        seconds = ("http_request_duration_seconds_count", (("method", "POST"), ("route", "/v1/tasks")))
        assert series[seconds] == 2
        invocations = ("agent_invocations_total", (("agent_id", "echo"), ("status", "ok"), ("tenant_id", "acme")))
        assert series[invocations] == 2, "what the log says, once"
        names = {name for name, _ in series}
        of_children = {"process_up", "process_restarts_total"}
        of_an_export = {name for name in PROCESS_METRICS if name.startswith("langfuse_")}
        for name in {*PROCESS_METRICS} - of_children - of_an_export:
            assert any(shown.startswith(name) for shown in names), name
        assert not names & of_an_export, "without an export there is nothing that could be behind"
        assert len([line for line in text.splitlines() if line.startswith("# TYPE")]) == len(
            {line for line in text.splitlines() if line.startswith("# TYPE")}
        ), "each family once"
        # A tenant sees its own part of the log's metrics, and nothing of the process or of others.
        own = read((await acme.get("/metrics")).text)
        assert {name.removesuffix("_created") for name, _ in own} <= {
            sample for name in METRICS for sample in (name, f"{name}_bucket", f"{name}_sum", f"{name}_count")
        }


async def test_open_tasks_are_those_that_were_accepted_and_have_not_ended(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    here = Endpoints(endpoints.redis_url, database_url)
    agent = Echo()
    async with (
        served(settings, here) as url,
        working(settings, here, echo_team(agent)),
        httpx.AsyncClient(base_url=url, timeout=30) as local,
    ):
        keys = {tenant: await key_of(pool, tenant) for tenant in ("acme", "globex")}

        async def post(tenant: str, task_type: str) -> str:
            body = {"session": "s", "text": "hello", "type": task_type}
            task: str = (await local.post("/v1/tasks", json=body, headers=keys[tenant])).json()["task"]
            return task

        async def shown(tenant: str) -> tuple[float, float]:
            series = read((await local.get("/metrics", headers=keys[tenant])).text)
            names = ("supervisor_tasks_accepted_total", "supervisor_tasks_open")
            return value(series, names[0], tenant_id=tenant), value(series, names[1], tenant_id=tenant)

        async def are(expected: dict[str, tuple[float, float]]) -> bool:
            return {tenant: await shown(tenant) for tenant in keys} == expected

        held = [await post("acme", "held") for _ in range(2)]
        await post("acme", "quick")
        await post("globex", "quick")
        await until(lambda: are({"acme": (3, 2), "globex": (1, 0)}), "two are open")
        await local.post(f"/v1/tasks/{held[0]}/cancel", headers=keys["acme"])
        await until(lambda: are({"acme": (3, 1), "globex": (1, 0)}), "one was cancelled")
        agent.release.set()
        await until(lambda: are({"acme": (3, 0), "globex": (1, 0)}), "all have ended")


async def test_how_full_redis_is(streams: Streams) -> None:
    (empty,) = await node_memory(streams)
    assert empty.used_bytes > 0
    before = (await streams.redis.config_get("maxmemory"))["maxmemory"]
    try:
        await streams.redis.config_set("maxmemory", 512 * 1024 * 1024)
        await streams.redis.set("ballast", b"x" * 3_000_000)
        (full,) = await node_memory(streams)
        assert (full.node, full.limit_bytes) == (empty.node, 512 * 1024 * 1024)
        assert full.used_bytes >= empty.used_bytes + 2_000_000
    finally:
        await streams.redis.config_set("maxmemory", before or 0)


async def test_without_redis_the_projected_metrics_are_still_there(streams: Streams, pool: Pool) -> None:
    nowhere = Redis(unix_socket_path="/nonexistent/redis.sock")
    gone = Streams(nowhere, streams.keys, Functions(nowhere, streams.keys), Log(nowhere, streams.keys))
    try:
        assert await backlog_metrics(gone, pool) == []
    finally:
        await gone.close()
