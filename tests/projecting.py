"""The projector's work, done by a test at the moment it wants it."""

from datetime import UTC, datetime

from projections.db import Pool
from projections.runner import Runner
from schemas.bodies import EventBody
from schemas.event import AgentEvent
from schemas.ids import new_id
from streams.connection import Streams
from streams.subscriber import LeasedRound

READER = "projector"


async def project(streams: Streams, pool: Pool) -> None:
    """Apply everything that is in the log now to every projection."""
    runner = Runner(pool, streams.log)
    while batches := [
        batch
        for shard in await streams.functions.lease(
            range(streams.keys.shards), READER, lease_ms=60_000, max_tenants=100, max_entries=1000
        )
        for batch in shard
    ]:
        commits = await runner.handle(LeasedRound(READER, batches))
        assert all(await streams.functions.commit(READER, list(zip(batches, commits, strict=True))))


def event(body: EventBody, tenant: str, session: str = "s1", task: str = "task-1", agent: str = "user") -> AgentEvent:
    """An event of `agent`."""
    return AgentEvent(
        id=new_id(),
        tenant_id=tenant,
        session_id=session,
        task_id=task,
        source_agent_id=agent,
        call_chain=("user",) if agent == "user" else ("user", agent),
        at=datetime.now(UTC),
        body=body,
    )
