"""The pytest fixtures: `pytest_plugins = ["headwater.testing.plugin"]` in the top conftest switches them on."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.embedded import EmbeddedServers, Endpoints
from headwater.testing.harness import TeamRunner


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


@pytest.fixture
def headwater(headwater_servers: Endpoints) -> TeamRunner:
    """Runs tasks of a team: `run = headwater.run_task(team, "…", answers=[{"system": "…", "answer": "…"}])`."""
    return TeamRunner(headwater_servers)
