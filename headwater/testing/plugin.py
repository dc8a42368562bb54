"""The pytest fixtures. Switch them on with `pytest_plugins = ["headwater.testing.plugin"]` in a conftest."""

import asyncio
import os
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from handlers.team import Team
from headwater.embedded import EmbeddedServers, Endpoints
from headwater.testing.harness import TaskRun, running

T = TypeVar("T")


@pytest.fixture(scope="session")
def headwater_servers() -> Iterator[Endpoints]:
    """Redis and PostgreSQL for the session: those at TEST_REDIS_URL and TEST_DATABASE_URL, else embedded ones.

    Every run flushes that Redis, so an application's own REDIS_URL is deliberately not looked at.
    """
    if "TEST_REDIS_URL" in os.environ and "TEST_DATABASE_URL" in os.environ:
        yield Endpoints(os.environ["TEST_REDIS_URL"], os.environ["TEST_DATABASE_URL"])
        return
    with tempfile.TemporaryDirectory(prefix="headwater-test-") as data:
        # A PostgreSQL that runs as another user must get through to its data.
        Path(data).chmod(0o711)
        with EmbeddedServers(Path(data)) as endpoints:
            yield endpoints


class TeamRunner:
    """The fixture `headwater`: `run_task` runs one task on real servers and returns when it has ended."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints

    def run_task(self, team: Team, text: str, *, answers: Any = (), faults: Any = (), **fields: Any) -> TaskRun:
        """Run one task of `team`. `fields` as in a task file, such as `type`, `data` or `tenant`."""

        async def run() -> TaskRun:
            async with running(team, self.endpoints, answers=answers, faults=faults) as harness:
                return await harness.run_task(text, **fields)

        return self.run(run())

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of a test that needs more than one task; see `headwater.testing.running`."""
        return asyncio.run(work)


@pytest.fixture
def headwater(headwater_servers: Endpoints) -> TeamRunner:
    """Runs tasks of a team: `run = headwater.run_task(team, "…", answers=[{"system": "…", "answer": "…"}])`."""
    return TeamRunner(headwater_servers)
