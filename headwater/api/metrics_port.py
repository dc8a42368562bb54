"""The metrics of all tenants on a port of its own, without a key: for a scraper inside the operator's network."""

import contextlib
from collections.abc import AsyncIterator

import structlog
from aiohttp import web
from starlette.datastructures import State

from headwater.api.health import render_metrics
from schemas.errors import ConfigurationError, UnavailableError

logger = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def metrics_port(state: State, host: str, port: int) -> AsyncIterator[str]:
    """Serve `GET /metrics` on `host` and `port` (0: any free one). Yields its URL.

    Raises:
        ConfigurationError: the port cannot be used.
    """

    async def metrics(_: web.Request) -> web.Response:
        try:
            rendered = await render_metrics(state)
        except UnavailableError as error:
            return web.Response(status=503, text=str(error))
        return web.Response(body=bytes(rendered.body), headers={"Content-Type": rendered.headers["content-type"]})

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigurationError(
                f"HEADWATER_METRICS_PORT {port} on {host} cannot be used: {error.strerror}. Choose another"
            ) from error
        where = runner.addresses[0]
        url = f"http://{host}:{where[1]}/metrics"
        logger.info("metrics_port_open", url=url)
        yield url
    finally:
        await runner.cleanup()
