"""`headwater api`: the HTTP application alone, for as many processes as its clients need."""

import asyncio
import contextlib
import signal
from collections.abc import Callable

import uvicorn

from headwater.app import create_app
from headwater.embedded import Endpoints
from headwater.settings import Settings
from schemas.errors import ConfigurationError

DRAIN_S = 30
"""How long answers may take that were begun when the process was told to stop."""


async def run_api(settings: Settings, endpoints: Endpoints, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the answers that were begun. `announce` is called with the URL.

    Raises:
        ConfigurationError: the port cannot be used, or the application did not start; the log says why.
    """
    # uvicorn puts its own handlers above these, and raises the signal again for them once it has stopped; without
    # them, that would end the process as if it had been killed.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: None)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, endpoints),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    serving = asyncio.create_task(serve_until_stopped(server))
    await wait_started(server, serving, settings)
    announce(f"http://{settings.host}:{server.servers[0].sockets[0].getsockname()[1]}")
    await serving


async def serve_until_stopped(server: uvicorn.Server) -> None:
    """`server.serve()`, whose failure to start does not end the process: `wait_started` tells of it."""
    with contextlib.suppress(SystemExit):
        await server.serve()


async def wait_started(server: uvicorn.Server, serving: "asyncio.Task[None]", settings: Settings) -> None:
    """Wait until the application answers.

    Raises:
        ConfigurationError: it will not.
    """
    while not server.started:
        if serving.done():
            if server.lifespan.should_exit:
                raise ConfigurationError("the HTTP application did not start: the log above says why")
            raise ConfigurationError(
                f"port {settings.port} on {settings.host} cannot be used: choose another with --port (0: any free one)"
            )
        await asyncio.sleep(0.01)
