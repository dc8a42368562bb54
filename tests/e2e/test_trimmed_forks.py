"""Worker processes find in the archive what a fork needs and Redis does not have any more."""

import asyncio
import contextlib
from pathlib import Path

from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.replay.fork import ForkOptions, fork_task
from headwater.replay.moments import task_events
from headwater.settings import Settings
from headwater.simulator import AnswerRule, SimulatorConfig, SimulatorProcess
from headwater.testing.harness import SIMULATOR_PRICES
from projections.db import Pool
from projections.projection import format_position
from schemas.task import NewTask
from streams.connection import Streams
from tests.conftest import SHARDS
from tests.integration.test_replay_trimmed import ANSWERS, TEAM, lose, request, trim_before
from tests.processes import DEADLINE_S, HeadwaterProcess


async def test_a_worker_process_checks_the_handoff_of_a_trimmed_task(
    streams: Streams, pool: Pool, endpoints: Endpoints, database_url: str, tmp_path: Path
) -> None:
    config = SimulatorConfig(answers=[AnswerRule.model_validate(rule) for rule in ANSWERS])
    here = Endpoints(endpoints.redis_url, database_url)
    with SimulatorProcess(config) as simulator, contextlib.ExitStack() as stack:
        env = {
            "REDIS_URL": here.redis_url,
            "DATABASE_URL": here.database_url,
            "HEADWATER_SHARDS": str(SHARDS),
            "HEADWATER_LLM_BASE_URL": f"{simulator.url}/v1",
            "HEADWATER_LLM_API_KEY": "simulator",
            "HEADWATER_FAST_MODELS": "openai/sim-fast",
            "HEADWATER_REASONING_MODELS": "openai/sim-reasoning",
            "HEADWATER_PRICES": str(SIMULATOR_PRICES),
        }
        for words in (["projector"], ["worker", "--agents", TEAM]):
            stack.enter_context(HeadwaterProcess(words, env, tmp_path / f"{words[0]}.log"))
        async with Headwater(Settings(shards=SHARDS), here) as hw, asyncio.timeout(DEADLINE_S):
            task = NewTask(tenant="acme", session="s", text=request("what is owed"))
            origin = await hw.run(task)
            assert origin.status == "completed", origin.error
            await hw.clear_session("acme", "s")
            assert await hw.caught_up("acme", timeout_s=DEADLINE_S)
            await trim_before(hw, "acme", format_position((2**50, 0)))
            await lose(hw, "acme")

            events = await task_events(hw.history, "acme", origin.task_id)
            proposed = next(event for event in events if event.type == "handoff.proposed")
            accepted = await fork_task(hw, "acme", origin.task_id, ForkOptions(at=proposed.id))
            outcome = await hw.outcomes.wait(accepted)
            assert (outcome.status, outcome.result) == ("completed", origin.result), outcome.error
            assert await hw.caught_up("acme", timeout_s=DEADLINE_S)
            fork = await task_events(hw.history, "acme", accepted.task_id)
            # The check had what the sender was given: without it, it would have let the handoff pass as unverified.
            assert [event.type for event in fork].count("handoff.rejected") == 1
            assert {getattr(e.body, "verification", "verified") for e in fork} == {"verified"}
