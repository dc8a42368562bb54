"""Long-term memory (row D2) on a real pgvector: what is stored is found by its tenant, and by nobody else."""

import random
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from handlers.vectors import pack, unpack
from projections.db import Pool, connect, migrate, tenant_connection
from projections.memory import find_pgvector
from projections.memory_search import MINE, MemorySearch, index_query, prepare_memory
from projections.rebuild import digests, rebuild
from schemas.bodies import MemoryStored
from streams.bus import TenantEventBus
from streams.connection import Streams
from tests.projecting import event, project

DIMENSIONS = 32
EMBEDDER = "test:32"


def stored(text: str, vector: Sequence[float], *, agent: str = "writer", embedder: str = EMBEDDER) -> MemoryStored:
    return MemoryStored(
        call_id="c",
        ordinal=0,
        delivery=1,
        agent_id=agent,
        text=text,
        metadata={"about": text[:10]},
        embedder=embedder,
        dimensions=len(vector),
        embedding=b64encode(pack(vector)).decode(),
        request_hash="r",
        duration_us=1,
    )


def vector_of(seed: object, dimensions: int = DIMENSIONS) -> list[float]:
    source = random.Random(str(seed))
    return unpack(pack([source.gauss(0, 1) for _ in range(dimensions)]))


async def publish(streams: Streams, tenant: str, body: MemoryStored) -> str:
    fact = event(body, tenant, agent=body.agent_id)
    await TenantEventBus(streams, tenant).publish(fact)
    return fact.id


async def test_a_search_finds_the_nearest_with_their_provenance(streams: Streams, pool: Pool) -> None:
    ids = {n: await publish(streams, "acme", stored(f"memory {n}", vector_of(n))) for n in range(20)}
    await publish(streams, "globex", stored("theirs", vector_of(7)))
    await project(streams, pool)
    found = await MemorySearch(pool, streams.log).search_vector("acme", vector_of(7), embedder=EMBEDDER, k=3)
    best = found[0]
    assert best.text == "memory 7"
    assert (best.tenant_id, best.event_id, best.agent_id, best.task_id) == ("acme", ids[7], "writer", "task-1")
    assert best.metadata == {"about": "memory 7"}
    assert best.score == pytest.approx(1, abs=1e-6)
    assert [entry.score for entry in found] == sorted((entry.score for entry in found), reverse=True)


async def test_a_tenant_never_gets_another_tenants_memories(streams: Streams, pool: Pool) -> None:
    for tenant in ("acme", "globex"):
        for n in range(5):
            await publish(streams, tenant, stored(f"{tenant} {n}", vector_of(n)))
    await project(streams, pool)
    for exact_rows in (1000, 0):
        search = MemorySearch(pool, streams.log, exact_rows=exact_rows)
        for tenant in ("acme", "globex"):
            found = await search.search_vector(tenant, vector_of(3), embedder=EMBEDDER, k=100)
            assert {entry.tenant_id for entry in found} == {tenant}
            assert sorted(entry.text for entry in found) == [f"{tenant} {n}" for n in range(5)]
        assert await search.search_vector("initech", vector_of(3), embedder=EMBEDDER, k=100) == []
    # The second lock: whatever a query says, row-level security answers for it.
    async with tenant_connection(pool, "acme") as conn:
        assert await conn.fetchval("SELECT count(*) FROM memories") == 5
        assert await conn.fetchval("SELECT count(*) FROM memories WHERE tenant = 'globex'") == 0


async def test_agents_and_embedders_are_told_apart(streams: Streams, pool: Pool) -> None:
    await publish(streams, "acme", stored("writer's", vector_of(1)))
    await publish(streams, "acme", stored("reader's", vector_of(2), agent="reader"))
    await publish(streams, "acme", stored("other model's", vector_of(1), embedder="other:32"))
    await publish(streams, "acme", stored("longer", vector_of(1, 48), embedder=EMBEDDER))
    await project(streams, pool)
    search = MemorySearch(pool, streams.log)

    async def texts(vector: list[float], embedder: str = EMBEDDER, agent: str | None = None) -> list[str]:
        found = await search.search_vector("acme", vector, embedder=embedder, k=10, agent_id=agent)
        return [entry.text for entry in found]

    assert await texts(vector_of(1)) == ["writer's", "reader's"]
    assert await texts(vector_of(1), agent="reader") == ["reader's"]
    assert await texts(vector_of(1), agent="nobody") == []
    assert await texts(vector_of(1), "other:32") == ["other model's"]
    assert await texts(vector_of(1, 48)) == ["longer"]


@pytest.mark.parametrize("dimensions", [1536, 3072, 5000])
async def test_long_vectors_and_long_texts(streams: Streams, pool: Pool, dimensions: int) -> None:
    # Both are over the inline limit: the log and the rows refer to blobs, and the search reads them in full.
    long_text = "a long memory " * 500
    await publish(streams, "acme", stored(long_text, vector_of(1, dimensions)))
    await publish(streams, "acme", stored("short", vector_of(2, dimensions)))
    await project(streams, pool)
    for exact_rows in (1000, 0):
        search = MemorySearch(pool, streams.log, exact_rows=exact_rows)
        found = await search.search_vector("acme", vector_of(1, dimensions), embedder=EMBEDDER, k=2)
        assert [entry.text for entry in found] == [long_text, "short"]
        assert found[0].score == pytest.approx(1, abs=1e-3)
    await _same_after_rebuild(pool)


async def _same_after_rebuild(pool: Pool) -> None:
    before = [d for d in await digests(pool) if d.projection == "memories"]
    assert before[0].rows > 0
    await rebuild(pool, ["memories"])
    assert [d for d in await digests(pool) if d.projection == "memories"] == before


async def test_the_memories_rebuild_to_the_same_digest(streams: Streams, pool: Pool) -> None:
    for tenant in ("acme", "globex"):
        for n in range(10):
            await publish(streams, tenant, stored(f"{n} \x00 NUL", vector_of((tenant, n))))
    await project(streams, pool)
    await _same_after_rebuild(pool)


async def test_an_embedding_that_is_not_what_it_says_is_kept_apart(streams: Streams, pool: Pool) -> None:
    wrong = stored("wrong", vector_of(1)).model_copy(update={"dimensions": 31})
    nan = stored("not a number", [float("nan")] * DIMENSIONS)
    for body in (wrong, nan, stored("right", vector_of(2))):
        await publish(streams, "acme", body)
    await project(streams, pool)
    found = await MemorySearch(pool, streams.log).search_vector("acme", vector_of(2), embedder=EMBEDDER, k=5)
    assert [entry.text for entry in found] == ["right"]
    assert await pool.fetchval("SELECT count(*) FROM unreadable") == 2


# --- a small tenant among many rows of others -------------------------------------------------------------------------

OTHERS = 50_000
MIDDLE = 3_000
_FILL = """
INSERT INTO memories
    (tenant, event_id, ms, seq, at, agent, session, task, text, metadata, embedder, dimensions, embedding)
SELECT $1::text || (n % $2::int), $1 || n, n, 0, now(), 'writer', 's', 't', to_json('m' || n), '{}', $3, $4::int,
    -- Names n, so that every row gets a vector of its own.
    (SELECT array_agg(random() - 0.5)::real[]::vector FROM generate_series(1, $4::int) WHERE n > 0)
FROM generate_series(1, $5::int) n
"""


@pytest.fixture(scope="module")
def queries() -> list[list[float]]:
    return [vector_of(("query", n)) for n in range(20)]


async def _exact(pool: Pool, tenant: str, query: list[float], k: int) -> list[str]:
    rows = await pool.fetch(
        "WITH mine AS MATERIALIZED (SELECT event_id, embedding FROM memories WHERE tenant = $1) "
        "SELECT event_id FROM mine ORDER BY embedding <=> $2::text::vector LIMIT $3",
        tenant,
        str(query),
        k,
    )
    return [row["event_id"] for row in rows]


async def _recall(pool: Pool, search: MemorySearch, tenant: str, queries: list[list[float]], k: int = 10) -> float:
    hits = 0
    for query in queries:
        found = await search.search_vector(tenant, query, embedder=EMBEDDER, k=k)
        assert len(found) == k
        hits += len({entry.event_id for entry in found} & set(await _exact(pool, tenant, query, k)))
    return hits / (k * len(queries))


async def test_a_small_tenant_finds_its_own_among_many_rows_of_others(
    streams: Streams, pool: Pool, queries: list[list[float]]
) -> None:
    await publish(streams, "first", stored("makes the index", vector_of(0)))
    await project(streams, pool)
    index = await pool.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = $1", f"memories_hnsw_{DIMENSIONS}")
    await pool.execute(f"DROP INDEX memories_hnsw_{DIMENSIONS}")
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT setseed(0.5)")
        await conn.execute(_FILL, "other", 50, EMBEDDER, DIMENSIONS, OTHERS)
        await conn.execute(_FILL, "middle", 1, EMBEDDER, DIMENSIONS, MIDDLE)
        await conn.execute(_FILL, "small", 1, EMBEDDER, DIMENSIONS, 12)
        await conn.execute("SET LOCAL maintenance_work_mem = '128MB'")
        await conn.execute(index)
    await pool.execute("ANALYZE memories")
    search = MemorySearch(pool, streams.log)
    # Few memories are compared one by one: nothing is missed.
    assert await _recall(pool, search, "small0", queries) == 1.0
    # Many are searched in the index, which goes on until it has enough of this tenant's.
    through_index = MemorySearch(pool, streams.log, exact_rows=100)
    assert await _recall(pool, through_index, "middle0", queries) >= 0.95
    async with tenant_connection(pool, "middle0") as conn:
        pgvector = await find_pgvector(conn)
        assert pgvector is not None
        query = index_query(pgvector, MINE.format(dimensions=DIMENSIONS), f"headwater.vector({DIMENSIONS})")
        plan = await conn.fetch(f"EXPLAIN {query}", "middle0", EMBEDDER, None, str(queries[0]), 40, 10)
        assert any(f"memories_hnsw_{DIMENSIONS}" in row[0] for row in plan), plan
    # Forced through the index the small tenant still gets its ten, however far the others crowd it out.
    assert await _recall(pool, MemorySearch(pool, streams.log, exact_rows=0), "small0", queries) >= 0.95


# --- without pgvector -------------------------------------------------------------------------------------------------


@pytest.fixture
async def plain_pool(database_url: str) -> AsyncIterator[Pool]:
    """A database whose login may not create the extension: an administrator gave it the schema and the role only."""
    admin = await asyncpg.connect(database_url)
    name = urlsplit(database_url).path.removeprefix("/")
    role = f"limited_{name}"
    if not await admin.fetchval("SELECT true FROM pg_roles WHERE rolname = 'headwater_reader'"):
        await admin.execute("CREATE ROLE headwater_reader NOLOGIN")
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'limited'")
    await admin.execute(f"GRANT headwater_reader TO {role} WITH ADMIN OPTION")
    await admin.execute(f"CREATE SCHEMA headwater AUTHORIZATION {role}")
    parts = urlsplit(database_url)
    host = parts.netloc.rpartition("@")[2]
    opened = await connect(urlunsplit(parts._replace(netloc=f"{role}:limited@{host}")))
    yield opened
    await opened.close()
    await admin.execute(f"DROP OWNED BY {role} CASCADE")
    await admin.execute(f"DROP ROLE {role}")
    await admin.close()


async def test_without_pgvector_everything_else_runs_and_says_so(
    streams: Streams, plain_pool: Pool, database_url: str
) -> None:
    await migrate(plain_pool)
    with capture_logs() as logs:
        assert not await prepare_memory(plain_pool)
    assert [entry["event"] for entry in logs] == ["long_term_memory_off"]
    await publish(streams, "acme", stored("kept", vector_of(1)))
    await project(streams, plain_pool)
    search = MemorySearch(plain_pool, streams.log)
    assert not await search.is_available()
    assert await search.search_vector("acme", vector_of(1), embedder=EMBEDDER, k=5) == []
    before = [d for d in await digests(plain_pool) if d.projection == "memories"]
    assert before[0].rows == 1
    await rebuild(plain_pool, ["memories"])
    assert [d for d in await digests(plain_pool) if d.projection == "memories"] == before

    # An administrator installs it, in a schema of its own: after a restart and a rebuild, what was kept is found.
    admin = await asyncpg.connect(database_url)
    await admin.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
    await admin.execute("GRANT USAGE ON SCHEMA extensions TO PUBLIC")
    await admin.close()
    with capture_logs() as logs:
        assert await prepare_memory(plain_pool)
    assert logs == []
    await rebuild(plain_pool, ["memories"])
    for exact_rows in (1000, 0):
        search = MemorySearch(plain_pool, streams.log, exact_rows=exact_rows)
        (found,) = await search.search_vector("acme", vector_of(1), embedder=EMBEDDER, k=5)
        assert found.text == "kept"
