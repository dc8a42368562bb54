"""The pytest fixtures: `pytest_plugins = ["headwater.testing.plugin"]` in the top conftest switches them on."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.embedded import EmbeddedServers, Endpoints
from headwater.testing.harness import TeamRunner
from headwater.testing.recorded import ENDINGS, RecordedFile


def pytest_addoption(parser: pytest.Parser) -> None:
    """The ini option that names the team of the recorded logs."""
    parser.addini("headwater_team", "The team, as module:object, that recorded logs are decided again with.")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> RecordedFile | None:
    """Files of `headwater fixture` are tests."""
    return RecordedFile.from_parent(parent, path=file_path) if file_path.name.endswith(ENDINGS) else None


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
