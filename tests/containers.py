"""Redis and PostgreSQL in containers, where a Docker engine answers."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from headwater.embedded import Endpoints

REDIS_IMAGE = "redis:7"
POSTGRES_IMAGE = "pgvector/pgvector:pg17"


@contextlib.contextmanager
def container_endpoints() -> Iterator[Endpoints | None]:
    """Endpoints of fresh containers, or None without an engine or without the images."""
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        yield None
        return
    import docker.errors
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.community.redis import RedisContainer

    with contextlib.ExitStack() as stack:
        try:
            redis = stack.enter_context(RedisContainer(REDIS_IMAGE))
            postgres = stack.enter_context(PostgresContainer(POSTGRES_IMAGE, driver=None))
        except (docker.errors.DockerException, ConnectionError):
            yield None
            return
        redis_url = f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}"
        yield Endpoints(redis_url, postgres.get_connection_url())
