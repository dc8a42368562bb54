"""Records what docs/replay.md tells: `python -m tests.replay.record_story`.

One task that is split, whose first handoff is rejected and repaired, and whose writer is killed in the middle; and one
plain task of another tenant. Then the commands that run tasks again, with what they print. Everything is real: servers,
worker processes, the provider simulator, and the kill.
"""

import asyncio
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from headwater.client import Headwater
from headwater.docs_replay import COLUMNS
from headwater.embedded import EmbeddedServers, Endpoints
from headwater.replay.moments import events_of
from headwater.replay.recording import export
from headwater.settings import Settings
from headwater.simulator import AnswerRule, FaultRule, SimulatorConfig, SimulatorProcess, load_prices
from schemas.task import NewTask
from tests.processes import HeadwaterProcess, until

TARGET = Path("examples/research_team/recorded.headwater.jsonl")
RERUN = Path("examples/research_team/rerun.json")
PRICES = Path("headwater/simulator/prices.json")
TEAM = "examples.research_team.agents:team"
OTHER_TEAM = "tests.e2e.other_team:team"
TEXT = (
    "Please answer our customer Maria Lopez (maria.lopez@corp.example):\n"
    "1. How does redis keep a stream?\n2. Sum it up, for order 4711."
)
STEPS: list[dict[str, Any]] = [
    {"description": "How does redis keep a stream?"},
    {"description": "Sum up for Maria Lopez, order 4711?", "depends_on": [0]},
]
ANSWERS = [
    AnswerRule(system="check a handoff", user="only what the facts say|Sum up", json={"grounded": True}),
    AnswerRule(
        system="check a handoff",
        json={"grounded": False, "reasons": ["that streams are never trimmed does not stand in the context"]},
    ),
    AnswerRule(
        system="Split the task", json={"subtasks": STEPS, "reasoning": "a question, and a summary of its answer"}
    ),
    AnswerRule(
        system="Put the results",
        json={"answer": "Redis keeps a stream in the order in which its entries were added.", "sources": [0, 1]},
    ),
    AnswerRule(system="Say in a word", answer="streams"),
    AnswerRule(system="Choose the one agent", json={"agent_id": "editor", "reasoning": "it shortens texts"}),
    AnswerRule(system="Answer from the facts", answer="In the order in which they were added, each with an id."),
    AnswerRule(system="Answer briefly", answer="Shorter."),
]


SHORTEN = 8
"""How many tasks there are of the type "shorten"."""


@dataclass(frozen=True, slots=True)
class Story:
    """What was recorded: the export of the log, and what the commands printed, by their names."""

    log: bytes
    printed: dict[str, dict[str, str]]


async def record(data: Path) -> Story:
    """Play it, with the servers' data in `data`."""
    with contextlib.ExitStack() as stack:
        endpoints = stack.enter_context(EmbeddedServers(data))
        slow = [FaultRule(model="sim-reasoning", latency_ms=1500), FaultRule(latency_ms=40)]
        config = SimulatorConfig(seed=3, prices=load_prices(None), faults=slow, answers=ANSWERS)
        simulator = stack.enter_context(SimulatorProcess(config))
        env = _environment(endpoints, simulator.url)
        stack.enter_context(HeadwaterProcess(["projector"], env, data / "projector.log"))
        first = stack.enter_context(HeadwaterProcess(["worker", "--agents", TEAM], env, data / "w1.log"))
        settings = Settings(redis_url=endpoints.redis_url, database_url=endpoints.database_url)
        async with Headwater(settings, endpoints) as hw:
            await hw.run(NewTask(tenant="globex", session="notes", text="Shorten this."))
            accepted = await hw.submit(NewTask(tenant="acme", session="s-1042", text=TEXT, type="request"))

            async def writing() -> bool:
                entries = [e async for e in hw.events("acme", task_id=accepted.task_id)]
                return any(e.fields["type"] == "agent.started" and e.fields["source"] == "writer" for e in entries)

            await until(writing, "the writer began")
            first.kill()
            simulator.set_faults([FaultRule(latency_ms=40)])
            stack.enter_context(HeadwaterProcess(["worker", "--agents", TEAM], env, data / "w2.log"))
            outcome = await hw.outcomes.wait(accepted)
            assert outcome.status == "completed", outcome
            await hw.caught_up("acme")
            log = b"".join([line async for line in export(hw.history, ["acme", "globex"])])
            return Story(log, await _run_again(hw, accepted.task_id, env))


async def _run_again(hw: Headwater, task_id: str, env: dict[str, str]) -> dict[str, dict[str, str]]:
    """The commands that run tasks again, in their order; a later one names a fork that an earlier one made."""
    for n in range(SHORTEN):
        text = f"Shorten this: order {4700 + n} came late, and the customer asks what it costs to send it back."
        await hw.run(NewTask(tenant="acme", session=f"s-{n}", text=text, type="shorten"))
    await hw.caught_up("acme")
    of_task = [event async for event in events_of(hw.history, "acme", task_id=task_id)]
    rejected = next(event for event in of_task if event.type == "handoff.rejected")
    task = f"--tenant acme --task {task_id}"
    printed: dict[str, dict[str, str]] = {}

    async def show(name: str, command: str) -> None:
        printed[name] = {"command": command, "output": await asyncio.to_thread(_printed, command, env)}

    async def newest_fork() -> str:
        query = "SELECT task FROM tasks WHERE tenant = 'acme' AND fork_of = $1 ORDER BY submitted_at DESC LIMIT 1"
        return str(await hw.pool.fetchval(query, task_id))

    await show("fork", f"headwater fork {task} --model reasoning=openai/sim-fast --repeat 3 --budget 0.05")
    await show("compare", f"headwater compare --tenant acme {task_id} {await newest_fork()}")
    await show("follow", f"headwater fork {task} --at {rejected.id} --follow")
    await show("agents", f"headwater fork {task} --agents {OTHER_TEAM}")
    await show("compare_teams", f"headwater compare --tenant acme {task_id} {await newest_fork()}")
    await show(
        "cohort",
        "headwater fork --tenant acme --cohort 'type=shorten since=7d' --sample 5 --model fast=openai/sim-reasoning",
    )
    return printed


def _printed(command: str, env: dict[str, str]) -> str:
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "headwater", *words],
        env=os.environ | env | {"COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def _environment(endpoints: Endpoints, simulator_url: str) -> dict[str, str]:
    return {
        "REDIS_URL": endpoints.redis_url,
        "DATABASE_URL": endpoints.database_url,
        "HEADWATER_LEASE_MS": "2000",
        "HEADWATER_LLM_BASE_URL": f"{simulator_url}/v1",
        "HEADWATER_LLM_API_KEY": "simulator",
        "HEADWATER_FAST_MODELS": "openai/sim-fast",
        "HEADWATER_REASONING_MODELS": "openai/sim-reasoning",
        "HEADWATER_PRICES": str(PRICES.absolute()),
        "HEADWATER_LOG_LEVEL": "warning",
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="hw-story-") as directory:
        # Servers that run as another user must get through to their data.
        Path(directory).chmod(0o711)
        story = asyncio.run(record(Path(directory)))
        TARGET.write_bytes(story.log)
        RERUN.write_bytes(orjson.dumps(story.printed, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
