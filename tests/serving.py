"""The HTTP application on a real port, with a projector and a worker beside it, in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn

from handlers.agents import AgentRegistration, BaseAgent
from handlers.context import TaskContext
from handlers.provider import LitellmProvider
from handlers.router import HybridRouter
from handlers.team import Team
from headwater.app import create_app
from headwater.embedded import Endpoints
from headwater.runtime import add_decider, add_projector, add_runner, make_broker, make_llm
from headwater.settings import Settings
from projections.api_keys import create_key
from projections.db import Pool, connect
from projections.runner import Runner
from schemas.task import Task
from streams.connection import open_streams

DEADLINE_S = 20.0


class Echo(BaseAgent):
    """Gives back what it was given; a task of the type `held` waits until `release` is set."""

    registration = AgentRegistration(agent_id="echo", name="Echo", description="echoes", max_concurrent_tasks=64)

    def __init__(self) -> None:
        super().__init__()
        self.release = asyncio.Event()

    async def execute(self, task: Task, context: TaskContext) -> Any:
        """The echo."""
        if task.type == "held":
            await self.release.wait()
        if task.type == "broken":
            raise RuntimeError("this task breaks its agent")
        return {"echo": task.text, "data": task.data}


def echo_team(agent: Echo | None = None) -> Team:
    """A team of one, with one rule."""
    return Team(agents=[agent or Echo()], router=HybridRouter(rules=[lambda task: "echo"]))


@contextlib.asynccontextmanager
async def served(settings: Settings, endpoints: Endpoints) -> AsyncIterator[str]:
    """Yields the base URL of a running application."""
    config = uvicorn.Config(
        create_app(settings, endpoints), host="127.0.0.1", port=0, log_level="warning", lifespan="on"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the server did not start"
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, DEADLINE_S)


@contextlib.asynccontextmanager
async def working(settings: Settings, endpoints: Endpoints, team: Team) -> AsyncIterator[None]:
    """A decider, a runner of `team` and a projector."""
    streams = await open_streams(endpoints.redis_url, shards=settings.shards)
    pool = await connect(endpoints.database_url)
    provider = LitellmProvider(settings.llm_base_url, settings.llm_api_key)
    broker = make_broker(endpoints.redis_url, streams)
    add_decider(broker, streams, team, settings)
    add_runner(broker, streams, team, make_llm(settings, provider), settings, "worker")
    add_projector(broker, streams, Runner(pool, streams.log), settings)
    await broker.start()
    try:
        yield
    finally:
        await broker.stop()
        await provider.aclose()
        await pool.close()
        await streams.close()


async def key_of(pool: Pool, tenant_id: str | None, *scopes: str) -> dict[str, str]:
    """Headers with a fresh key."""
    _, text = await create_key(pool, tenant_id, scopes or ("submit", "read"))
    return {"Authorization": f"Bearer {text}"}


def assert_problem(response: httpx.Response, status: int, says: str = "") -> dict[str, Any]:
    """The response is a problem document of that status, whose detail contains `says`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert set(problem) >= {"type", "title", "status", "detail"}
    assert says in problem["detail"]
    return problem


team = echo_team()
"""For `--agents tests.serving:team`."""
