"""`context.memory`: long-term memory in the name of one call (contract row D2)."""

import time
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from handlers.embedders import Embedder, Embeds
from handlers.journal import Journal
from handlers.patience import patiently
from handlers.recall import MemoryReader
from handlers.steps import durable_step, recorded, request_hash, stamp
from handlers.vectors import pack
from schemas.bodies import MemoryStored
from schemas.content import Json, canonical_json
from schemas.errors import ConfigurationError, InvalidInputError
from schemas.memory import MemoryEntry

MAX_TEXT_CHARS = 100_000
MAX_METADATA_BYTES = 2048
MAX_RESULTS = 200


class AgentMemory:
    """Stores facts and finds them again by meaning, within the tenant and never outside it.

    What is stored is an event, and the memories are a projection of it. What a search found is recorded, so that an
    agent that is run again, and a replay, see what was seen then.

    Without pgvector (`await context.memory.is_available()` is false) nothing is ever found; what is stored is kept in
    the log, and found once the extension is there and the memories were rebuilt.
    """

    def __init__(self, journal: Journal, llm: Embeds, embedder: Embedder | None, reader: MemoryReader | None) -> None:
        self._journal = journal
        self._llm = llm
        self._embedder = embedder
        self._reader = reader

    async def is_available(self) -> bool:
        """Can anything be found here?"""
        reader = self._reader
        return self._embedder is not None and reader is not None and await patiently(self._journal, reader.is_available)

    async def store(self, text: str, *, metadata: Mapping[str, Any] | None = None) -> str:
        """Remember `text`, and return the id of the event that says so. Done once, however often the agent is run.

        Raises:
            InvalidInputError: the text is empty or too long, or the metadata is over 2 KiB of JSON or none.
            ConfigurationError: memory is switched off by HEADWATER_EMBEDDER=none.
        """
        embedder = self._require_embedder()
        extra = check_memory(text, metadata)
        clock = time.perf_counter_ns()
        ordinal, asked = self._journal.next_ordinal(), request_hash("memory.store", text, extra, embedder.id)
        # Also when it is recorded: a provider's embedding has an ordinal of its own.
        (vector,) = await embedder.embed([text], self._llm)
        found = recorded(self._journal, ordinal, asked, MemoryStored)
        if found is not None:
            return found[0].id
        body = MemoryStored(
            **stamp(self._journal, ordinal, asked),
            text=text,
            metadata=extra,
            embedder=embedder.id,
            dimensions=len(vector),
            embedding=b64encode(pack(vector)).decode(),
            duration_us=(time.perf_counter_ns() - clock) // 1000,
        )
        delivery = self._journal.delivery.delivery
        event = self._journal.event(body, "memory", ordinal, delivery)
        await self._journal.record(f"{ordinal}.0@{delivery}", event)
        return event.id

    async def search(self, query: str, k: int = 5, *, agent_id: str | None = None) -> list[MemoryEntry]:
        """The `k` memories of this tenant that are nearest to `query` in meaning, the most relevant first.

        With `agent_id`, of what that agent stored only. Memories made by another embedder are not compared.

        Raises:
            InvalidInputError: the query is empty, or `k` is not from 1 to 200.
            ConfigurationError: memory is switched off by HEADWATER_EMBEDDER=none.
        """
        embedder = self._require_embedder()
        check_results(k)
        ordinal, asked = self._journal.next_ordinal(), request_hash("memory.search", query, k, agent_id, embedder.id)
        (vector,) = await embedder.embed([query], self._llm)

        async def nearest() -> Json:
            return [entry.model_dump(mode="json") for entry in await self.nearest(vector, k, agent_id=agent_id)]

        found = await durable_step(self._journal, ordinal, "memory.search", asked, nearest)
        return [MemoryEntry.model_validate(entry) for entry in found]

    async def vector_of(self, query: str) -> list[float] | None:
        """The vector to search with; None where nothing can be found, or the query says nothing to the embedder."""
        if self._embedder is None or self._reader is None or not query.strip():
            return None
        try:
            return (await self._embedder.embed([query], self._llm))[0]
        except InvalidInputError:
            return None

    async def nearest(self, vector: list[float], k: int, *, agent_id: str | None = None) -> list[MemoryEntry]:
        """A search that is not recorded here. Waits while PostgreSQL is away or the projections are behind."""
        reader, embedder = self._reader, self._embedder
        if reader is None or embedder is None:
            return []
        tenant_id = self._journal.call.tenant_id
        return await patiently(
            self._journal,
            lambda: reader.search_vector(tenant_id, vector, embedder=embedder.id, k=k, agent_id=agent_id),
        )

    def _require_embedder(self) -> Embedder:
        if self._embedder is None:
            raise ConfigurationError(
                "long-term memory is switched off (HEADWATER_EMBEDDER=none): set an embedder, or do not use it"
            )
        return self._embedder


def check_memory(text: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata of a memory that may be stored. Raises `InvalidInputError` for one that may not."""
    extra = dict(metadata or {})
    size = len(canonical_json(extra))
    if not text.strip() or len(text) > MAX_TEXT_CHARS or size > MAX_METADATA_BYTES:
        raise InvalidInputError(
            f"a memory has 1 to {MAX_TEXT_CHARS:,} characters, not all of them spaces, and up to "
            f"{MAX_METADATA_BYTES:,} bytes of metadata; this one has {len(text):,} and {size:,}"
        )
    canonical_json(text)
    return extra


def check_results(k: int) -> None:
    """Raises `InvalidInputError` if a search may not ask for `k` memories."""
    if not 1 <= k <= MAX_RESULTS:
        raise InvalidInputError(f"a search gives 1 to {MAX_RESULTS} memories, not {k}")
