"""The HTTP application: health, metrics, and descriptions of both interfaces."""

import contextlib
from collections.abc import AsyncIterator

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from headwater.asyncapi import asyncapi_document, asyncapi_page
from headwater.embedded import EmbeddedServers, Endpoints
from headwater.settings import Settings, get_settings
from projections.db import Pool, connect, is_reachable, migrate
from projections.metrics import MetricsCollector, snapshot
from projections.runner import Runner
from schemas.errors import HeadwaterError, UnavailableError
from streams.connection import Streams, open_streams
from streams.connection import is_reachable as redis_is_reachable

logger = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None, endpoints: Endpoints | None = None) -> FastAPI:
    """The application; its lifespan connects to `endpoints`, to the settings' URLs, or to servers it starts itself.

    For `uvicorn --factory headwater:create_app`, and mounted by `headwater up`.
    """
    settings = settings or get_settings()
    app: FastAPI = FastAPIOffline(
        title="Headwater",
        description="Event-sourced stream processor for multi-tenant teams of LLM agents.",
        version="0.1.0",
        lifespan=lambda app: _lifespan(app, settings, endpoints),
        redoc_url=None,
    )
    app.add_api_route("/healthz", healthz, summary="Is this process alive?")
    app.add_api_route("/readyz", readyz, summary="Can it do its work? 503 and the reasons if not.")
    app.add_api_route("/metrics", metrics, summary="Prometheus metrics, projected from the log.")
    app.add_api_route("/asyncapi", asyncapi, response_class=HTMLResponse, summary="The log's readers, as a page.")
    app.add_api_route("/asyncapi.json", asyncapi_json, summary="The log's readers, as AsyncAPI 3.0.")
    app.add_exception_handler(HeadwaterError, _problem)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, settings: Settings, endpoints: Endpoints | None) -> AsyncIterator[None]:
    with contextlib.ExitStack() as stack:
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
        streams = await open_streams(endpoints.redis_url, shards=settings.shards)
        pool = await connect(endpoints.database_url)
        await migrate(pool)
        app.state.settings, app.state.streams, app.state.pool = settings, streams, pool
        app.state.asyncapi = asyncapi_document(settings, streams, Runner(pool, streams.log))
        logger.info("app_started")
        try:
            yield
        finally:
            await pool.close()
            await streams.close()


async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


async def readyz(request: Request) -> Response:
    """Redis and PostgreSQL answer."""
    streams: Streams = request.app.state.streams
    pool: Pool = request.app.state.pool
    checks = {"redis": await redis_is_reachable(streams.redis), "postgres": await is_reachable(pool)}
    ready = all(checks.values())
    return JSONResponse({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)


async def metrics(request: Request) -> Response:
    """Counters continue over restarts: they are rows, not memory."""
    settings: Settings = request.app.state.settings
    samples = await snapshot(request.app.state.pool, tenant_labels=settings.tenant_labels)
    registry = CollectorRegistry()
    registry.register(MetricsCollector(samples))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def asyncapi(request: Request) -> str:
    """Which readers there are, and what they read."""
    return asyncapi_page(request.app.state.asyncapi)


async def asyncapi_json(request: Request) -> JSONResponse:
    """The document itself."""
    return JSONResponse(request.app.state.asyncapi)


async def _problem(_: Request, error: Exception) -> JSONResponse:
    status = 503 if isinstance(error, UnavailableError) else 500
    body = {"type": "about:blank", "title": type(error).__name__, "status": status, "detail": str(error)}
    return JSONResponse(body, status, media_type="application/problem+json")
