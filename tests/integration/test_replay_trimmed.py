"""What replay says of a task does not depend on where its events are: on the stream or only in the archive (row F6)."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from examples.research_team.agents import team
from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.replay.compare import compare
from headwater.replay.fork import ForkOptions, fork_task
from headwater.testing import AnswerRule, Harness, TaskRun, running
from headwater.trimming import HOUR_MS, Trimmed, trim_logs
from projections.projection import format_position, parse_position
from schemas.content import INLINE_LIMIT_BYTES
from tests import commands

TEAM = "examples.research_team.agents:team"
PRICES = "examples/research_team/prices.json"
LONG = "Streams, at length. " * (INLINE_LIMIT_BYTES // 10)
STEPS = [{"description": "redis?"}, {"description": "Sum up redis.", "depends_on": [0]}]
ANSWERS: list[AnswerRule | dict[str, Any]] = [
    {"system": "check a handoff", "user": "Sum up|only what the facts say", "json": {"grounded": True}},
    {"system": "check a handoff", "json": {"grounded": False, "reasons": ["nothing says so"]}},
    {"system": "Split the task", "json": {"subtasks": STEPS, "reasoning": "two jobs"}},
    {"system": "Put the results", "json": {"answer": "All is said.", "sources": [0, 1]}},
    {"system": "Answer from the facts", "answer": LONG},
    {"system": "Answer briefly", "answer": LONG},
    {"system": "Say in a word", "answer": "streams"},
]
OF_ACME, OF_GLOBEX = "the bill of Lopez", "the bill of Okafor"


def request(words: str) -> str:
    """A text that is split into steps, and too long to stand in an event."""
    return f"Please:\n1. look into redis\n2. sum it up\n\n{words} {LONG}"


class Play:
    """One task and its fork in each of two tenants, in sessions of the same name."""

    def __init__(self, harness: Harness, runs: dict[str, TaskRun], forks: dict[str, TaskRun], directory: Path) -> None:
        self.harness = harness
        self.runs = runs
        self.forks = forks
        self.directory = directory

    def looks(self, tenant: str) -> dict[str, list[str]]:
        """Name → command, of everything that looks at a task, proves it or prices it."""
        run, fork = self.runs[tenant], self.forks[tenant].outcome.task_id
        task = run.outcome.task_id
        named = ["--tenant", tenant, "--task", task]
        middle, last = run.events[len(run.events) // 2], run.events[-1]
        moment = middle.at + timedelta(milliseconds=1)
        exported = str(self.directory / f"{tenant}.jsonl")
        return {
            "story": ["replay", *named, "--json"],
            "told": ["replay", *named],
            "session": ["replay", "--tenant", tenant, "--session", "s1", "--json"],
            "at a position": ["replay", *named, "--at", str(middle.position), "--json"],
            "at an event": ["replay", *named, "--at", last.id, "--json"],
            "at a time": ["replay", *named, "--at", moment.isoformat(), "--json"],
            "at the end of days": ["replay", *named, "--at", "2100-01-01", "--json"],
            "blame": ["replay", *named, "--blame", "/answer", "--json"],
            "verify": ["replay", "--verify", "--agents", TEAM, "--tenant", tenant, "--json"],
            "verify a task": ["replay", "--verify", "--agents", TEAM, *named, "--json"],
            "fixture": ["fixture", *named, "--agents", TEAM, "-o", f"{exported}.fixture"],
            "export": ["export", "--tenant", tenant, "-o", exported],
            "export a task": ["export", *named, "-o", f"{exported}.task"],
            "reprice": ["reprice", "--tenant", tenant, "--prices", PRICES, "--model", "sim-reasoning=frugal", "--json"],
            "compare": ["compare", "--tenant", tenant, task, fork, "--json"],
            "events": ["events", "--tenant", tenant, "--json"],
            "the other's task": [
                *("replay", "--tenant", tenant, "--json", "--task"),
                self.runs["globex" if tenant == "acme" else "acme"].outcome.task_id,
            ],
        }

    async def look(self, *tenants: str) -> dict[tuple[str, str], str]:
        """(tenant, name) → what the command printed or wrote."""
        looks = {(tenant, name): words for tenant in tenants for name, words in self.looks(tenant).items()}
        env = os.environ | {
            "REDIS_URL": self.harness.endpoints.redis_url,
            "DATABASE_URL": self.harness.endpoints.database_url,
            "HEADWATER_SHARDS": str(self.harness.settings.shards),
            "COLUMNS": "200",
        }
        printed = await commands.run(env, list(looks.values()))
        found = {}
        for (tenant, name), (status, text) in zip(looks, printed, strict=True):
            assert status == (name == "the other's task"), (tenant, name, text)
            found[tenant, name] = _output(looks[tenant, name], text)
            assert (found[tenant, name] == "") == (name == "the other's task")
        return found


def _output(words: list[str], printed: str) -> str:
    """What a command printed, or wrote to the file that it names."""
    return Path(words[words.index("-o") + 1]).read_text() if "-o" in words else printed


async def play(harness: Harness, directory: Path) -> Play:
    """Two tenants' tasks and forks, all ended and projected."""
    runs, forks = {}, {}
    for tenant, words in (("acme", OF_ACME), ("globex", OF_GLOBEX)):
        runs[tenant] = await harness.run_task(request(words), tenant=tenant, session="s1")
        # A fork of the fact in the middle: compare reads what it took over in its origin's events.
        proposed = next(event for event in runs[tenant].events if event.type == "handoff.proposed")
        accepted = await fork_task(harness.hw, tenant, runs[tenant].outcome.task_id, ForkOptions(at=proposed.id))
        forks[tenant] = await harness.finished(accepted)
        # Readers keep their own position: with one entry more, all of the task and its fork can go.
        await harness.hw.clear_session(tenant, "s1")
        await harness.hw.caught_up(tenant)
    return Play(harness, runs, forks, directory)


async def trim_before(hw: Headwater, tenant: str, position: str) -> Trimmed:
    """Trim what is older than the millisecond of a position."""
    hours = (time.time() * 1000 - parse_position(position)[0]) / HOUR_MS
    [trimmed] = await trim_logs(hw.streams, hw.pool, retention_hours=hours, tenant_id=tenant)
    return trimmed


async def stored_blobs(harness: Harness, tenant: str) -> int:
    streams = harness.hw.streams
    return len(await streams.redis.keys(f"{streams.keys.prefix(tenant)}:blob:*"))


async def lose(hw: Headwater, tenant: str) -> None:
    """Remove whatever Redis has of a tenant."""
    streams = hw.streams
    await streams.redis.delete(*await streams.redis.keys(f"{streams.keys.prefix(tenant)}:*"))
    assert await streams.log.oldest(tenant) is None


async def test_replay_says_the_same_wherever_the_events_are(endpoints: Endpoints, tmp_path: Path) -> None:
    async with running(team, endpoints, answers=ANSWERS) as harness:
        played = await play(harness, tmp_path)
        before = await played.look("acme", "globex")
        of_acme = {key: text for key, text in before.items() if key[0] == "acme"}
        check_that_it_says_something(played, before)
        for (tenant, name), text in before.items():
            mine, others = (OF_ACME, OF_GLOBEX) if tenant == "acme" else (OF_GLOBEX, OF_ACME)
            assert others not in text, (tenant, name)
            if name in ("at a position", "export"):
                assert mine in text, (tenant, name)

        # First a part of the origin: the rest of it, and all of the fork, stand on the stream.
        events = played.runs["acme"].events
        cut = next(event for event in events if event.type == "handoff.proposed")
        await trim_before(harness.hw, "acme", str(cut.position))
        left = await streamed(harness, "acme")
        assert events[0].id not in left
        assert {events[-1].id, played.forks["acme"].events[0].id} <= left
        assert await played.look("acme") == of_acme

        # Then all of it, with the contents.
        assert await stored_blobs(harness, "acme") > 0
        await trim_before(harness.hw, "acme", format_position((2**50, 0)))
        assert len(await streamed(harness, "acme")) <= 1
        assert await stored_blobs(harness, "acme") == 0
        assert await played.look("acme") == of_acme

        await lose(harness.hw, "acme")
        assert await played.look("acme", "globex") == before


def check_that_it_says_something(played: Play, said: dict[tuple[str, str], str]) -> None:
    """The commands are compared with themselves later: here it is seen that they do say what happened."""
    for tenant, run in played.runs.items():
        story = json.loads(said[tenant, "story"])
        assert (story["status"], story["total_usd"]) == ("completed", format(run.cost_usd.normalize(), "f"))
        assert [json.loads(line)["task"] for line in said[tenant, "session"].splitlines()] == [
            run.outcome.task_id,
            played.forks[tenant].outcome.task_id,
        ]
        at_end = json.loads(said[tenant, "at the end of days"])
        attempts = len(run.bodies("llm.attempted")) + len(played.forks[tenant].bodies("llm.attempted"))
        assert at_end["ledger"]["attempts"] == attempts
        assert 0 < json.loads(said[tenant, "at a position"])["ledger"]["attempts"] < attempts
        assert json.loads(said[tenant, "verify"])["tasks"] == 2
        assert json.loads(said[tenant, "compare"])["decisions"][0]["right"]["taken_over"]
        assert json.loads(said[tenant, "blame"])["origin"]["type"] == "llm.attempted"


async def streamed(harness: Harness, tenant: str) -> set[str]:
    """The ids of the events that stand on the stream."""
    return {fields[fields.index("id") + 1] for _, fields in await harness.hw.streams.log.read(tenant)}


@pytest.mark.parametrize("lost", [False, True])
async def test_a_trimmed_task_is_forked_as_before(endpoints: Endpoints, tmp_path: Path, lost: bool) -> None:
    async with running(team, endpoints, answers=ANSWERS) as harness:
        played = await play(harness, tmp_path)
        origin, first = played.runs["acme"], played.forks["acme"]
        await trim_before(harness.hw, "acme", format_position((2**50, 0)))
        if lost:
            await lose(harness.hw, "acme")
        assert await stored_blobs(harness, "acme") == 0
        recording = harness.hw.history
        made = [await compare(recording, "acme", origin.outcome.task_id, first.outcome.task_id)]
        proposed = next(event for event in origin.events if event.type == "handoff.proposed")
        for at in (proposed.id, None):
            accepted = await fork_task(harness.hw, "acme", origin.outcome.task_id, ForkOptions(at=at))
            fork = await harness.finished(accepted)
            assert fork.outcome.status == "completed", fork.outcome.error
            made.append(await compare(recording, "acme", origin.outcome.task_id, accepted.task_id))
            assert fork.result == origin.result
            # The checks were made, and as before: one handoff was rejected, and repaired.
            assert fork.outcome.agent_results == origin.outcome.agent_results
        said = [[{**row["right"], "event": ""} for row in one["decisions"]] for one in made]
        assert said[0] == said[1], "it takes over and decides what it did before"
        assert [one["first_difference"] for one in made] == [made[0]["first_difference"]] * 2 + [None]
        # A fork of a fork of which nothing is on the stream.
        again = await fork_task(harness.hw, "acme", first.outcome.task_id, ForkOptions())
        assert (await harness.finished(again)).result == origin.result
        assert [event.id for event in await harness.events("globex") if event.task_id] == [
            event.id for run in (played.runs["globex"], played.forks["globex"]) for event in run.events
        ]
