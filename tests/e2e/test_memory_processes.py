"""Sessions and memories through real worker and projector processes, restarted and killed in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.db import Pool
from schemas.task import Accepted, NewTask
from streams.connection import Streams
from tests.conftest import SHARDS
from tests.processes import DEADLINE_S, HeadwaterProcess, until

WORKER = ["worker", "--agents", "tests.e2e.memory_team:team"]
PROJECTOR = ["projector"]


@pytest.fixture
def env(endpoints: Endpoints, streams: Streams, database_url: str) -> dict[str, str]:
    return {
        "REDIS_URL": endpoints.redis_url,
        "DATABASE_URL": database_url,
        "HEADWATER_SHARDS": str(SHARDS),
        "HEADWATER_LEASE_MS": "2000",
        "HEADWATER_LOG_LEVEL": "info",
    }


@pytest.fixture
async def hw(endpoints: Endpoints, streams: Streams, database_url: str, pool: Pool) -> AsyncIterator[Headwater]:
    async with Headwater(Settings(shards=SHARDS), Endpoints(endpoints.redis_url, database_url)) as opened:
        yield opened


async def run(hw: Headwater, tenant: str, text: str) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        outcome = await hw.run(NewTask(tenant=tenant, session="chat", text=text))
    assert outcome.status == "completed", outcome
    result: dict[str, Any] = outcome.result
    return result


async def started(hw: Headwater, accepted: Accepted) -> bool:
    entries = await hw.streams.log.read(accepted.tenant_id, after=accepted.position)
    return any("agent.started" in flat and accepted.task_id in flat for _, flat in entries)


async def test_what_was_said_and_stored_outlives_every_process(
    hw: Headwater, env: dict[str, str], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as first:
        projector = first.enter_context(HeadwaterProcess(PROJECTOR, env, tmp_path / "projector.log"))
        first.enter_context(HeadwaterProcess(WORKER, env, tmp_path / "worker.log"))
        nothing = await run(hw, "acme", "My cat is called Tom.")
        assert nothing == {"count": 0, "session": [], "memories": [], "counter": "tiktoken:o200k_base"}
        assert (await run(hw, "globex", "My dog is called Rex."))["memories"] == []
        second = await run(hw, "acme", "What is my cat called?")
        assert second["session"] == ["My cat is called Tom."]
        assert second["memories"] == ["acme once said: My cat is called Tom."]
        assert second["count"] == 1

        # Without a projector the agent waits rather than answer from what it does not know to be all.
        projector.kill()
        async with asyncio.timeout(DEADLINE_S):
            accepted = await hw.submit(NewTask(tenant="acme", session="chat", text="And now?"))
            await until(lambda: started(hw, accepted), "the agent was started")
            waiting = asyncio.create_task(hw.outcomes.wait(accepted))
            assert not (await asyncio.wait([waiting], timeout=1))[0]
            first.enter_context(HeadwaterProcess(PROJECTOR, env, tmp_path / "projector-2.log"))
            outcome = await waiting
        assert outcome.status == "completed"
        assert outcome.result["session"] == ["My cat is called Tom.", "What is my cat called?"]
        assert outcome.result["count"] == 2

    with contextlib.ExitStack() as again:
        again.enter_context(HeadwaterProcess(PROJECTOR, env, tmp_path / "projector-3.log"))
        again.enter_context(HeadwaterProcess(WORKER, env, tmp_path / "worker-2.log"))
        later = await run(hw, "acme", "Still there?")
        assert later["count"] == 3
        assert len(later["session"]) == 3
        # An explicit clear ends the session; what was learned stays.
        await hw.clear_session("acme", "chat")
        cleared = await run(hw, "acme", "What is my cat called?")
        assert (cleared["count"], cleared["session"]) == (0, [])
        assert "acme once said: My cat is called Tom." in cleared["memories"]
        assert all(text.startswith("acme ") for text in cleared["memories"])
        assert (await run(hw, "globex", "Who am I?"))["session"] == ["My dog is called Rex."]
        assert {entry.tenant_id for entry in await hw.memory.search("globex", "my cat", k=10)} == {"globex"}
