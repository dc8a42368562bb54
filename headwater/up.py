"""`headwater up`: the servers, the HTTP application, the projector and the workers, in one process tree."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import structlog
import uvicorn

from handlers.prices import PriceTable
from headwater.app import create_app
from headwater.children import reviving, running_children
from headwater.embedded import EmbeddedServers, Endpoints
from headwater.embedded.servers import lock_directory
from headwater.http_server import serve_until_stopped, wait_started
from headwater.node import remove_node, write_node
from headwater.settings import Settings
from headwater.teams import load_team
from projections.db import connect, migrate
from streams.connection import open_streams

logger = structlog.get_logger(__name__)


def up(settings: Settings, announce: Callable[[Endpoints, str], None]) -> None:
    """Run everything until Ctrl-C or SIGTERM. `announce` is called with the endpoints and the URL once all is up.

    Raises:
        DataDirectoryInUseError: another `up` runs on the data directory.
        ConfigurationError: the team, the prices or the servers cannot be used.
    """
    load_team(settings.agents)
    PriceTable.load(settings.prices)
    data = settings.data.absolute()
    with contextlib.ExitStack() as stack:
        servers: EmbeddedServers | None = None
        if settings.redis_url and settings.database_url:
            stack.enter_context(lock_directory(data))
            endpoints = Endpoints(settings.redis_url, settings.database_url)
        else:
            servers = EmbeddedServers(
                data,
                redis_binary=settings.redis_binary,
                fsync=settings.fsync,
                redis=not settings.redis_url,
                postgres=not settings.database_url,
            )
            started = stack.enter_context(servers)
            endpoints = Endpoints(
                settings.redis_url or started.redis_url, settings.database_url or started.database_url
            )
        stack.callback(remove_node, data)
        asyncio.run(_up(settings, data, endpoints, servers, announce))


async def _up(
    settings: Settings,
    data: Path,
    endpoints: Endpoints,
    servers: EmbeddedServers | None,
    announce: Callable[[Endpoints, str], None],
) -> None:
    await _prepare(settings, endpoints)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = create_app(settings, endpoints)
    server = uvicorn.Server(
        uvicorn.Config(app, host=settings.host, port=settings.port, log_level="warning", lifespan="on")
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    http = asyncio.create_task(serve_until_stopped(server))
    await wait_started(server, http, settings)
    url = f"http://{settings.host}:{server.servers[0].sockets[0].getsockname()[1]}"
    async with contextlib.AsyncExitStack() as stack:
        app.state.children = await stack.enter_async_context(running_children(settings, data, endpoints))
        if servers is not None:
            await stack.enter_async_context(reviving(servers))
        write_node(data, endpoints, url)
        announce(endpoints, url)
        await stop.wait()
        logger.info("draining")
    server.should_exit = True
    await asyncio.gather(http, return_exceptions=True)


async def _prepare(settings: Settings, endpoints: Endpoints) -> None:
    """Everything that would make a child fail is tried here first, where the user sees the error."""
    streams = await open_streams(endpoints.redis_url, shards=settings.shards)
    await streams.close()
    pool = await connect(endpoints.database_url, max_size=1)
    try:
        await migrate(pool)
    finally:
        await pool.close()
