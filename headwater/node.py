"""How commands find a running `headwater up`: a small file in its data directory, next to its lock."""

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from headwater.embedded import Endpoints
from headwater.settings import Settings
from schemas.errors import ConfigurationError

_FILE = "node.json"


class Node(BaseModel):
    """A running `up`: where its servers and its HTTP application answer."""

    model_config = ConfigDict(frozen=True)

    pid: int
    redis_url: str
    database_url: str
    url: str
    started_at: datetime


def write_node(data: Path, endpoints: Endpoints, url: str) -> None:
    """Say that this process is up on `data`."""
    node = Node(
        pid=os.getpid(),
        redis_url=endpoints.redis_url,
        database_url=endpoints.database_url,
        url=url,
        started_at=datetime.now(UTC),
    )
    path = data / _FILE
    path.touch(mode=0o600)
    path.write_text(node.model_dump_json(indent=2))


def remove_node(data: Path) -> None:
    """Say that it is not any more."""
    (data / _FILE).unlink(missing_ok=True)


def running_node(data: Path) -> Node | None:
    """The `up` that runs on `data`, or None."""
    try:
        node = Node.model_validate_json((data / _FILE).read_bytes())
        with (data / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return node
    except (OSError, ValidationError):
        return None
    return None


def find_endpoints(settings: Settings) -> Endpoints:
    """Where Redis and PostgreSQL answer: by URL from the settings, else those of the `up` that is running.

    Raises:
        ConfigurationError: no URLs are set and nothing runs on the data directory.
    """
    if settings.redis_url and settings.database_url:
        return Endpoints(settings.redis_url, settings.database_url)
    node = running_node(settings.data)
    if node is None:
        raise ConfigurationError(
            f"no Headwater is running on {settings.data}: start one with 'headwater up', name its directory with "
            "--data, or set REDIS_URL and DATABASE_URL"
        )
    return Endpoints(settings.redis_url or node.redis_url, settings.database_url or node.database_url)
