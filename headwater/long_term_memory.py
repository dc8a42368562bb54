"""`LongTermMemory`: memories for producers and people who look, outside any agent's run (contract row D2)."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from handlers.embedders import Embedder
from handlers.llm import LlmClient, LlmService
from handlers.memory import check_memory, check_results
from handlers.vectors import pack
from headwater.detached import DetachedJournal
from projections.db import Pool
from projections.memory_search import MemorySearch
from schemas.bodies import MemoryStored
from schemas.errors import ConfigurationError
from schemas.event import AgentEvent
from schemas.ids import check_tenant_id, new_id
from schemas.memory import MemoryEntry
from streams.bus import USER, TenantEventBus
from streams.connection import Streams

SEARCHES = "memory-search"
"""The session that embeddings of searches are billed to, when a provider makes them."""
_NO_CALL = ""


class LongTermMemory:
    """Stores and searches facts of a tenant. Agents use `context.memory`, which also survives their crashes."""

    def __init__(
        self, streams: Streams, pool: Pool, embedder: Embedder | None, make_llm: Callable[[], LlmService]
    ) -> None:
        self._streams = streams
        self._search = MemorySearch(pool, streams.log)
        self._embedder = embedder
        self._make_llm = make_llm
        self._service: LlmService | None = None

    async def is_available(self) -> bool:
        """Can anything be found: is there an embedder, and does PostgreSQL have pgvector?"""
        return self._embedder is not None and await self._search.is_available()

    async def store(
        self, tenant_id: str, session_id: str, text: str, *, agent_id: str, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Remember `text` for `agent_id`, as an event of no task, and return the event's id.

        Raises:
            InvalidInputError: the text is empty or too long, or the metadata is over 2 KiB of JSON.
            ConfigurationError: memory is switched off.
        """
        embedder = self._require_embedder()
        extra = check_memory(text, metadata)
        (vector,) = await embedder.embed([text], self._client(embedder, tenant_id, session_id))
        event = AgentEvent(
            id=new_id(),
            tenant_id=check_tenant_id(tenant_id),
            session_id=session_id,
            task_id="",
            source_agent_id=USER,
            call_chain=(USER,),
            at=datetime.now(UTC),
            body=MemoryStored(
                call_id=_NO_CALL,
                ordinal=0,
                delivery=0,
                agent_id=agent_id,
                text=text,
                metadata=extra,
                embedder=embedder.id,
                dimensions=len(vector),
                embedding=b64encode(pack(vector)).decode(),
                request_hash="",
                duration_us=0,
            ),
        )
        await TenantEventBus(self._streams, tenant_id).publish(event)
        return event.id

    async def search(self, tenant_id: str, query: str, k: int = 5, *, agent_id: str | None = None) -> list[MemoryEntry]:
        """The `k` memories of a tenant nearest to `query` in meaning, the most relevant first.

        Raises:
            InvalidInputError: the query is empty, or `k` is out of range.
            ConfigurationError: memory is switched off, or PostgreSQL has no pgvector.
            UnavailableError: PostgreSQL or Redis is away, or the projections are behind.
        """
        check_tenant_id(tenant_id)
        check_results(k)
        embedder = self._require_embedder()
        if not await self._search.is_available():
            raise ConfigurationError(
                "this system runs without long-term memory: its PostgreSQL has no pgvector. Install the extension "
                "'vector', restart, and run 'headwater rebuild memories'"
            )
        (vector,) = await embedder.embed([query], self._client(embedder, tenant_id, SEARCHES))
        return await self._search.search_vector(tenant_id, vector, embedder=embedder.id, k=k, agent_id=agent_id)

    def _client(self, embedder: Embedder, tenant_id: str, session_id: str) -> LlmClient | None:
        if not embedder.asks_provider:
            return None
        self._service = self._service or self._make_llm()
        return LlmClient(self._service, DetachedJournal(self._streams, tenant_id, session_id))

    def _require_embedder(self) -> Embedder:
        if self._embedder is None:
            raise ConfigurationError("long-term memory is switched off (HEADWATER_EMBEDDER=none): set an embedder")
        return self._embedder
