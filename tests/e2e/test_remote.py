"""The command line against a Headwater behind a URL: `--url` and `--key`, keys made by the commands themselves."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headwater.embedded import Endpoints
from headwater.remote import RemoteHeadwater
from headwater.settings import Settings
from projections.db import Pool
from schemas.errors import NotFoundError
from schemas.task import NewTask
from streams.connection import Streams
from tests import commands
from tests.conftest import SHARDS
from tests.serving import DEADLINE_S, Echo, echo_team, served, working

ROOT = Path(__file__).parents[2]
TEAM = "tests.serving:team"
LARGE = "What stands only once, and is referred to. " * 100


@dataclass
class Ran:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[Any]:
        """What it printed, as JSON."""
        assert self.status == 0, self.stderr
        return [json.loads(line) for line in self.stdout.splitlines()]


@dataclass
class Far:
    """A Headwater that is reached by URL, and the environment of an operator beside it."""

    url: str
    here: dict[str, str]
    agent: Echo

    async def local(self, *arguments: str) -> Ran:
        """A command beside the servers."""
        return await run(self.here, *arguments)

    async def key(self, *arguments: str) -> str:
        """A new key."""
        [key] = (await self.local("keys", "create", *arguments, "--json")).lines
        return str(key["key"])

    async def remote(self, key: str, *arguments: str) -> Ran:
        """A command somewhere else: it knows the URL and a key, and nothing of the servers."""
        return await run(environment() | {"HEADWATER_URL": self.url, "HEADWATER_KEY": key}, *arguments)


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    for name in ("REDIS_URL", "DATABASE_URL"):
        kept.pop(name, None)
    return kept | {"HEADWATER_DATA": "/nonexistent", "COLUMNS": "200", "NO_COLOR": "1"}


@contextlib.asynccontextmanager
async def started(env: dict[str, str], *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "headwater", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=env, cwd=ROOT, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(env: dict[str, str], *arguments: str) -> Ran:
    """`headwater ARGUMENTS` to its end."""
    async with started(env, *arguments) as process:
        stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ran(process.returncode, stdout.decode(), stderr.decode())


@pytest.fixture
async def far(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str
) -> AsyncIterator[Far]:
    agent = Echo()
    there = Endpoints(endpoints.redis_url, database_url)
    here = environment() | {
        "REDIS_URL": endpoints.redis_url,
        "DATABASE_URL": database_url,
        "HEADWATER_SHARDS": str(SHARDS),
    }
    with_team = settings.model_copy(update={"agents": TEAM})
    async with served(with_team, there) as url, working(settings, there, echo_team(agent)):
        yield Far(url, here, agent)
        agent.release.set()


async def test_every_command_says_far_away_what_it_says_here(far: Far, tmp_path: Path) -> None:
    key = await far.key("--tenant", "acme", "--scope", "submit", "--scope", "read", "--name", "a test")
    [done] = (await far.remote(key, "submit", "-t", "acme", "-s", "s 1/2", "--wait", "hello", "--json")).lines
    assert (done["status"], done["result"]["echo"]) == ("completed", "hello")
    file = tmp_path / "tasks.jsonl"
    task = {"tenant": "acme", "session": "s2", "text": "from a file", "idempotency_key": "k1"}
    file.write_text(json.dumps(task) + "\n" + json.dumps(task) + "\n" + json.dumps(task | {"tenant": "globex"}) + "\n")
    submitted = await far.remote(key, "submit", "-f", str(file), "--wait", "--json")
    assert submitted.status == 1
    assert "1 submitted, 1 known already, 1 bad line" in submitted.stderr
    assert "line 3" in submitted.stderr
    assert "'globex'" in submitted.stderr
    for command in (
        ("task", "-t", "acme", done["task"]),
        ("session", "-t", "acme", "s 1/2"),
        ("events", "-t", "acme"),
        ("events", "-t", "acme", "--task", done["task"], "--limit", "2"),
        ("costs", "-t", "acme", "--by", "model"),
    ):
        as_json = () if command[0] == "session" else ("--json",)
        here, there = await asyncio.gather(far.local(*command, *as_json), far.remote(key, *command, *as_json))
        assert (there.status, there.stdout) == (0, here.stdout), command
        assert there.stdout or command[0] == "costs", command
    first = (await far.remote(key, "events", "-t", "acme", "--limit", "1", "--json")).lines[0]
    tree = ("costs", "-t", "acme", "--decision", first["id"], "--json")
    here, there = await asyncio.gather(far.local(*tree), far.remote(key, *tree))
    assert there.lines == here.lines
    cleared = (await far.remote(key, "session", "clear", "s 1/2", "-t", "acme", "--json")).lines
    assert (await far.remote(key, "session", "s 1/2", "-t", "acme", "--json")).lines[0]["messages"] == []
    assert cleared[0]["session"] == "s 1/2"


async def test_a_log_is_replayed_from_afar_as_here(far: Far, tmp_path: Path) -> None:
    key = await far.key("-t", "acme", "--scope", "submit", "--scope", "read")
    [first, second] = [
        (await far.remote(key, "submit", "-t", "acme", "-s", "s", "--wait", text, "--json")).lines[0]["task"]
        for text in ("hello", LARGE)
    ]
    [start, *_, end] = (await far.local("events", "-t", "acme", "--task", second, "--json")).lines
    told = ("replay", "-t", "acme", "-k", second)
    (prices := tmp_path / "prices.json").write_text("{}")
    by_team = ("--verify", "--agents", TEAM)
    both = [
        told,
        (*told, "--json"),
        ("replay", "-t", "acme", "-s", "s", "--json"),
        (*told, "--at", start["id"], "--json"),
        (*told, "--at", end["position"]),
        (*told, "--blame", "/echo", "--json"),
        (*told, *by_team, "--json"),
        ("replay", "-t", "acme", *by_team),
        ("compare", "-t", "acme", first, second),
        ("compare", "-t", "acme", first, second, "--json"),
        ("reprice", "-t", "acme", "--prices", str(prices), "--json"),
        ("dead-letters", "list", "-t", "acme", "--json"),
    ]
    there_env = environment() | {"HEADWATER_URL": far.url, "HEADWATER_KEY": key}
    # Without a team, the one over there decides.
    only_there = [(*told, "--verify", "--json")]
    files = []
    for name, *words in (("export", "-k", second), ("fixture", "-k", second, "--agents", TEAM)):
        files += [(name, "-t", "acme", *words, "-o", str(tmp_path / f"WHERE.{name}"))]
    made = [
        [tuple(word.replace("WHERE", where) for word in command) for command in files] for where in ("here", "there")
    ]
    here, there = await asyncio.gather(
        commands.run(far.here, [*both, *made[0]]), commands.run(there_env, [*both, *made[1], *only_there])
    )
    for command, one, other in zip(both, here, there, strict=False):
        assert (one[0], other) == (0, one), command
        assert one[1] or command[0] == "dead-letters", command
    assert there[-1] == there[both.index((*told, *by_team, "--json"))]
    assert json.loads(there[-1][1])["tasks"] == 1
    for name in ("export", "fixture"):
        assert (tmp_path / f"there.{name}").read_bytes() == (tmp_path / f"here.{name}").read_bytes()
    # The contents that events refer to came along.
    assert LARGE in (tmp_path / "there.export").read_text()


async def test_a_task_is_forked_from_afar(far: Far) -> None:
    key = await far.key("-t", "acme", "--scope", "submit", "--scope", "read")
    [origin] = (await far.remote(key, "submit", "-t", "acme", "-s", "s", "--wait", "hello", "--json")).lines
    fork = ("fork", "-t", "acme", "-k", origin["task"])
    how = ("--data", '{"n": 2}', "--repeat", "2", "--budget", "0.5", "--model", "fast=openai/sim-fast", "--json")
    [made] = (await far.remote(key, *fork, *how)).lines
    assert [one["result"] for one in made["forks"]] == [{"echo": "hello", "data": {"n": 2}}] * 2
    assert [one["fork_of"] for one in made["forks"]] == [origin["task"]] * 2
    [forked] = [
        event["body"]
        for event in (await far.local("events", "-t", "acme", "--task", made["forks"][0]["task"], "--json")).lines
        if event["type"] == "task.forked"
    ]
    assert (forked["budget_usd"], forked["models"]) == ("0.5", {"fast": ["openai/sim-fast"]})
    [there] = (await far.remote(key, "compare", "-t", "acme", origin["task"], forked_id(made), "--json")).lines
    assert {name: there[name] for name in ("left", "right")} == {"left": made["origin"], "right": made["forks"][0]}
    followed = await far.remote(key, *fork, "--follow", "--timeout", "30")
    assert followed.status == 0, followed.stderr
    assert followed.stdout.index("task.forked") < followed.stdout.index("task.completed")


def forked_id(made: dict[str, Any]) -> str:
    return str(made["forks"][0]["task"])


async def test_replay_from_afar_keeps_to_the_keys_tenant_and_says_what_it_cannot_do(far: Far, tmp_path: Path) -> None:
    acme, globex = [await far.key("-t", name, "--scope", "submit", "--scope", "read") for name in ("acme", "globex")]
    [mine] = (await far.remote(acme, "submit", "-t", "acme", "-s", "s", "--wait", LARGE, "--json")).lines
    [other] = (await far.remote(globex, "submit", "-t", "globex", "-s", "s", "--wait", "hello", "--json")).lines
    task = mine["task"]
    (file := tmp_path / "log.jsonl").write_text('{"headwater": 1}\n')
    cases = [
        (1, "has no task", "replay -t globex -k TASK"),
        (1, "has no task", "replay -t globex -k TASK --at 1-0"),
        (1, "has no task", "replay -t globex -k TASK --verify"),
        (1, "no task", f"replay -t globex -k TASK --verify --agents {TEAM}"),
        (1, "has no task", "fork -t globex -k TASK"),
        (1, "has no task", f"compare -t globex {other['task']} TASK"),
        (1, "no such events", "export -t globex -k TASK"),
        (1, "does not match", "replay -t acme -k TASK"),
        (2, "name the tenant", "replay -k TASK"),
        (2, "name one task", "replay -t globex --verify"),
        (2, "needs the servers themselves", "fork -t globex --cohort type=task"),
        (2, "needs the servers themselves", f"fork -t globex -k TASK --agents {TEAM}"),
        (2, "Langfuse's keys", "costs -t globex --compare langfuse"),
        (2, "needs no server", f"replay {file} -k TASK --url {far.url}"),
        (2, "no position", f"replay -t globex -k {other['task']} --at nonsense"),
    ]
    places = asyncio.Semaphore(3)

    async def tried(words: str) -> Ran:
        async with places:
            return await far.remote(globex, *words.replace("TASK", task).split())

    all_tried = await asyncio.gather(*(tried(words) for _, _, words in cases))
    for (status, said, words), ran in zip(cases, all_tried, strict=True):
        assert (ran.status, said in ran.stderr) == (status, True), (words, ran)
        assert (ran.stdout, "Traceback" in ran.stderr) == ("", False), words
    # A blob's hash is no key to it.
    [submitted] = [
        event["body"]["text"]
        for event in (await far.remote(acme, "events", "-t", "acme", "--json")).lines
        if event["type"] == "task.submitted"
    ]
    async with RemoteHeadwater(far.url, acme) as hw:
        assert LARGE in (await hw.request("GET", f"/v1/blobs/{submitted['$blob']}", "acme")).text
    async with RemoteHeadwater(far.url, globex) as hw:
        with pytest.raises(NotFoundError, match="is missing"):
            await hw.request("GET", f"/v1/blobs/{submitted['$blob']}", "globex")


async def test_a_task_is_cancelled_from_afar_and_from_here(far: Far) -> None:
    key = await far.key("-t", "acme", "--scope", "submit", "--scope", "read")
    for cancel in (far.local, partial(far.remote, key)):
        async with RemoteHeadwater(far.url, key) as hw:
            held = await hw.submit(NewTask(tenant="acme", session="s", text="t", type="held"))
            [asked] = (await cancel("cancel", "-t", "acme", held.task_id, "--reason", "no need", "--json")).lines
            assert asked["status"] in ("submitted", "running")
            outcome = await asyncio.wait_for(hw.wait(held), DEADLINE_S)
            assert (outcome.status, outcome.error) == ("cancelled", "no need")
            done = await hw.submit(NewTask(tenant="acme", session="s", text="t"))
            await asyncio.wait_for(hw.wait(done), DEADLINE_S)
        again, late, unknown = await asyncio.gather(
            *(cancel("cancel", "-t", "acme", task_id) for task_id in (held.task_id, done.task_id, "0" * 24))
        )
        assert (again.status, again.stdout) == (0, "it is cancelled already\n")
        assert (late.status, "is completed: it can not be cancelled any more" in late.stderr) == (1, True)
        assert (unknown.status, "has no task" in unknown.stderr) == (1, True)


async def test_following_a_log_from_afar(far: Far) -> None:
    key = await far.key("-t", "acme", "--scope", "submit", "--scope", "read")
    hw = RemoteHeadwater(far.url, key)
    await hw.submit(NewTask(tenant="acme", session="s", text="one"))
    env = environment() | {"HEADWATER_URL": far.url, "HEADWATER_KEY": key}
    async with hw, started(env, "events", "-t", "acme", "--follow", "--json") as process:
        assert process.stdout is not None
        texts: list[str] = []
        async with asyncio.timeout(DEADLINE_S):
            while "one" not in texts:
                event = json.loads(await process.stdout.readline())
                texts += [event["body"]["text"]] if event["type"] == "task.submitted" else []
            await hw.submit(NewTask(tenant="acme", session="s", text="two"))
            while "two" not in texts:
                event = json.loads(await process.stdout.readline())
                texts += [event["body"]["text"]] if event["type"] == "task.submitted" else []
        assert texts == ["one", "two"]


async def test_keys_are_made_listed_and_revoked(far: Far) -> None:
    made = await far.local("keys", "create", "-t", "acme", "--scope", "read", "--name", "dashboard")
    key = made.stdout.strip()
    assert key.startswith("hw_")
    assert "not shown again" in made.stderr
    [listed] = (await far.local("keys", "list", "-t", "acme", "--json")).lines
    assert (listed["name"], listed["scopes"], listed["tenant"]) == ("dashboard", ["read"], "acme")
    shown = await far.local("keys", "list")
    assert listed["id"] in shown.stdout
    assert key.rpartition("_")[2] not in shown.stdout + json.dumps(listed)
    refused = await far.remote(key, "submit", "-t", "acme", "-s", "s", "t")
    assert (refused.status, "this needs submit" in refused.stderr) == (1, True)
    assert (await far.remote(key, "events", "-t", "acme")).status == 0
    other = await far.remote(key, "events", "-t", "globex")
    assert (other.status, "does not match the key's tenant" in other.stderr) == (1, True)
    assert (await far.local("keys", "revoke", listed["id"])).status == 0
    gone = await far.remote(key, "events", "-t", "acme")
    assert (gone.status, "was revoked" in gone.stderr) == (1, True)
    assert (await far.local("keys", "revoke", "nothing")).status == 1
    assert (await far.local("keys", "create", "--scope", "read")).status == 2
    assert (await far.local("keys", "create", "-t", "acme", "--scope", "root")).status == 2


async def test_an_operators_key_is_good_for_every_tenant(far: Far) -> None:
    key = await far.key("--scope", "admin")
    for tenant in ("acme", "globex"):
        [done] = (await far.remote(key, "submit", "-t", tenant, "-s", "s", "--wait", tenant, "--json")).lines
        assert (done["tenant"], done["result"]["echo"]) == (tenant, tenant)
    assert (await far.remote(key, "costs", "--json")).status == 0


async def test_what_can_be_wrong_with_a_url_is_said(far: Far) -> None:
    key = await far.key("-t", "acme", "--scope", "read")

    async def tried(url: str | None, key: str | None, *more: str) -> str:
        env = environment()
        env |= {"HEADWATER_URL": url} if url else {}
        env |= {"HEADWATER_KEY": key} if key else {}
        ran = await run(env, "events", "-t", "acme", *more)
        assert ran.status != 0
        assert "Traceback" not in ran.stderr
        return ran.stderr

    nobody, *others = await asyncio.gather(
        tried("http://127.0.0.1:9", key),
        tried("ftp://example", key),
        tried(far.url + "/docs?", key),
        tried(far.url, None),
        tried(far.url, "hw_wrong"),
        tried(None, None, "--key", key),
        # A data directory that is named is meant, whatever the environment says.
        tried(far.url, key, "--data", "/nonexistent"),
    )
    assert "no Headwater answers at http://127.0.0.1:9" in nobody
    expected = ("is not a URL", "which is not what a Headwater says", "HEADWATER_KEY", "was revoked", "--key goes with")
    assert all(text in said for text, said in zip((*expected, "no Headwater is running"), others, strict=True)), others
