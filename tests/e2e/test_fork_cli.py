"""`headwater fork`, `compare` and cohorts as a user runs them, against workers that run in this process."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from decimal import Decimal
from pathlib import Path
from typing import Any

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team
from headwater.embedded import Endpoints
from headwater.testing import Harness, running
from headwater.testing.harness import SIMULATOR_PRICES
from tests.processes import until

ANSWERS = [{"model": "sim-reasoning", "answer": "At length: yes."}, {"answer": "Yes."}]


class Clerk(BaseAgent):
    """Asks a model, after `gate` has opened."""

    registration = AgentRegistration(agent_id="clerk", name="Clerk", description="answers", max_concurrent_tasks=2)

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.runs = 0

    async def execute(self, task: Task, context: TaskContext) -> Any:
        self.runs += 1
        await self.gate.wait()
        if task.data.get("twice"):
            await context.llm.complete("first")
        return {"text": (await context.llm.complete(task.text, tier="reasoning")).text, "n": task.data.get("n")}


async def start(harness: Harness, *arguments: str, **more: str) -> Process:
    """The command, connected to the harness's servers."""
    env = os.environ | {
        "REDIS_URL": harness.endpoints.redis_url,
        "DATABASE_URL": harness.endpoints.database_url,
        "HEADWATER_SHARDS": str(harness.settings.shards),
        "HEADWATER_LLM_BASE_URL": f"{harness.provider_url}/v1",
        "HEADWATER_LLM_API_KEY": "simulator",
        "HEADWATER_PRICES": str(SIMULATOR_PRICES),
        "HEADWATER_FAST_MODELS": "openai/sim-fast",
        "HEADWATER_REASONING_MODELS": "openai/sim-reasoning",
        "COLUMNS": "200",
        **more,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "headwater",
        *arguments,
        stdout=PIPE,
        stderr=PIPE,
        env=env,
        preexec_fn=_hears_interrupts,  # one system call
    )


def _hears_interrupts() -> None:
    """Where the suite runs in a shell's background, SIGINT is ignored, and whoever it starts would ignore it too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def headwater(harness: Harness, *arguments: str, status: int = 0, **more: str) -> str:
    """What the command prints. It must exit with `status`."""
    process = await start(harness, *arguments, **more)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == status, out.decode() + err.decode()
    return (out if status == 0 else out + err).decode()


def team(clerk: Clerk) -> Team:
    return Team([clerk], HybridRouter([lambda task: "clerk"]))


async def test_fork_and_compare(endpoints: Endpoints) -> None:
    async with running(team(Clerk()), endpoints, answers=ANSWERS) as harness:
        origin = await harness.run_task("May I?", tenant="acme", data={"n": 1})
        task = origin.outcome.task_id
        named = ("fork", "-t", "acme", "-k", task)

        cheaper = ("--model", "reasoning=openai/sim-fast", "--data", '{"n": 2}')
        made = json.loads(await headwater(harness, *named, *cheaper, "--repeat", "2", "--json"))
        assert [one["status"] for one in made["forks"]] == ["completed"] * 2
        assert made["origin"]["models"] == ["openai/sim-reasoning"]
        assert all(one["models"] == ["openai/sim-fast"] for one in made["forks"])
        assert Decimal(made["origin"]["cost_usd"]) == origin.cost_usd
        fork = made["forks"][0]["task"]
        assert f"fork of  {task}" in await headwater(harness, "task", "-t", "acme", fork)

        listed = json.loads(await headwater(harness, "task", "-t", "acme", task, "--forks", "--json"))
        assert [one["task"] for one in listed["forks"]] == [one["task"] for one in made["forks"]]
        in_all = sum(Decimal(one["cost_usd"]) for one in [made["origin"], *made["forks"]])
        assert Decimal(listed["total_usd"]) == in_all
        assert f"for 2 forks: ${listed['total_usd']}" in await headwater(harness, "task", "-t", "acme", task, "--forks")
        found = json.loads(await headwater(harness, "compare", "-t", "acme", task, fork, "--json"))
        assert found["first_difference"] is None
        assert {"pointer": "/n", "left": 1, "right": 2} in found["results"]
        assert [found[name]["cost_usd"] for name in ("left", "right")] == [
            made["origin"]["cost_usd"],
            made["forks"][0]["cost_usd"],
        ]
        shown = await headwater(harness, "compare", "-t", "acme", task, fork)
        assert "/text" in shown
        assert "At length: yes." in shown

        followed = await headwater(harness, *named, "--follow")
        assert "task.forked" in followed
        assert followed.index("agent.completed") < followed.index("task.completed")
        twice = ("--data", '{"twice": true}', "--budget", "0.0000001")
        assert "has spent $" in await headwater(harness, *named, *twice, status=1)
        assert "fork at one of" in await headwater(harness, *named, "--at", "nonsense", status=2)
        assert "TIER=NAME" in await headwater(harness, *named, "--model", "fast", status=2)
        assert "has no task" in await headwater(harness, "fork", "-t", "globex", "-k", task, status=1)


async def test_an_interrupted_cohort_goes_on_where_it_stopped(endpoints: Endpoints) -> None:
    clerk = Clerk()
    async with running(team(clerk), endpoints, answers=ANSWERS) as harness:
        for n in range(6):
            await harness.run_task(f"May I? {n}", tenant="acme", type="refund", data={"n": n})
        await harness.run_task("May I?", tenant="acme", type="other")
        await harness.run_task("May I?", tenant="globex", type="refund")
        clerk.gate.clear()
        runs = clerk.runs
        words = ("fork", "-t", "acme", "--cohort", "type=refund since=1d", "--model", "reasoning=openai/sim-fast")

        process = await start(harness, *words, "--sample", "5", "--json")
        await until(lambda: _is(clerk.runs >= runs + 2), "two forks are being worked on")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            await process.communicate()
        assert process.returncode != 0

        clerk.gate.set()
        report = json.loads(await headwater(harness, *words, "--sample", "5", "--json"))
        assert report["known_before"] >= 2
        assert (report["tasks"], report["problems"], report["different"]) == (5, [], 5)
        assert clerk.runs == runs + 5, "no fork was made twice"
        again = json.loads(await headwater(harness, *words, "--sample", "5", "--json"))
        assert again["known_before"] == 5
        assert again["pairs"] == report["pairs"]
        assert clerk.runs == runs + 5

        spent = [Decimal(pair["cost_usd"][1]) for pair in report["pairs"]]
        assert Decimal(report["fork"]["total_usd"]) == sum(spent)
        assert Decimal(report["fork"]["cost_usd"]["max"]) == max(spent) < Decimal(report["origin"]["cost_usd"]["p50"])
        forks = await harness.hw.pool.fetch("SELECT tenant, type FROM tasks WHERE fork_of IS NOT NULL")
        assert {tuple(row) for row in forks} == {("acme", "refund")}
        shown = await headwater(harness, *words, "--sample", "6")
        assert "6 of 6 results differ" in shown
        assert "5 forks had been made before" in shown
        assert "no task" in await headwater(harness, "fork", "-t", "acme", "--cohort", "type=none", status=1)
        assert "each once" in await headwater(harness, "fork", "-t", "acme", "--cohort", "typ=refund", status=2)


async def _is(so: bool) -> bool:
    return so


OTHER = ("--agents", "tests.e2e.fork_team:team")


async def test_another_team_serves_its_forks_while_the_command_waits(endpoints: Endpoints, tmp_path: Path) -> None:
    async with running(team(Clerk()), endpoints, answers=ANSWERS) as harness:
        task = (await harness.run_task("May I?", tenant="acme")).outcome.task_id
        named = ("fork", "-t", "acme", "-k", task, *OTHER)
        made = json.loads(await headwater(harness, *named, "--repeat", "2", "--json"))
        for one in made["forks"]:
            assert (one["status"], one["result"]) == ("completed", {"text": "Yes.", "by": "another team"})
        fork = made["forks"][0]["task"]
        found = json.loads(await headwater(harness, "compare", "-t", "acme", task, fork, "--json"))
        assert found["first_difference"] is None
        told = await headwater(harness, "replay", "-t", "acme", "-k", fork)
        assert "was run again by tests.e2e.fork_team:team from its start" in told

        process = await start(harness, *named, FORK_GATE=str(tmp_path / "never"))
        await until(lambda: _any(harness, "running"), "the fork is being worked on")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            await process.communicate()
        await until(lambda: _any(harness, "cancelled"), "nobody is left to work on it")
        short = await headwater(harness, *named, "--timeout", "1", status=1, FORK_GATE=str(tmp_path / "never"))
        assert "cancelled" in short


async def _any(harness: Harness, status: str) -> bool:
    found = await harness.hw.pool.fetchval(
        "SELECT count(*) FROM tasks WHERE fork_of IS NOT NULL AND status = $1", status
    )
    return bool(found)


async def test_an_interrupted_cohort_of_another_team_goes_on(endpoints: Endpoints, tmp_path: Path) -> None:
    clerk = Clerk()
    async with running(team(clerk), endpoints, answers=ANSWERS) as harness:
        for n in range(4):
            await harness.run_task(f"May I? {n}", tenant="acme", type="refund", data={"n": n})
        runs = clerk.runs
        words = ("fork", "-t", "acme", "--cohort", "type=refund", *OTHER, "--json")
        gate = tmp_path / "open"
        process = await start(harness, *words, FORK_GATE=str(gate))
        await until(lambda: _any(harness, "running"), "forks are being worked on")
        process.kill()
        await process.communicate()
        gate.touch()
        report = json.loads(await headwater(harness, *words, FORK_GATE=str(gate)))
        assert report["known_before"] >= 1
        assert (report["tasks"], report["fork"]["completed"], report["different"]) == (4, 4, 4)
        assert clerk.runs == runs, "the running team had no part in it"
        forks = await harness.hw.pool.fetchval("SELECT count(*) FROM tasks WHERE fork_of IS NOT NULL")
        assert forks == 4
