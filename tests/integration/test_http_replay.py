"""Replay over real HTTP: the story, a moment, a proof and a fork, of two tenants."""

from collections.abc import AsyncIterator

import httpx
import pytest

from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.db import Pool
from streams.connection import Streams
from tests.serving import assert_problem, echo_team, key_of, served, working

TEAM = echo_team()


@pytest.fixture
async def clients(
    streams: Streams, settings: Settings, endpoints: Endpoints, pool: Pool, database_url: str
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, httpx.AsyncClient]]:
    """Two tenants' clients, and the first one's of a process without a team, on an empty log (`streams`)."""
    here = Endpoints(endpoints.redis_url, database_url)
    with_team = settings.model_copy(update={"agents": f"{__name__}:TEAM"})
    acme, globex = await key_of(pool, "acme"), await key_of(pool, "globex")
    async with (
        served(with_team, here) as url,
        served(settings.model_copy(update={"agents": None}), here) as bare,
        working(settings, here, TEAM),
        httpx.AsyncClient(base_url=url, headers=acme, timeout=30) as first,
        httpx.AsyncClient(base_url=url, headers=globex, timeout=30) as second,
        httpx.AsyncClient(base_url=bare, headers=acme, timeout=30) as teamless,
    ):
        yield first, second, teamless


async def test_a_task_is_told_proved_and_run_again(
    clients: tuple[httpx.AsyncClient, httpx.AsyncClient, httpx.AsyncClient], pool: Pool
) -> None:
    acme, globex, teamless = clients
    sent = {"session": "s", "text": "hello", "data": {"n": 1}}
    origin = (await acme.post("/v1/tasks", json=sent)).json()["task"]
    await acme.get(f"/v1/tasks/{origin}", params={"wait": 20})

    told = (await acme.get(f"/v1/tasks/{origin}/story")).json()
    assert told["task"] == origin
    assert [node["type"] for node in told["story"]] == ["task.submitted"]
    start = told["story"][0]["position"]
    moment = await acme.get(f"/v1/tasks/{origin}/story", params={"at": start})
    assert moment.json()["status"] == "running"
    assert moment.json()["state"]["text"] == "hello"
    assert_problem(await acme.get(f"/v1/tasks/{origin}/story", params={"at": "never"}), 422, "'never' is no position")

    proof = (await acme.get(f"/v1/tasks/{origin}/verify")).json()
    assert (proof["tasks"], proof["diverged"], proof["decisions"]) == (1, 0, 2)
    assert_problem(await teamless.get(f"/v1/tasks/{origin}/verify"), 409, "HEADWATER_AGENTS")

    key = {"Idempotency-Key": "again"}
    made = await acme.post(f"/v1/tasks/{origin}/fork", json={"data": {"n": 2}}, headers=key)
    assert made.status_code == 202, made.text
    fork = made.json()["task"]
    assert made.headers["location"] == f"/v1/tasks/{fork}"
    listed = (await acme.get(f"/v1/tasks/{origin}/forks")).json()
    assert [one["task"] for one in listed["forks"]] == [fork]
    assert_problem(await globex.get(f"/v1/tasks/{origin}/forks"), 404, "no task")
    done = (await acme.get(f"/v1/tasks/{fork}", params={"wait": 20})).json()
    assert (done["status"], done["fork_of"]) == ("completed", origin)
    assert done["result"] == {"echo": "hello", "data": {"n": 2}}
    same = await acme.post(f"/v1/tasks/{origin}/fork", json={"data": {"n": 2}}, headers=key)
    assert (same.status_code, same.json()["task"]) == (200, fork)
    assert_problem(await acme.post(f"/v1/tasks/{origin}/fork", json={"data": {"n": 3}}, headers=key), 409)

    laid = (await acme.get(f"/v1/tasks/{origin}/compare/{fork}")).json()
    assert (laid["left"]["task"], laid["right"]["task"], laid["right"]["fork_of"]) == (origin, fork, origin)
    assert laid["first_difference"] is None
    assert {"pointer": "/data/n", "left": 1, "right": 2} in laid["results"]
    assert_problem(await acme.get(f"/v1/tasks/{origin}/compare/{'0' * 24}"), 404, "has no task")

    for path in ("story", "verify", f"compare/{fork}"):
        assert_problem(await globex.get(f"/v1/tasks/{origin}/{path}"), 404, "'globex' has no task")
    assert_problem(await globex.post(f"/v1/tasks/{origin}/fork", json={}), 404, "'globex' has no task")
    reader = await key_of(pool, "acme", "read")
    refused = await acme.post(f"/v1/tasks/{origin}/fork", json={}, headers=reader)
    assert_problem(refused, 403, "submit")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"at": "nonsense"}, "fork at one of"),
        ({"models": {"slow": ["m"]}}, "fast, reasoning"),
        ({"budget_usd": "0"}, "above 0"),
        ({"modles": {}}, ""),
    ],
)
async def test_a_fork_that_makes_no_sense_is_refused(
    clients: tuple[httpx.AsyncClient, httpx.AsyncClient, httpx.AsyncClient], how: dict[str, object], says: str
) -> None:
    acme, _, _ = clients
    origin = (await acme.post("/v1/tasks", json={"session": "s", "text": "hello"})).json()["task"]
    assert_problem(await acme.post(f"/v1/tasks/{origin}/fork", json=how), 422, says)
