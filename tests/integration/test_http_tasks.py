"""Tasks, sessions and costs over real HTTP, with two tenants in every test (contract row F1)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.db import Pool
from streams.connection import Streams
from tests.serving import Echo, assert_problem, echo_team, key_of, served, working


@dataclass
class Site:
    """A running application with two tenants' clients."""

    acme: httpx.AsyncClient
    globex: httpx.AsyncClient
    agent: Echo
    pool: Pool
    streams: Streams


@pytest.fixture
async def site(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> AsyncIterator[Site]:
    agent = Echo()
    here = Endpoints(endpoints.redis_url, database_url)
    async with (
        served(settings, here) as url,
        working(settings, here, echo_team(agent)),
        httpx.AsyncClient(base_url=url, headers=await key_of(pool, "acme"), timeout=30) as acme,
        httpx.AsyncClient(base_url=url, headers=await key_of(pool, "globex"), timeout=30) as globex,
    ):
        yield Site(acme, globex, agent, pool, streams)
        agent.release.set()


async def test_a_task_goes_in_and_its_outcome_comes_out(site: Site) -> None:
    accepted = await site.acme.post("/v1/tasks", json={"session": "s1", "text": "hello", "data": {"n": 1}})
    assert accepted.status_code == 202
    body = accepted.json()
    assert body["tenant"] == "acme"
    assert body["duplicate"] is False
    assert accepted.headers["location"] == f"/v1/tasks/{body['task']}"
    assert accepted.headers["cache-control"] == "no-store"
    done = (await site.acme.get(accepted.headers["location"], params={"wait": 20})).json()
    assert done["status"] == "completed"
    assert done["result"] == {"echo": "hello", "data": {"n": 1}}
    assert done["call_chain"] == ["user", "supervisor", "echo"]
    assert done["cost_usd"] == "0"
    # Another tenant sees nothing of it, and cannot tell it from a task that does not exist.
    other = await site.globex.get(accepted.headers["location"])
    missing = await site.globex.get("/v1/tasks/" + "0" * 24)
    assert_problem(other, 404, "'globex' has no task")
    assert other.json()["detail"].replace(body["task"], "0" * 24) == missing.json()["detail"]
    session = (await site.acme.get("/v1/sessions/s1")).json()
    assert [message["role"] for message in session["messages"]] == ["user", "assistant"]
    assert [task["task"] for task in session["tasks"]] == [body["task"]]
    assert_problem(await site.globex.get("/v1/sessions/s1"), 404, "has no session")


async def test_the_same_idempotency_key_is_one_task_also_at_once(site: Site) -> None:
    task = {"session": "s1", "text": "once"}
    key = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(*(site.acme.post("/v1/tasks", json=task, headers=key) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 11 + [202]
    assert len({answer.json()["task"] for answer in answers}) == 1
    assert [answer.json()["duplicate"] for answer in answers].count(False) == 1
    # A line of a task file carries the same key in its body.
    line = await site.acme.post("/v1/tasks", json=task | {"idempotency_key": "k1", "tenant": "acme"})
    assert (line.status_code, line.json()["task"]) == (200, answers[0].json()["task"])
    conflict = await site.acme.post("/v1/tasks", json=task | {"text": "twice"}, headers=key)
    assert assert_problem(conflict, 409, "use a new key")["type"] == "urn:headwater:problem:idempotency-conflict"
    differing = await site.acme.post("/v1/tasks", json=task | {"idempotency_key": "k2"}, headers=key)
    assert_problem(differing, 422, "differ")
    # A key is its tenant's own.
    other = await site.globex.post("/v1/tasks", json=task | {"text": "twice"}, headers=key)
    assert other.status_code == 202
    log = (await site.acme.get("/v1/events")).json()["events"]
    assert [event["type"] for event in log].count("task.submitted") == 1


async def test_the_tenant_comes_from_the_key(site: Site) -> None:
    before = await site.streams.log.end("globex")
    refused = await site.acme.post("/v1/tasks", json={"tenant": "globex", "session": "s1", "text": "t"})
    assert_problem(refused, 403, "'globex'")
    named = await site.acme.get("/v1/events", headers={"Headwater-Tenant": "globex"})
    assert_problem(named, 403, "'globex'")
    assert await site.streams.log.end("globex") == before


async def test_waiting_ends_with_the_task_and_not_later_than_asked(site: Site) -> None:
    held = (await site.acme.post("/v1/tasks", json={"session": "s1", "text": "t", "type": "held"})).json()
    where = f"/v1/tasks/{held['task']}"
    still = (await site.acme.get(where, params={"wait": 0.2})).json()
    assert still["status"] in ("submitted", "running")
    waiting = asyncio.create_task(site.acme.get(where, params={"wait": 20}))
    while not waiting.done():
        site.agent.release.set()
        await asyncio.wait({waiting}, timeout=0.05)
    assert waiting.result().json()["status"] == "completed"
    broken = (await site.acme.post("/v1/tasks", json={"session": "s1", "text": "t", "type": "broken"})).json()
    failed = (await site.acme.get(f"/v1/tasks/{broken['task']}", params={"wait": 20})).json()
    assert failed["status"] == "failed"
    assert "this task breaks its agent" in str(failed["errors"])


async def test_a_wait_is_answered_from_the_log_while_no_projector_runs(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> None:
    here = Endpoints(endpoints.redis_url, database_url)
    async with served(settings, here) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        headers = await key_of(pool, "acme")
        accepted = (await client.post("/v1/tasks", json={"session": "s", "text": "t"}, headers=headers)).json()
        found = (await client.get(f"/v1/tasks/{accepted['task']}", headers=headers)).json()
        assert (found["status"], found["task"], found["cost_usd"]) == ("submitted", accepted["task"], None)
        assert_problem(await client.get("/v1/tasks/none", headers=headers), 404)


async def test_a_task_is_cancelled_once_and_only_before_its_end(site: Site) -> None:
    held = (await site.acme.post("/v1/tasks", json={"session": "s1", "text": "t", "type": "held"})).json()
    where = f"/v1/tasks/{held['task']}"
    assert_problem(await site.globex.post(f"{where}/cancel"), 404)
    asked = await asyncio.gather(*(site.acme.post(f"{where}/cancel", json={"reason": "too late"}) for _ in range(3)))
    assert {answer.status_code for answer in asked} <= {200, 202}
    done = (await site.acme.get(where, params={"wait": 20})).json()
    assert (done["status"], done["error"]) == ("cancelled", "too late")
    again = await site.acme.post(f"{where}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    types = [event["type"] for event in (await site.acme.get("/v1/events")).json()["events"]]
    assert types.count("task.cancel_requested") == 1
    assert types.count("task.cancelled") == 1
    ended = (await site.acme.post("/v1/tasks", json={"session": "s1", "text": "t"})).json()
    await site.acme.get(f"/v1/tasks/{ended['task']}", params={"wait": 20})
    late = await site.acme.post(f"/v1/tasks/{ended['task']}/cancel")
    assert assert_problem(late, 409, "completed")["task_status"] == "completed"


async def test_a_session_is_cleared_by_its_own_tenant_only(site: Site) -> None:
    for client in (site.acme, site.globex):
        task = (await client.post("/v1/tasks", json={"session": "a/b c", "text": "t"})).json()
        await client.get(f"/v1/tasks/{task['task']}", params={"wait": 20})
    cleared = await site.acme.delete("/v1/sessions/a/b c", params={"reason": "asked for"})
    assert cleared.status_code == 202
    assert (await site.acme.get("/v1/sessions/a/b c")).json()["messages"] == []
    assert len((await site.globex.get("/v1/sessions/a/b c")).json()["messages"]) == 2
    assert_problem(await site.acme.delete("/v1/sessions/none"), 404)


async def test_costs_are_the_tenants_own_and_an_operators_are_all(site: Site) -> None:
    own = (await site.acme.get("/v1/costs", params={"by": "day", "days": 7})).json()
    assert (own["tenant"], own["by"], own["days"], own["rows"]) == ("acme", "day", 7, [])
    operator = await key_of(site.pool, None, "admin")
    everything = await site.acme.get("/v1/costs", headers=operator)
    assert (everything.json()["tenant"], everything.json()["by"]) == (None, "tenant")
    named = await site.acme.get("/v1/costs", headers=operator | {"Headwater-Tenant": "globex"})
    assert named.json()["tenant"] == "globex"
    assert_problem(await site.acme.get("/v1/events", headers=operator), 422, "Headwater-Tenant")
