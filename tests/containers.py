"""Real servers for tests: those given by URL, containers where a Docker engine answers, or the embedded ones."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from headwater.embedded import EmbeddedServers, Endpoints

REDIS_IMAGE = "redis:7"
POSTGRES_IMAGE = "pgvector/pgvector:pg17"


@contextlib.contextmanager
def serving(environ: Mapping[str, str] = os.environ) -> Iterator[Endpoints]:
    """Endpoints of a Redis and a PostgreSQL. A server that is missing is never a reason to leave a test out."""
    if "REDIS_URL" in environ and "DATABASE_URL" in environ:
        yield Endpoints(environ["REDIS_URL"], environ["DATABASE_URL"])
        return
    with container_endpoints() as found:
        if found is not None:
            yield found
            return
    with tempfile.TemporaryDirectory(prefix="hw-test-") as data:
        # Servers that run as another user must get through to their data.
        Path(data).chmod(0o711)
        with EmbeddedServers(Path(data)) as started:
            yield started


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
            started = None
        else:
            redis_url = f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}"
            started = Endpoints(redis_url, postgres.get_connection_url())
        yield started
