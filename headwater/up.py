"""`headwater up`: the servers, the HTTP application, the projector and the workers, in one process tree."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
import uvicorn

from headwater.app import create_app
from headwater.embedded import EmbeddedServers, Endpoints
from headwater.embedded.process import EmbeddedServerError, die_with_parent
from headwater.embedded.servers import lock_directory
from headwater.node import remove_node, write_node
from headwater.settings import Settings
from headwater.teams import load_team
from projections.db import connect, migrate
from schemas.errors import ConfigurationError
from streams.connection import open_streams

logger = structlog.get_logger(__name__)

DRAIN_S = 40.0
"""How long a child may take to finish what it does; then it is killed, and its work is done again elsewhere."""
REVIVE_S = 1.0
"""Embedded servers that died are started again this soon."""
MAX_RESTART_DELAY_S = 5.0
STEADY_S = 10.0
"""A child that lived this long is restarted at once when it dies."""


class Child:
    """One child process, started again whenever it dies."""

    def __init__(self, name: str, arguments: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.restarts = 0
        self._command = [sys.executable, "-m", "headwater", *arguments]
        self._env = dict(env)
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """Does it run now?"""
        return self._process is not None and self._process.returncode is None

    async def keep_running(self) -> None:
        """Run it until `stop`."""
        delay_s = 0.1
        while not self._stopping.is_set():
            born = time.monotonic()
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=self._env,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C goes to `up` alone, which then drains its children.
                    start_new_session=True,
                    preexec_fn=die_with_parent(signal.SIGKILL),
                )
            status = await self._process.wait()
            if self._stopping.is_set():
                return
            self.restarts += 1
            delay_s = 0.1 if time.monotonic() - born > STEADY_S else min(delay_s * 2, MAX_RESTART_DELAY_S)
            logger.warning("child_died", child=self.name, status=status, restart_in_s=delay_s, log=str(self._log))
            await asyncio.sleep(delay_s)

    async def stop(self) -> None:
        """Let it finish, for `DRAIN_S` at most."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), DRAIN_S)
        except TimeoutError:
            logger.warning("child_killed", child=self.name)
            process.kill()
            await process.wait()


def up(settings: Settings, announce: Callable[[Endpoints, str], None]) -> None:
    """Run everything until Ctrl-C or SIGTERM. `announce` is called with the endpoints and the URL once all is up.

    Raises:
        DataDirectoryInUseError: another `up` runs on the data directory.
        ConfigurationError: the team or the servers cannot be used.
    """
    load_team(settings.agents)
    data = settings.data.absolute()
    with contextlib.ExitStack() as stack:
        servers: EmbeddedServers | None = None
        if settings.redis_url and settings.database_url:
            data.mkdir(parents=True, exist_ok=True)
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
    http = asyncio.create_task(_serve(server))
    await _wait_started(server, http, settings)
    url = f"http://{settings.host}:{server.servers[0].sockets[0].getsockname()[1]}"
    children = app.state.children = _children(settings, data, endpoints)
    keepers = [asyncio.create_task(child.keep_running()) for child in children]
    write_node(data, endpoints, url)
    announce(endpoints, url)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), REVIVE_S)
        if servers is not None and not stop.is_set():
            _revive(servers)
    logger.info("draining")
    # Workers first: what they finish, the projector still reads.
    for group in (children[1:], children[:1]):
        await asyncio.gather(*(child.stop() for child in group))
    for keeper in keepers:
        keeper.cancel()
    server.should_exit = True
    await asyncio.gather(http, *keepers, return_exceptions=True)


def _revive(servers: EmbeddedServers) -> None:
    """Start embedded servers that died again. Blocks, for they die with the thread that started them: this one."""
    try:
        for name in servers.revive():
            logger.error("server_revived", server=name)
    except EmbeddedServerError as error:
        logger.error("server_not_revived", error=str(error), retry_in_s=REVIVE_S)


async def _prepare(settings: Settings, endpoints: Endpoints) -> None:
    """Everything that would make a child fail is tried here first, where the user sees the error."""
    streams = await open_streams(endpoints.redis_url, shards=settings.shards)
    await streams.close()
    pool = await connect(endpoints.database_url, max_size=1)
    try:
        await migrate(pool)
    finally:
        await pool.close()


async def _serve(server: uvicorn.Server) -> None:
    with contextlib.suppress(SystemExit):
        await server.serve()


async def _wait_started(server: uvicorn.Server, http: "asyncio.Task[None]", settings: Settings) -> None:
    while not server.started:
        if http.done():
            raise ConfigurationError(
                f"port {settings.port} on {settings.host} cannot be used: choose another with --port (0: any free one)"
            )
        await asyncio.sleep(0.01)


def _children(settings: Settings, data: Path, endpoints: Endpoints) -> list[Child]:
    logs = data / "logs"
    logs.mkdir(exist_ok=True)
    env = os.environ | {
        "REDIS_URL": endpoints.redis_url,
        "DATABASE_URL": endpoints.database_url,
        "HEADWATER_DATA": str(data),
        "HEADWATER_SHARDS": str(settings.shards),
    }
    agents = ["--agents", settings.agents] if settings.agents else []
    children = [Child("projector", ["projector"], env, logs / "projector.log")]
    for n in range(1, settings.workers + 1):
        children.append(Child(f"worker-{n}", ["worker", *agents], env, logs / f"worker-{n}.log"))
    return children
