"""What is open to everybody: health and the descriptions of both interfaces; and the metrics, which are not."""

import contextlib

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import State

from headwater.api.problems import problem_response, problems
from headwater.asyncapi import asyncapi_page
from headwater.process_metrics import Gauges, HttpMetrics, backlog_metrics, child_metrics, export_metrics
from headwater.settings import Settings
from projections.api_keys import authenticate
from projections.db import Pool, is_reachable
from projections.exposition import MetricsCollector, snapshot, tenant_snapshot
from projections.rewinding import missing_ranges
from schemas.errors import UnavailableError
from streams.connection import Streams
from streams.connection import is_reachable as redis_is_reachable

health = APIRouter(tags=["operation"])

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@health.get("/healthz", summary="Is this process alive?")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@health.get(
    "/readyz",
    summary="Can it do its work? 503 and the reasons if not.",
    responses={503: {"description": "Not ready.", "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def readyz(request: Request) -> Response:
    """Redis and PostgreSQL answer. `missing`, if there: how many parts of logs `headwater missing` lists."""
    streams: Streams = request.app.state.streams
    pool: Pool = request.app.state.pool
    checks = {"redis": await redis_is_reachable(streams.redis), "postgres": await is_reachable(pool)}
    ready = all(checks.values())
    answer: dict[str, object] = {"status": "ready" if ready else "not ready", "checks": checks}
    with contextlib.suppress(UnavailableError):
        # Only a number: everybody may ask. And no reason for not being ready: no restart brings them back.
        if checks["postgres"] and (missing := len(await missing_ranges(pool))):
            answer["missing"] = missing
    return JSONResponse(answer, 200 if ready else 503)


@health.get(
    "/metrics",
    summary="Prometheus metrics, projected from the log and of this process.",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401, 403, 503)},
    response_class=Response,
)
async def metrics(request: Request) -> Response:
    """Counters continue over restarts: they are rows, not memory.

    An operator's key sees all tenants, a tenant's key with the scope read sees its own. Without a key it answers only
    to a browser or scraper on the same machine that reached a loopback address and went through no proxy; a scraper
    elsewhere uses an operator's key, or the port of its own that HEADWATER_METRICS_PORT opens.
    """
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if not scheme and _is_local(request):
        return await render_metrics(request.app.state)
    key = await authenticate(request.app.state.pool, text.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        return problem_response(
            401,
            "metrics from elsewhere need a key: 'headwater keys create --scope admin', or set HEADWATER_METRICS_PORT",
            headers={"WWW-Authenticate": 'Bearer realm="headwater"'},
        )
    if not key.allows("read"):
        return problem_response(403, "this key has no scope for reading: metrics need the scope read")
    return await render_metrics(request.app.state, key.tenant_id)


async def render_metrics(state: State, tenant_id: str | None = None) -> Response:
    """The metrics in Prometheus's text format: of all tenants and of the running process, or of one tenant."""
    settings: Settings = state.settings
    registry = CollectorRegistry()
    if tenant_id is not None:
        registry.register(MetricsCollector(await tenant_snapshot(state.pool, tenant_id)))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
    registry.register(MetricsCollector(await snapshot(state.pool, tenant_labels=settings.tenant_labels)))
    exported = await export_metrics(state.pool) if settings.has_langfuse else []
    backlog = await backlog_metrics(state.streams, state.pool)
    registry.register(Gauges([*backlog, *exported, *child_metrics(state.children)]))
    http: HttpMetrics = state.http_metrics
    return Response(generate_latest(registry) + generate_latest(http.registry), media_type=CONTENT_TYPE_LATEST)


def _is_local(request: Request) -> bool:
    # The name too: a page elsewhere can have its own name point at 127.0.0.1 and ask from the user's browser.
    return (
        request.client is not None
        and request.client.host in _LOOPBACK
        and request.url.hostname in _LOOPBACK
        and not any(name in request.headers for name in _FORWARDED)
    )


@health.get("/asyncapi", response_class=HTMLResponse, summary="The log's readers, as a page.")
async def asyncapi(request: Request) -> str:
    """Which readers there are, and what they read."""
    return asyncapi_page(request.app.state.asyncapi)


@health.get("/asyncapi.json", summary="The log's readers, as AsyncAPI 3.0.", response_class=JSONResponse)
async def asyncapi_json(request: Request) -> JSONResponse:
    """The document itself."""
    return JSONResponse(request.app.state.asyncapi)
