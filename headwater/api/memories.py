"""What agents remember, over HTTP."""

from typing import Annotated, Any

from fastapi import Query

from headwater.api.access import Reader
from headwater.api.models import MemoriesOut, MemoryOut
from headwater.api.parts import Connection, router
from schemas.errors import UnavailableError
from schemas.memory import MemoryEntry

memories = router("memories")

MAX_QUERY_CHARS = 4000


@memories.get("/memories", summary="Search what agents remember")
async def search(
    caller: Reader,
    hw: Connection,
    q: Annotated[
        str,
        Query(
            min_length=1, max_length=MAX_QUERY_CHARS, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$", description="What about."
        ),
    ],
    agent: Annotated[
        str | None, Query(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$", description="Only what this agent stored.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=50, description="At most so many.")] = 5,
) -> MemoriesOut:
    """The tenant's memories nearest in meaning, the most relevant first, each with the event that it came from.

    503 where the system runs without long-term memory. With an embedder that asks a provider, a search costs what
    the embedding of `q` costs, billed to the session `memory-search`.
    """
    if not await hw.memory.is_available():
        raise UnavailableError(
            "long-term memory is not available: this system's PostgreSQL has no pgvector, or HEADWATER_EMBEDDER is none"
        )
    found = await hw.memory.search(caller.tenant_id, q, limit, agent_id=agent)
    return MemoriesOut(memories=[MemoryOut(**_named(entry)) for entry in found])


def _named(entry: MemoryEntry) -> dict[str, Any]:
    return {name.removesuffix("_id"): value for name, value in entry.model_dump(mode="json").items()}
