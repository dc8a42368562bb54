"""A large round of the projector: applied in two parts side by side, with the same rows as entry by entry."""

from collections.abc import Sequence

import pytest

from projections.db import Connection, Pool
from projections.ledger import Ledger
from projections.projection import Recorded
from projections.rebuild import digests, rebuild, rebuildable
from projections.runner import LARGE_ROUND, PROJECTIONS, Runner, in_parts
from schemas.bodies import TaskCompleted, TaskRouted, TaskSubmitted
from schemas.errors import UnavailableError
from streams.connection import Streams
from streams.subscriber import LeasedRound
from tests.logbook import Logbook, apply_in_cuts, forget

TENANTS = ("acme", "globex", "initech")


def written(tenant_id: str, tasks: int) -> Logbook:
    book = Logbook(tenant_id)
    for n in range(tasks):
        task = f"{tenant_id}-{n}"
        submitted = book.add(TaskSubmitted(task_type="t", text="hello"), task=task, source="user")
        body = TaskRouted(agent_id="writer", call_id=f"call-{n}", routed_by="rules", confidence=1.0, reasoning="a rule")
        routed = book.add(body, task=task, parent=submitted)
        book.attempt(task=task, call=f"call-{n}", spent=100 + n, parent=routed)
        done = TaskCompleted(result="done", routed_by="rules", agent_results={"writer": "done"})
        book.add(done, task=task, parent=routed)
    return book


@pytest.fixture
def books() -> list[Logbook]:
    return [written(tenant, 60 + 30 * n) for n, tenant in enumerate(TENANTS)]


async def test_a_large_round_gives_the_same_rows_as_small_ones_and_as_a_rebuild(
    pool: Pool, streams: Streams, books: list[Logbook]
) -> None:
    runner = Runner(pool, streams.log)
    batches = [book.batch() for book in books]
    assert len(in_parts(batches)) == 2, "large enough to be applied in two parts"
    assert len(await runner.handle(LeasedRound("projector", batches))) == len(batches)
    at_once = await digests(pool)
    assert {found.events for found in at_once} == {sum(len(book.events) for book in books)}
    await runner.handle(LeasedRound("projector", batches))
    assert await digests(pool) == at_once, "applied twice, counted once"
    await rebuild(pool, rebuildable())
    assert await digests(pool) == at_once, "rebuilt together"
    for name in rebuildable():
        await rebuild(pool, [name])
    assert await digests(pool) == at_once, "rebuilt one by one"
    await forget(pool)
    await apply_in_cuts(runner, books, list(range(7, 480, 7)))
    assert await digests(pool) == at_once, "in small cuts"
    rows = await pool.fetch("SELECT tenant, count(*) AS n FROM ledger GROUP BY tenant ORDER BY tenant")
    assert [(row["tenant"], row["n"]) for row in rows] == [("acme", 60), ("globex", 90), ("initech", 120)]


class Stumbling(Ledger):
    """A ledger whose database goes away once, while it writes for one tenant."""

    def __init__(self, tenant_id: str) -> None:
        self.left = [tenant_id]

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        await super().apply(conn, batch)
        if self.left and self.left[0] in {entry.event.tenant_id for entry in batch}:
            self.left.pop()
            raise UnavailableError("PostgreSQL went away")


async def test_one_part_that_fails_leaves_the_other_whole_and_is_applied_when_it_comes_again(
    pool: Pool, streams: Streams, books: list[Logbook]
) -> None:
    stumbling = [Stumbling("initech") if p.name == "ledger" else p for p in PROJECTIONS]
    runner = Runner(pool, streams.log, stumbling)
    batches = [book.batch() for book in books]
    parts = in_parts(batches)
    with pytest.raises(UnavailableError, match="went away"):
        await runner.handle(LeasedRound("projector", batches))
    applied = {row["tenant"] for row in await pool.fetch("SELECT DISTINCT tenant FROM events")}
    failed = next({b.tenant_id for b in part} for part in parts if "initech" in {b.tenant_id for b in part})
    assert applied == set(TENANTS) - failed
    assert applied
    await runner.handle(LeasedRound("projector", batches))
    assert {found.events for found in await digests(pool)} == {sum(len(book.events) for book in books)}


def test_a_round_is_halved_by_its_entries_and_no_tenant_is_torn() -> None:
    small = [written(tenant, 2).batch() for tenant in TENANTS]
    assert in_parts(small) == [small]
    large = [written("umbrella", LARGE_ROUND // 4).batch(), *small]
    assert [[b.tenant_id for b in part] for part in in_parts(large)] == [["umbrella"], ["acme", "globex", "initech"]]
    assert in_parts([large[0]]) == [[large[0]]]
