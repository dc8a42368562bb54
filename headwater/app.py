"""The HTTP application: puts the parts of `headwater.api` together, and connects them."""

import contextlib
from collections.abc import AsyncIterator

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from headwater.api import problems
from headwater.api.costs import costs
from headwater.api.dead_letters import dead_letters
from headwater.api.events import events
from headwater.api.guard import Guard
from headwater.api.health import health
from headwater.api.memories import memories
from headwater.api.metrics_port import metrics_port
from headwater.api.openapi import describe
from headwater.api.replay import replay
from headwater.api.sessions import sessions
from headwater.api.sse import Streamers, closing_on_signals
from headwater.api.tasks import tasks
from headwater.asyncapi import asyncapi_document
from headwater.children import reviving, running_children
from headwater.client import Headwater
from headwater.embedded import EmbeddedServers, Endpoints
from headwater.node import remove_node, write_node
from headwater.process_metrics import CountRequests, HttpMetrics
from headwater.settings import Settings, get_settings
from projections.db import migrate
from projections.memory_search import prepare_memory
from projections.runner import Runner

logger = structlog.get_logger(__name__)

POOL_SIZE = 10
_DESCRIPTION = """
Event-sourced stream processor for multi-tenant teams of LLM agents.

Every request under `/v1` carries a key, `Authorization: Bearer hw_…`, made by `headwater keys create`. The tenant is
the key's; an operator's key names it in the header `Headwater-Tenant`. Errors are problem documents (RFC 9457).
"""


def create_app(settings: Settings | None = None, endpoints: Endpoints | None = None) -> FastAPI:
    """The application. For `uvicorn --factory headwater:create_app`, and mounted by `headwater up`.

    Its lifespan connects to `endpoints`, or to the settings' URLs, where workers and a projector run elsewhere. With
    neither it brings up everything: servers of its own, a projector, and workers for the team that HEADWATER_AGENTS
    names. What is optional and missing (pgvector, Langfuse) costs a log line.
    """
    settings = settings or get_settings()
    app: FastAPI = FastAPIOffline(
        title="Headwater",
        description=_DESCRIPTION,
        version="0.1.0",
        lifespan=lambda app: _lifespan(app, settings, endpoints),
        redoc_url=None,
    )
    for router in (tasks, replay, sessions, events, costs, memories, dead_letters, health):
        app.include_router(router)
    problems.install(app)
    describe(app)
    app.state.http_metrics, app.state.children = HttpMetrics(), ()
    app.add_middleware(Guard, state=app, max_request_bytes=settings.max_request_bytes, max_wait_s=settings.max_wait_s)
    # Added last, it stands before all others.
    app.add_middleware(CountRequests, metrics=app.state.http_metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, settings: Settings, endpoints: Endpoints | None) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        servers: EmbeddedServers | None = None
        if endpoints is None and settings.redis_url and settings.database_url:
            endpoints = Endpoints(settings.redis_url, settings.database_url)
        if endpoints is None:
            servers = EmbeddedServers(
                settings.data,
                redis_binary=settings.redis_binary,
                fsync=settings.fsync,
                redis=not settings.redis_url,
                postgres=not settings.database_url,
            )
            # Blocking on purpose: the servers die with the thread that started them, so it must be the main one.
            started = stack.enter_context(servers)
            endpoints = Endpoints(
                settings.redis_url or started.redis_url, settings.database_url or started.database_url
            )
        hw = await stack.enter_async_context(Headwater(settings, endpoints, pool_size=POOL_SIZE))
        await migrate(hw.pool)
        await prepare_memory(hw.pool)
        streamers = Streamers(hw.history, hw.tail, hw.pool, max_streams=settings.max_streams)
        stack.callback(streamers.close)
        stack.enter_context(closing_on_signals(streamers))
        app.state.settings, app.state.hw, app.state.streamers = settings, hw, streamers
        app.state.streams, app.state.pool = hw.streams, hw.pool
        app.state.asyncapi = asyncapi_document(settings, hw.streams, Runner(hw.pool, hw.streams.log))
        if settings.metrics_port is not None:
            await stack.enter_async_context(metrics_port(app.state, settings.metrics_host, settings.metrics_port))
        if servers is not None:
            # Nobody else knows of these servers: what works on them is started here, and told to the commands.
            data = settings.data.absolute()
            await stack.enter_async_context(reviving(servers))
            app.state.children = await stack.enter_async_context(running_children(settings, data, endpoints))
            stack.callback(remove_node, data)
            write_node(data, endpoints, f"http://{settings.host}:{settings.port}")
        logger.info("app_started", everything=servers is not None)
        yield
        if servers is not None:
            logger.info("draining")
