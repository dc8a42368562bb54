"""Every Redis key name is made here (and, inside the server, in the header of `headwater.lua`).

Tenants hash onto a fixed number of shards. All keys of a shard carry the same hash tag, so one function can touch all
of them, on Redis Cluster too.
"""

import re
import zlib

from schemas.errors import InvalidInputError
from schemas.ids import check_tenant_id

META = "hw:meta"
"""Hash: what is fixed for the life of the log, such as the number of shards."""


AGENTS = "hw:{agents}"
"""What the keys begin with that hold, for each agent, how many runs each worker may have at once."""


def in_lane(name: str, lane: str | None) -> str:
    """The name of an agent's queue, or of the workers' bell, where a task is forked to another team.

    No agent id has an "@"; `headwater.lua` knows the lane by it.
    """
    return name if lane is None else f"{name}@{lane}"


class Keys:
    """Key names for a log of `shards` shards."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        width = max(2, len(str(shards - 1)))
        self.prefixes = tuple(f"hw:{{s{n:0{width}}}}" for n in range(shards))

    def shard_of(self, tenant_id: str) -> int:
        """The shard a tenant lives on. Raises `InvalidInputError` for a tenant id that could leave its keys."""
        return zlib.crc32(check_tenant_id(tenant_id).encode()) % self.shards

    def prefix(self, tenant_id: str) -> str:
        """What all keys of one tenant begin with."""
        return f"{self.prefixes[self.shard_of(tenant_id)]}:{tenant_id}"

    def log(self, tenant_id: str) -> str:
        """The tenant's stream of facts."""
        return f"{self.prefix(tenant_id)}:log"

    def readers(self, tenant_id: str) -> str:
        """Hash: how far each reader has read the tenant's log."""
        return f"{self.prefix(tenant_id)}:readers"

    @property
    def any_readers(self) -> str:
        """A pattern that the names of all tenants' `readers` match."""
        return "hw:{s*}:*:readers"

    def tenant_of(self, readers: str) -> str | None:
        """The tenant whose `readers` has this name, or None: it is the name of something else."""
        found = re.fullmatch(r"hw:\{s\d+\}:([^:]+):readers", readers)
        try:
            return found[1] if found is not None and self.readers(found[1]) == readers else None
        except InvalidInputError:
            return None

    def parked(self, tenant_id: str) -> str:
        """The tenant's stream of entries that a reader could not handle."""
        return f"{self.prefix(tenant_id)}:parked"

    def blob(self, tenant_id: str, sha256: str) -> str:
        """One large content of the tenant."""
        return f"{self.prefix(tenant_id)}:blob:{sha256}"

    def done(self, tenant_id: str) -> str:
        """The channel on which the ends of the tenant's tasks are announced."""
        return f"{self.prefix(tenant_id)}:done"

    def spent(self, tenant_id: str) -> str:
        """Hash: open task with a budget → picodollars that it has spent."""
        return f"{self.prefix(tenant_id)}:spent"

    def ready(self, shard: int, reader: str) -> str:
        """Sorted set of the shard's tenants that `reader` has something to read from."""
        return f"{self.prefixes[shard]}:ready:{reader}"

    def bell(self, shard: int, reader: str) -> str:
        """The list on which an idle reader blocks."""
        return f"{self.prefixes[shard]}:bell:{reader}"

    def queue(self, tenant_id: str, agent_id: str) -> str:
        """Sorted set of the tenant's calls that wait for an agent."""
        return f"{self.prefix(tenant_id)}:queue:{agent_id}"

    def leases(self, shard: int) -> str:
        """Sorted set of the shard's calls that workers hold."""
        return f"{self.prefixes[shard]}:leases"
