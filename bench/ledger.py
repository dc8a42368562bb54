"""Costs over ten million ledger rows: what the roll-ups answer, and how long it takes beside reading the rows."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal

from bench.figures import Figure, percentile
from bench.world import World
from projections.costs import CostKey, costs, decision_costs
from projections.db import Connection, Pool
from projections.ledger import Ledger
from projections.projection import Recorded
from projections.rollups import MEASURES
from schemas.bodies import LlmAttempted
from schemas.event import AgentEvent
from schemas.ids import derived_id
from schemas.money import TokenCounts

ROWS = 10_000_000
ATTEMPTS_PER_TASK = 5
TENANTS = 1_000
DAYS = 90
CHUNK = 500_000
ROUNDS = 40
APPLIED = 1_000
"""Attempts in each batch that the projection applies on top of the full ledger."""
TENANT_MS = 10.0
"""Aim for a tenant's question."""
EVERYBODY_MS = 100.0
"""Aim for an administrator's question over all tenants."""

# Tenants differ: the largest has a tenth of all attempts, the median one some thousands. One task in 16 fails. An
# agent's tier has a model, and a fallback that answers a tenth.
_TASKS = f"""
CREATE UNLOGGED TABLE bench_tasks AS
SELECT n, 'tenant-' || floor({TENANTS} * power(abs(hashint4(n))::float8 / 2147483648, 3))::int AS tenant,
    'task-' || n AS task, now() - make_interval(secs => abs(hashint4(n + 1))::float8 / 2147483648 *
    86400 * ({DAYS} - 1)) AS at, abs(hashint4(n + 2)) AS dice
FROM generate_series(1, $1::int) n
"""
_ATTEMPTS = f"""
INSERT INTO ledger (tenant, event_id, ms, seq, at, agent, session, task, call, ordinal, attempt, delivery, tier, model,
    answered_model, status, input_uncached, cache_read, cache_write, output_text, output_reasoning, rates, price_table,
    cost_usd, cost_status, reported_cost_usd, duration_us, response_id, http_status, outcome)
SELECT tenant, 'event-' || n || '.' || k, (extract(epoch FROM at) * 1000)::bigint, k, at, 'agent-' ||
    (dice / 7 + k / 2) % 8, 'session-' || n / 4, task, 'call-' || n || '.' || k / 2, k % 2, 1, 1, 'fast',
    'openai/model-' || CASE dice % 10 WHEN 0 THEN 2 ELSE (dice / 7 + k / 2) % 2 END, 'model',
    CASE WHEN (dice + k) % 50 = 0 THEN 'error' ELSE 'ok' END,
    300 + dice % 700, dice % 300, 0, 100 + dice % 200, 0,
    '{{"input_uncached":"0.00000015","output_text":"0.0000006"}}', repeat('a', 64),
    CASE WHEN (dice + k) % 50 = 0 THEN 0 ELSE 0.00000015 * (300 + dice % 700) + 0.0000006 * (100 + dice % 200) END,
    CASE WHEN (dice + k) % 50 = 0 THEN 'not_billed' ELSE 'priced' END, NULL, 1500, 'response-' || n, 200,
    CASE WHEN (dice + k) % 50 = 0 THEN 'failed_attempt' WHEN dice % 16 = 0 THEN 'failed_task'
        WHEN dice % 33 = 0 THEN 'rejected_handoff' ELSE 'useful' END
FROM bench_tasks, generate_series(1, {ATTEMPTS_PER_TASK}) k WHERE n > $1 AND n <= $2
"""
_SUMS = """
count(*), count(*) FILTER (WHERE status <> 'ok'), count(*) FILTER (WHERE cost_status = 'unpriced'),
count(*) FILTER (WHERE cost_status = 'unknown'), trim_scale(coalesce(sum(cost_usd), 0)), sum(input_uncached),
sum(cache_read), sum(cache_write), sum(output_text), sum(output_reasoning)
"""
# One decision per task, and what followed: enough of an archive to walk causation trees in.
_EVENTS = f"""
INSERT INTO events (tenant, ms, seq, id, type, v, session, task, priority, source, chain, parent, at, body)
SELECT tenant, (extract(epoch FROM at) * 1000)::bigint, n * 8 + k, CASE k WHEN 0 THEN 'decision-' || n ELSE
    'event-' || n || '.' || k END, CASE k WHEN 0 THEN 'task.routed' ELSE 'llm.attempted' END, '1', 's', task,
    'normal', 'supervisor', 'user>supervisor', CASE k WHEN 0 THEN '' ELSE 'decision-' || n END, at::text, '{{}}'
FROM bench_tasks, generate_series(0, {ATTEMPTS_PER_TASK}) k WHERE n <= $1
"""
_DIRECT = """
SELECT agent, sum(cost_usd) FROM ledger WHERE tenant = $1 AND at >= now() - interval '30 days' GROUP BY 1
"""
_CONSISTENT = """
SELECT l = d AND l = t AND l = x FROM (SELECT (count(*), sum(cost_usd)) AS l FROM ledger),
    (SELECT (sum(attempts)::bigint, sum(cost_usd)) AS d FROM ledger_daily),
    (SELECT (sum(attempts)::bigint, sum(cost_usd)) AS t FROM ledger_tasks),
    (SELECT (sum(attempts)::bigint, sum(cost_usd)) AS x FROM ledger_dimensions WHERE dimension = 'outcome')
"""


async def run(world: World) -> list[Figure]:
    """Fill the ledger by SQL, check that the roll-ups are its sums, then ask."""
    rows = world.count(ROWS)
    async with world.database() as pool:
        clock = time.perf_counter()
        async with pool.acquire() as conn:
            await _fill(conn, rows // ATTEMPTS_PER_TASK)
        filled_s = time.perf_counter() - clock
        sizes = await pool.fetchrow(
            "SELECT (SELECT count(*) FROM ledger_daily) AS daily, (SELECT count(*) FROM ledger_tasks) AS tasks, "
            "(SELECT count(*) FROM ledger_dimensions) AS single, "
            "pg_total_relation_size('ledger') AS ledger, pg_total_relation_size('ledger_daily') AS daily_bytes"
        )
        assert sizes is not None
        sums = f"{sizes['daily']:,} sums by day, {sizes['tasks']:,} by task, {sizes['single']:,} by one dimension"
        note = f"by SQL in {filled_s:.0f} s; {sums}"
        figures = [
            Figure("ledger rows", rows, "rows", note=note),
            Figure("ledger on disk", sizes["ledger"] / 2**20, "MB", note="with its indexes"),
            Figure("roll-up by day on disk", sizes["daily_bytes"] / 2**20, "MB", note="with its indexes"),
        ]
        figures += await _apply(pool)
        if not await pool.fetchval(_CONSISTENT):
            raise RuntimeError("the roll-ups are not the sums of the ledger's rows: the figures would be of wrong sums")
        return figures + await _ask(pool, ROUNDS if not world.quick else 5)


async def _fill(conn: Connection, tasks: int) -> None:
    await conn.execute("SET synchronous_commit = off; SET work_mem = '512MB'; SET maintenance_work_mem = '1GB'")
    await conn.execute("ALTER TABLE ledger DROP CONSTRAINT ledger_pkey; DROP INDEX ledger_by_task", timeout=600)
    await conn.execute(_TASKS, tasks, timeout=600)
    step = CHUNK // ATTEMPTS_PER_TASK
    for start in range(0, tasks, step):
        await conn.execute(_ATTEMPTS, start, min(start + step, tasks), timeout=600)
    # The sums lie on disk as they would have come: day after day.
    for statement in (
        "ALTER TABLE ledger ADD PRIMARY KEY (tenant, event_id)",
        "CREATE INDEX ledger_by_task ON ledger (tenant, task)",
        f"INSERT INTO ledger_daily (tenant, day, agent, model, outcome, {', '.join(MEASURES)}) "
        f"SELECT tenant, at::date, agent, model, outcome, {_SUMS} FROM ledger GROUP BY 1, 2, 3, 4, 5 ORDER BY 2",
        f"INSERT INTO ledger_tasks (tenant, session, task, day, agent, {', '.join(MEASURES)}) "
        f"SELECT tenant, session, task, at::date, agent, {_SUMS} FROM ledger GROUP BY 1, 2, 3, 4, 5 ORDER BY 4",
        f"INSERT INTO ledger_dimensions SELECT tenant, day, dimension, value, {', '.join(_summed())} "
        "FROM ledger_daily, LATERAL (VALUES ('agent', agent), ('model', model), ('outcome', outcome)) AS one "
        "(dimension, value) GROUP BY 1, 2, 3, 4 ORDER BY 2",
    ):
        await conn.execute(statement, timeout=1800)
    await conn.execute(_EVENTS, min(tasks, 100_000), timeout=600)
    await conn.execute("RESET ALL")
    await conn.execute("VACUUM ANALYZE ledger, ledger_daily, ledger_tasks, ledger_dimensions, events", timeout=600)


def _summed() -> list[str]:
    return [f"trim_scale(sum({name}))" if name == "cost_usd" else f"sum({name})" for name in MEASURES]


async def _apply(pool: Pool) -> list[Figure]:
    """What a batch of attempts costs when the ledger is full: rows, outcomes and both roll-ups in one transaction."""
    seconds = []
    for n in range(10):
        batch = [_attempt(n * APPLIED + i) for i in range(APPLIED)]
        clock = time.perf_counter()
        async with pool.acquire() as conn, conn.transaction():
            await Ledger().apply(conn, batch)
        seconds.append(time.perf_counter() - clock)
    note = f"{APPLIED:,} attempts of 100 tenants a transaction, on the full ledger"
    return [Figure("ledger projection", APPLIED / percentile(seconds, 0.5), "attempts/s", note=note)]


def _attempt(n: int) -> Recorded:
    now = datetime.now(UTC)
    body = LlmAttempted(
        call_id=derived_id("call", n // 2),
        ordinal=n % 2,
        attempt=1,
        delivery=1,
        agent_id=f"agent-{n // 2 % 8}",
        tier="fast",
        requested_model=f"openai/model-{n % 3}",
        params={},
        request_hash="",
        request={},
        status="ok",
        started_at=now,
        ended_at=now,
        duration_us=1500,
        tokens=TokenCounts(input_uncached=400, output_text=100),
        cost_usd=str(Decimal("0.00012")),
        cost_status="priced",
    )
    event = AgentEvent(
        id=derived_id("bench", n),
        tenant_id=f"tenant-{n // 10 % 100}",
        session_id=f"new-{n // 20}",
        task_id=derived_id("task", n // 5),
        source_agent_id="supervisor",
        call_chain=("user", "supervisor"),
        at=now,
        body=body,
    )
    return Recorded(event, (n, 0), {})


async def _ask(pool: Pool, rounds: int) -> list[Figure]:
    middle = f"tenant-{TENANTS // 8}"
    largest = "tenant-0"
    counts = {
        row["tenant"]: row["n"]
        for row in await pool.fetch(
            "SELECT tenant, sum(attempts)::bigint AS n FROM ledger_daily WHERE tenant = ANY($1) GROUP BY 1",
            [middle, largest],
        )
    }
    figures = []
    keys: tuple[CostKey, ...] = ("agent", "model", "day", "outcome")
    for tenant, name in ((middle, "a tenant"), (largest, "the largest tenant")):
        for by in keys:
            figures += await _costs(pool, f"{name} by {by}", by, tenant, None, rounds, f"{counts[tenant]:,} attempts")
    figures += await _costs(pool, "a tenant by session", "session", middle, None, rounds, "all sessions")
    figures += await _costs(pool, "a tenant by task", "task", middle, None, rounds, "all tasks")
    for by in (*keys, "tenant"):
        figures += await _costs(pool, f"all tenants by {by}", by, None, None, max(5, rounds // 4), "")
    figures += await _costs(pool, "an agent by tenant", "tenant", None, "agent-3", max(5, rounds // 4), "all tenants")
    decisions = await pool.fetch("SELECT tenant, id FROM events WHERE type = 'task.routed' LIMIT $1", rounds)
    asked = iter(decisions)

    async def decision() -> object:
        row = next(asked)
        return await decision_costs(pool, row["tenant"], row["id"])

    figures += await _timed("a decision and everything under it", decision, len(decisions), TENANT_MS, "from the rows")
    direct = await _timed(
        "the largest tenant by agent, from the rows", lambda: pool.fetch(_DIRECT, largest), 3, None, "as a yardstick"
    )
    return figures + direct[:1]


async def _costs(
    pool: Pool, name: str, by: CostKey, tenant: str | None, agent: str | None, rounds: int, note: str
) -> list[Figure]:
    return await _timed(
        name,
        lambda: costs(pool, by=by, tenant_id=tenant, agent_id=agent, days=30),
        rounds,
        EVERYBODY_MS if tenant is None else TENANT_MS,
        note,
    )


async def _timed(
    name: str, ask: Callable[[], Awaitable[object]], rounds: int, aim: float | None, note: str
) -> list[Figure]:
    took_ms = []
    for _ in range(rounds):
        clock = time.perf_counter()
        await ask()
        took_ms.append((time.perf_counter() - clock) * 1000)
    return [
        Figure(f"costs: {name}, p50", percentile(took_ms, 0.5), "ms", aim=aim, better="lower", note=note),
        Figure(f"costs: {name}, p99", percentile(took_ms, 0.99), "ms", better="lower"),
    ]
