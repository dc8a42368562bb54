"""The ledger, its roll-ups and its outcomes on a real PostgreSQL: exact, rebuildable, one tenant's at a time."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from importlib import resources
from typing import Any, get_args

import pytest

from projections.archive import Archive
from projections.costs import CostKey, costs, decision_costs, ledger_totals, total_of
from projections.db import Pool, connect, migrate, tenant_connection
from projections.exposition import snapshot
from projections.outcomes import OUTCOMES
from projections.projection import Recorded, parse_position
from projections.rebuild import rebuild, rebuild_outdated
from projections.rollups import TABLES
from projections.runner import Runner
from schemas.bodies import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    SupervisorAnswered,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskRouted,
    TaskSubmitted,
)
from schemas.errors import InvalidInputError, NotFoundError
from schemas.event import AgentEvent, entry_fields
from schemas.handoff import HandoffProposal
from schemas.money import TokenCounts
from streams.connection import Streams
from tests.logbook import RATE, START, Logbook, apply_in_cuts, digest_of, forget

TODAY = START.date()


@pytest.fixture
def runner(pool: Pool, streams: Streams) -> Runner:
    return Runner(pool, streams.log)


def routed(book: Logbook, task: str, call: str, agent: str = "writer", **where: Any) -> AgentEvent:
    submitted = book.add(TaskSubmitted(task_type="t", text="hello"), task=task, source="user", **where)
    body = TaskRouted(agent_id=agent, call_id=call, routed_by="rules", confidence=1.0, reasoning="a rule")
    return book.add(body, task=task, parent=submitted, **where)


def proposed(book: Logbook, task: str, call: str, cause: AgentEvent) -> AgentEvent:
    payload = HandoffProposal(
        source_agent_id="writer",
        target_agent_id="checker",
        tenant_id=book.tenant_id,
        payload_type="research_result",
        content={"claim": 1},
        confidence=0.9,
        reason="to be checked",
        call_chain=("user", "supervisor", "writer"),
    )
    return book.add(HandoffProposed(call_id=call, payload=payload), task=task, source="writer", parent=cause)


VERDICT = {
    "source_agent_id": "writer",
    "target_agent_id": "checker",
    "payload_type": "research_result",
    "strictness": "strict",
}


def completed(book: Logbook, task: str, cause: AgentEvent) -> AgentEvent:
    return book.add(TaskCompleted(result="done", routed_by="rules", agent_results={}), task=task, parent=cause)


def failed_run(call: str, agent: str = "writer") -> AgentFailed:
    return AgentFailed(agent_id=agent, call_id=call, delivery=1, error_class="E", error="no", duration_us=5)


def ledger_of_everything(tenant: str) -> tuple[Logbook, dict[str, int]]:
    """A log in which every outcome occurs, and how many tokens went to each."""
    book = Logbook(tenant)
    spent: dict[str, int] = defaultdict(int)

    def attempt(outcome: str, tokens: int, **where: Any) -> AgentEvent:
        spent[outcome] += tokens
        return book.attempt(spent=tokens, **where)

    # A task whose first handoff is rejected, repaired and accepted, and whose first request failed.
    first = routed(book, "t-1", "c-1")
    attempt("failed_attempt", 3, task="t-1", call="c-1", parent=first, status="error", http_status=500)
    attempt("rejected_handoff", 1000, task="t-1", call="c-1", parent=first)
    offer = proposed(book, "t-1", "c-1", first)
    rejected = HandoffRejected(**VERDICT, reasons=("no",), returned_to="sender", call_id="c-2")
    repair = book.add(rejected, task="t-1", parent=offer)
    attempt("useful", 700, task="t-1", call="c-2", parent=repair)
    better = proposed(book, "t-1", "c-2", repair)
    accepted = book.add(HandoffAccepted(**VERDICT, checks=("structural",), call_id="c-3"), task="t-1", parent=better)
    attempt("useful", 50, task="t-1", call="c-3", agent="checker", parent=accepted)
    ended = AgentCompleted(agent_id="checker", call_id="c-3", delivery=1, result="done", duration_us=7)
    completed(book, "t-1", book.add(ended, task="t-1", source="checker", parent=accepted))
    # A task whose agent fails, whose backup succeeds at its part, and which fails all the same.
    second = routed(book, "t-2", "c-4")
    attempt("failed_run", 11, task="t-2", call="c-4", parent=second)
    attempt("failed_task", 13, task="t-2", call="c-5", parent=second, agent="backup")
    failure = book.add(failed_run("c-4"), task="t-2", source="writer", parent=second)
    book.add(TaskFailed(reason="no"), task="t-2", parent=failure)
    # A call of that task that was still running, and says so later: its attempt, then its failure.
    attempt("failed_run", 17, task="t-2", call="c-6", parent=second)
    book.add(failed_run("c-6"), task="t-2", source="writer", parent=second)
    # A cancelled task: one run ended before, one is stopped, one attempt comes late, one broke off.
    third = routed(book, "t-3", "c-7")
    attempt("cancelled", 19, task="t-3", call="c-7", parent=third)
    attempt("cancelled", 23, task="t-3", call="c-8", parent=third, status="cancelled", cost_status="unknown")
    book.add(TaskCancelled(reason="asked"), task="t-3", parent=third)
    attempt("cancelled", 29, task="t-3", call="c-8", parent=third)
    stopped = AgentCancelled(agent_id="writer", call_id="c-8", delivery=1, duration_us=7)
    book.add(stopped, task="t-3", source="writer", parent=third)
    # A question of the supervisor's that found no answer, in a task that goes on.
    fourth = routed(book, "t-4", "c-9", session="s-2")
    attempt("failed_run", 31, task="t-4", call="c-10", parent=fourth, agent="supervisor", session="s-2")
    answered = SupervisorAnswered(call_id="c-10", question="route", delivery=1, error="no JSON", duration_us=3)
    book.add(answered, task="t-4", parent=fourth, session="s-2")
    attempt("useful", 37, task="t-4", call="c-9", parent=fourth, session="s-2")
    return book, spent


async def test_each_attempt_has_one_outcome_and_they_add_up(pool: Pool, runner: Runner) -> None:
    acme, spent = ledger_of_everything("acme")
    other = Logbook("other")
    other.attempt(task="t-1", call="c-1", spent=999, parent=routed(other, "t-1", "c-1"))
    await apply_in_cuts(runner, [acme, other], [])
    rows = await costs(pool, by="outcome", tenant_id="acme", today=TODAY)
    assert {row.key: row.cost_usd for row in rows} == {name: RATE * tokens for name, tokens in spent.items()}
    assert {row.key for row in rows} == set(OUTCOMES), "the story has every outcome"
    (total,) = await costs(pool, by="tenant", tenant_id="acme", today=TODAY)
    assert total_of("acme", rows) == total, "outcomes are disjoint and add up, tokens and counts too"
    assert total.cost_usd == RATE * sum(spent.values())
    assert [(row.key, row.cost_usd) for row in await costs(pool, by="outcome", tenant_id="other", today=TODAY)] == [
        ("useful", RATE * 999)
    ], "the same call and task ids of another tenant are another call and task"


async def test_however_the_log_is_cut_and_repeated_the_digits_are_the_same(pool: Pool, runner: Runner) -> None:
    books = [ledger_of_everything(tenant)[0] for tenant in ("acme", "other")]
    length = len(books[0].events)
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    cuts = [[], list(range(1, length))] + [sorted(chance.sample(range(1, length), 6)) for _ in range(4)]
    found = set()
    for cut in cuts:
        await forget(pool)
        await apply_in_cuts(runner, books, cut)
        live = await digest_of(pool, "ledger")
        await apply_in_cuts(runner, books, cut)
        assert await digest_of(pool, "ledger") == live, "a batch that comes again changes nothing"
        await rebuild(pool, ["ledger"])
        assert await digest_of(pool, "ledger") == live, f"rebuilt after cuts {cut}"
        found.add(live)
    assert len(found) == 1


async def test_a_planted_error_in_a_roll_up_changes_the_digest(pool: Pool, runner: Runner) -> None:
    book, _ = ledger_of_everything("acme")
    await apply_in_cuts(runner, [book], [])
    before = await digest_of(pool, "ledger")
    await pool.execute("UPDATE ledger_daily SET cost_usd = cost_usd + 0.0000001 WHERE outcome = 'cancelled'")
    assert await digest_of(pool, "ledger") != before


def random_attempts(tenant: str, chance: random.Random, days: Sequence[date]) -> Logbook:
    book = Logbook(tenant)
    for n in range(120):
        task = f"t-{chance.randrange(12)}"
        moment = datetime.combine(chance.choice(days), datetime.min.time(), UTC) + timedelta(
            microseconds=chance.choice([0, 1, 43_200_000_000, 86_399_999_999])
        )
        more: dict[str, Any] = chance.choice(
            [
                {},
                {},
                {"cost_usd": None, "cost_status": "unpriced"},
                {"cost_usd": None, "cost_status": "unknown", "status": "unknown", "tokens": None},
                {"cost_usd": "0", "cost_status": "not_billed", "status": "error", "tokens": None},
                {
                    "tokens": TokenCounts(
                        input_uncached=1, cache_read=2, cache_write=3, output_text=4, output_reasoning=5
                    )
                },
            ]
        )
        book.attempt(
            task=task,
            call=f"c-{n}",
            agent=chance.choice(["writer", "checker"]),
            model=chance.choice(["openai/small", "openai/large"]),
            session=f"s-{int(task[2:]) % 5}",
            spent=chance.randrange(1, 10**6),
            ended_at=moment,
            **more,
        )
    return book


async def test_every_grouping_equals_the_sum_over_the_ledgers_rows(pool: Pool, runner: Runner) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    days = [TODAY - timedelta(days=n) for n in range(4)]
    books = [random_attempts(tenant, chance, days) for tenant in ("acme", "other")]
    await apply_in_cuts(runner, books, [50])
    keys: dict[str, Callable[[Any], str]] = {
        "agent": lambda b: b.agent_id,
        "model": lambda b: b.requested_model,
        "day": lambda b: b.ended_at.date().isoformat(),
        "outcome": lambda b: "useful" if b.status == "ok" else "failed_attempt",
    }
    for by in get_args(CostKey):
        for tenant, agent, back in (("acme", None, 3), ("other", "writer", 30), (None, None, 2), (None, "checker", 4)):
            expected: dict[str, list[Any]] = defaultdict(lambda: [Decimal(0), 0, 0, 0, 0, 0])
            for event in (e for book in books for e in book.events if tenant in (None, book.tenant_id)):
                body: Any = event.body
                if agent not in (None, body.agent_id) or body.ended_at.date() <= TODAY - timedelta(days=back):
                    continue
                if by in ("session", "task"):
                    own = event.session_id if by == "session" else event.task_id
                    key = own if tenant else f"{event.tenant_id}/{own}"
                else:
                    key = event.tenant_id if by == "tenant" else keys[by](body)
                sums = expected[key]
                sums[0] += Decimal(body.cost_usd or 0)
                sums[1] += body.tokens.total if body.tokens else 0
                sums[2] += 1
                sums[3] += body.status != "ok"
                sums[4] += body.cost_status == "unpriced"
                sums[5] += body.cost_status == "unknown"
            rows = await costs(pool, by=by, tenant_id=tenant, agent_id=agent, days=back, today=TODAY)
            found = {r.key: [r.cost_usd, r.tokens, r.attempts, r.failed, r.unpriced, r.unknown] for r in rows}
            assert found == expected, (by, tenant, agent, back)
            order = [(-row.cost_usd, row.key) for row in rows]
            assert order == sorted(order), "the dearest first"
            few = await costs(pool, by=by, tenant_id=tenant, agent_id=agent, days=back, today=TODAY, limit=1)
            assert few == rows[:1]


async def test_no_digit_is_lost_however_many_there_are(pool: Pool, runner: Runner) -> None:
    book, cost = Logbook("acme"), "12345678901234567890.1234567890123456789012345678901234567891"
    for n in range(3):
        book.attempt(task="t-1", call=f"c-{n}", cost_usd=cost)
    book.add(failed_run("c-1"), task="t-1", source="writer")
    await apply_in_cuts(runner, [book], [2, 3])
    with localcontext(prec=100):
        once, twice, thrice = (n * Decimal(cost) for n in (1, 2, 3))
    rows = await costs(pool, by="outcome", tenant_id="acme", today=TODAY)
    assert {row.key: row.cost_usd for row in rows} == {"useful": twice, "failed_run": once}
    assert total_of("", rows).cost_usd == thrice
    for by in get_args(CostKey):
        assert total_of("", await costs(pool, by=by, today=TODAY)).cost_usd == thrice, by
    (spent,) = [s.value for s in await snapshot(pool, tenant_labels=1) if s.sample == "llm_cost_usd_total"]
    assert spent == thrice


async def test_a_sum_leaves_no_trace_of_what_was_taken_away(pool: Pool, runner: Runner) -> None:
    book = Logbook("acme")
    book.attempt(task="t-1", call="c-1", cost_usd="0.1")
    book.attempt(task="t-1", call="c-2", cost_usd="0.00002")
    book.add(failed_run("c-2"), task="t-1", source="writer")
    await apply_in_cuts(runner, [book], [2])
    live = await digest_of(pool, "ledger")
    await rebuild(pool, ["ledger"])
    assert await digest_of(pool, "ledger") == live, "0.10002 less 0.00002 is 0.1, not 0.10000"


async def test_a_tenants_connection_sees_no_other_tenants_roll_ups(pool: Pool, runner: Runner) -> None:
    books = [ledger_of_everything(tenant)[0] for tenant in ("acme", "other")]
    await apply_in_cuts(runner, books, [1, 9])
    async with tenant_connection(pool, "acme") as conn:
        for table in ("ledger", *TABLES, "verdicts"):
            rows = await conn.fetch(f"SELECT DISTINCT tenant FROM {table}")
            assert [row["tenant"] for row in rows] == ["acme"], table


async def test_a_decisions_cost_has_everything_under_it_and_nothing_beside_it(pool: Pool, runner: Runner) -> None:
    books = [ledger_of_everything(tenant)[0] for tenant in ("acme", "other")]
    await apply_in_cuts(runner, books, [])
    by_type = {(e.task_id, e.type): e for e in books[0].events}
    submitted, route = by_type["t-1", "task.submitted"], by_type["t-1", "task.routed"]
    rejected, accepted = by_type["t-1", "handoff.rejected"], by_type["t-1", "handoff.accepted"]
    for event, tokens in ((submitted, 1753), (route, 1753), (rejected, 750), (accepted, 50)):
        found = await decision_costs(pool, "acme", event.id)
        assert total_of("", found.agents).cost_usd == RATE * tokens, event.type
        assert (found.type, found.task_id) == (event.type, "t-1")
    found = await decision_costs(pool, "acme", rejected.id)
    assert {row.key: row.cost_usd for row in found.agents} == {"writer": RATE * 700, "checker": RATE * 50}
    attempt = by_type["t-4", "llm.attempted"]
    assert [row.cost_usd for row in (await decision_costs(pool, "acme", attempt.id)).agents] == [RATE * 37]
    nothing = by_type["t-1", "task.completed"]
    assert (await decision_costs(pool, "acme", nothing.id)).as_dict()["cost_usd"] == "0"
    with pytest.raises(NotFoundError, match="has no event"):
        await decision_costs(pool, "other", submitted.id)


async def test_days_and_groups_that_make_no_sense_are_refused(pool: Pool) -> None:
    for days in (0, -3, 36_501):
        with pytest.raises(InvalidInputError, match="days is"):
            await costs(pool, by="agent", days=days)
    with pytest.raises(InvalidInputError, match="choose from agent"):
        await costs(pool, by="colour")  # type: ignore[arg-type]


async def test_rows_of_an_older_version_are_rebuilt_once(pool: Pool, runner: Runner) -> None:
    book, _ = ledger_of_everything("acme")
    await apply_in_cuts(runner, [book], [])
    digest = await digest_of(pool, "ledger")
    await pool.execute("TRUNCATE ledger_daily, ledger_tasks, ledger_dimensions")
    await pool.execute("UPDATE ledger SET outcome = 'useful'")
    await pool.execute("INSERT INTO outdated_projections VALUES ('ledger')")
    assert await rebuild_outdated(pool) == ["ledger"]
    assert await digest_of(pool, "ledger") == digest
    assert await rebuild_outdated(pool) == []
    assert (await ledger_totals(pool)).attempts == sum(e.type == "llm.attempted" for e in book.events)


async def test_a_database_of_the_first_version_is_brought_up_to_date(database_url: str) -> None:
    book, spent = ledger_of_everything("acme")
    first = resources.files("projections").joinpath("migrations", "0001_read_models.sql").read_text()
    old = await connect(database_url)
    async with old.acquire() as conn, conn.transaction():
        await conn.execute("CREATE SCHEMA headwater")
        await conn.execute(
            "CREATE TABLE schema_migrations (name text PRIMARY KEY, sha256 text NOT NULL, at timestamptz)"
        )
        await conn.execute(first)
        sha = hashlib.sha256(first.encode()).hexdigest()
        await conn.execute("INSERT INTO schema_migrations VALUES ('0001_read_models.sql', $1, now())", sha)
        batch = book.batch()
        entries = [
            Recorded(e, parse_position(p), entry_fields(f))
            for e, (p, f) in zip(book.events, batch.entries, strict=True)
        ]
        await Archive().apply(conn, entries)
        end = parse_position(batch.end)
        await conn.execute("INSERT INTO positions VALUES ('archive', 'acme', $1, $2, $3)", *end, len(entries))
    await old.close()
    # Names are bound to tables as they were when a connection first saw them.
    new = await connect(database_url)
    await migrate(new)
    assert sorted(await rebuild_outdated(new)) == ["ledger", "metrics"]
    rows = await costs(new, by="outcome", tenant_id="acme", today=TODAY)
    assert {row.key: row.cost_usd for row in rows} == {name: RATE * tokens for name, tokens in spent.items()}
    await new.close()
