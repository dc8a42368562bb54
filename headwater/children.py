"""The projector and the workers as child processes, and the embedded servers, kept running."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import structlog

from headwater.embedded import EmbeddedServers, Endpoints
from headwater.embedded.process import EmbeddedServerError, die_with_parent
from headwater.settings import Settings

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


@contextlib.asynccontextmanager
async def running_children(settings: Settings, data: Path, endpoints: Endpoints) -> AsyncIterator[list[Child]]:
    """A projector and the workers, started again when they die, and drained at the end."""
    children = _children(settings, data, endpoints)
    keepers = [asyncio.create_task(child.keep_running()) for child in children]
    try:
        yield children
    finally:
        # Workers first: what they finish, the projector still reads.
        for group in (children[1:], children[:1]):
            await asyncio.gather(*(child.stop() for child in group))
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


@contextlib.asynccontextmanager
async def reviving(servers: EmbeddedServers) -> AsyncIterator[None]:
    """Start the servers again when they die."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(REVIVE_S)
            _revive(servers)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _revive(servers: EmbeddedServers) -> None:
    """Start embedded servers that died again. Blocks, for they die with the thread that started them: this one."""
    try:
        for name in servers.revive():
            logger.error("server_revived", server=name)
    except EmbeddedServerError as error:
        logger.error("server_not_revived", error=str(error), retry_in_s=REVIVE_S)


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
