"""The command line as a user runs it, against one `headwater up` on an empty data directory."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from headwater.node import Node, running_node
from headwater.simulator import SimulatorConfig, SimulatorProcess, load_prices
from streams.keys import Keys

ROOT = Path(__file__).parents[2]
PRICES = ROOT / "examples" / "support_desk" / "prices.json"
TEAM = "examples.support_desk.agents:team"


@dataclass
class Desk:
    """A running Headwater and how to talk to it."""

    data: Path
    env: dict[str, str]
    node: Node

    def run(self, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """`headwater ARGUMENTS`."""
        return headwater(self.env, *arguments, stdin=stdin)

    def json(self, *arguments: str) -> list[Any]:
        """The JSON lines that a command printed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def get(self, path: str) -> tuple[int, str]:
        """An HTTP request to `up`."""
        with urllib.request.urlopen(self.node.url + path, timeout=10) as response:
            return response.status, response.read().decode()


def headwater(env: dict[str, str], *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "headwater", *arguments],
        env=env,
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def environment(data: Path, **more: str) -> dict[str, str]:
    """An environment without the caller's Headwater settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    for name in ("REDIS_URL", "DATABASE_URL"):
        kept.pop(name, None)
    return kept | {"HEADWATER_DATA": str(data), "COLUMNS": "200", "NO_COLOR": "1"} | more


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    home = tmp_path_factory.mktemp("up")
    for part in (home, *list(home.parents)[:2]):
        part.chmod(0o711)
    data = home / "data"
    with SimulatorProcess(SimulatorConfig(prices=load_prices(PRICES))) as simulator:
        env = environment(
            data,
            HEADWATER_LLM_BASE_URL=f"{simulator.url}/v1",
            HEADWATER_LLM_API_KEY="simulator",
            HEADWATER_FAST_MODELS="openai/sim-fast",
            HEADWATER_REASONING_MODELS="openai/sim-reasoning",
            HEADWATER_PRICES=str(PRICES),
        )
        with (home / "up.log").open("wb") as log:
            command = [sys.executable, "-m", "headwater", "up", "--agents", TEAM, "--port", "0"]
            up = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while (node := running_node(data)) is None:
                assert up.poll() is None, (home / "up.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield Desk(data, env, node)
        finally:
            up.send_signal(signal.SIGINT)
            assert up.wait(60) == 0, (home / "up.log").read_text()
    assert running_node(data) is None


def test_a_task_goes_in_and_comes_out_as_a_result_and_a_bill(desk: Desk) -> None:
    (done,) = desk.json("submit", "-t", "acme", "-s", "s1", "--type", "billing", "--wait", "charged twice!")
    assert done["status"] == "completed"
    assert done["call_chain"] == ["user", "supervisor", "triage", "researcher", "writer"]
    assert done["routed_by"] == "rules"
    assert done["decomposed"] is False
    assert set(done["agent_results"]) == {"triage", "researcher", "writer"}
    (task,) = desk.json("task", "-t", "acme", done["task"])
    assert task == done
    events = desk.json("events", "-t", "acme", "--task", done["task"])
    assert events[0]["type"] == "task.submitted"
    assert events[-1]["type"] == "task.completed"
    attempts = [e for e in events if e["type"] == "llm.attempted"]
    assert {e["source"] for e in attempts} == {"triage", "researcher", "writer", "supervisor"}
    assert sum(Decimal(e["body"]["cost_usd"]) for e in attempts) == Decimal(task["cost_usd"])
    (session,) = desk.json("session", "-t", "acme", "s1")
    assert [message["role"] for message in session["messages"]] == ["user", "assistant"]
    assert session["cost_usd"] == task["cost_usd"]
    rows = desk.json("costs", "-t", "acme", "--by", "agent")
    assert {row["agent"] for row in rows} == {"triage", "researcher", "writer", "supervisor"}
    outcomes = desk.json("costs", "-t", "acme", "--by", "outcome", "--days", "1")
    assert sum(Decimal(row["cost_usd"]) for row in outcomes) == Decimal(task["cost_usd"])
    routed = next(event for event in events if event["type"] == "task.routed")
    (tree,) = desk.json("costs", "-t", "acme", "--decision", routed["id"])
    assert (tree["type"], tree["cost_usd"], tree["attempts"]) == (
        "task.routed",
        task["cost_usd"],
        len(attempts),
    )
    (accepted,) = [e["id"] for e in events if e["type"] == "handoff.accepted" and e["chain"].endswith("writer")]
    (last,) = desk.json("costs", "-t", "acme", "--under", accepted)
    writer = sum(Decimal(e["body"]["cost_usd"]) for e in attempts if e["source"] == "writer")
    assert [(row["agent"], Decimal(row["cost_usd"])) for row in last["agents"]] == [("writer", writer)]
    # What is printed for people has the same answer.
    shown = desk.run("task", "-t", "acme", done["task"])
    assert task["cost_usd"] in shown.stdout
    for arguments in (["--by", "tenant"], ["--decision", routed["id"]], ["--by", "task", "--limit", "1"]):
        assert task["cost_usd"] in desk.run("costs", "-t", "acme", *arguments).stdout, arguments
    assert "triage → researcher → writer" in shown.stdout


def test_a_session_is_cleared_and_its_past_stays_in_the_log(desk: Desk) -> None:
    for session in ("chat", "clear"):
        assert desk.run("submit", "-t", "clears", "-s", session, "--wait", "The app shows error E-77").returncode == 0
    (before,) = desk.json("session", "-t", "clears", "chat")
    assert len(before["messages"]) == 2
    assert desk.run("session", "clear", "-t", "clears", "chat", "--reason", "asked to").returncode == 0
    (after,) = desk.json("session", "-t", "clears", "chat")
    assert after["messages"] == []
    assert after["cost_usd"] == before["cost_usd"]
    events = desk.json("events", "-t", "clears", "--session", "chat")
    assert (events[-1]["type"], events[-1]["task"], events[-1]["body"]) == (
        "session.cleared",
        "",
        {"reason": "asked to"},
    )
    assert "session.cleared" in desk.run("events", "-t", "clears").stdout
    # A session may be called "clear", too.
    assert len(desk.json("session", "-t", "clears", "clear")[0]["messages"]) == 2
    assert "has no session" in desk.run("session", "-t", "clears", "clear", "nobody").stderr
    assert desk.run("session", "-t", "clears", "open", "chat").returncode == 2


def test_a_file_twice_at_once_gives_each_task_once(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    lines = [{"tenant": "twice", "session": "s", "text": f"task {n}", "idempotency_key": f"k{n}"} for n in range(40)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    command = [sys.executable, "-m", "headwater", "submit", "-f", str(file), "--json"]
    runs = [
        subprocess.Popen(command, env=desk.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(3)
    ]
    outputs = [run.communicate(timeout=60)[0].splitlines() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    ids = [{json.loads(line)["task"] for line in output} for output in outputs]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 40
    submitted = [e for e in desk.json("events", "-t", "twice") if e["type"] == "task.submitted"]
    assert len(submitted) == 40


def test_bad_lines_are_named_and_the_rest_goes_on(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_bytes(
        b'{"tenant": "bad", "session": "s", "text": "good"}\n'
        b"not json\n"
        b'{"tenant": "no such {tenant}", "session": "s", "text": "x"}\n'
        b'{"tenant": "bad", "session": "s", "text": "x", "colour": "red"}\n'
        b'["a list"]\n\n'
        b'{"tenant": "bad", "session": "s", "text": "\\ud83d"}\n'
        b"\xff\xfe\n"
        b'{"tenant": "bad", "session": "s"}\n'
        b'{"tenant": "bad", "session": "s", "text": 7, "priority": "soon"}\n'
        b'{"tenant": "bad", "session": "s", "text": "also good"}'
    )
    done = desk.run("submit", "-f", str(file))
    assert done.returncode == 1
    for line, words in (
        (2, "not JSON"),
        (3, "tenant id"),
        (4, "colour: is not known here"),
        (5, "not a JSON object"),
        (7, "line 7"),
        (8, "line 8"),
        (9, "text: is missing"),
        (10, "text: must be text"),
    ):
        assert f"line {line}: " in done.stderr
        assert words in done.stderr
    assert "2 submitted, 0 known already, 8 bad lines" in done.stderr
    assert len([e for e in desk.json("events", "-t", "bad") if e["type"] == "task.submitted"]) == 2


def test_an_idempotency_key_for_another_task_is_a_conflict(desk: Desk) -> None:
    assert desk.run("submit", "-t", "acme", "-s", "s2", "-k", "key-1", "one thing").returncode == 0
    again = desk.run("submit", "-t", "acme", "-s", "s2", "-k", "key-1", "one thing")
    assert again.returncode == 0
    assert "used before" in again.stderr
    other = desk.run("submit", "-t", "acme", "-s", "s2", "-k", "key-1", "another thing")
    assert other.returncode == 1
    assert "key-1" in other.stderr


def test_entries_written_by_hand_are_named_and_lose_nothing(desk: Desk) -> None:
    raw = redis.Redis.from_url(desk.node.redis_url)
    log = Keys(16).log("garbage")
    (first,) = desk.json("submit", "-t", "garbage", "-s", "s", "--wait", "before")
    raw.xadd(log, {"hello": "world"})
    raw.xadd(log, {b"\xff\xfe": b"\x00\x01", "type": "task.submitted"})
    fields = {key: str(value) for key, value in desk.json("events", "-t", "garbage", "--limit", "1")[0].items()}
    fields["body"] = json.dumps(desk.json("events", "-t", "garbage", "--limit", "1")[0]["body"])
    raw.xadd(log, fields | {"id": "future", "task": "t-future", "v": "99"})  # type: ignore[arg-type]
    raw.xadd(log, fields | {"id": "unknown", "task": "t-unknown", "type": "task.imagined"})  # type: ignore[arg-type]
    raw.close()
    (second,) = desk.json("submit", "-t", "garbage", "-s", "s", "--wait", "after")
    assert (first["status"], second["status"]) == ("completed", "completed")
    done = desk.run("events", "-t", "garbage", "--json")
    assert done.returncode == 0
    assert done.stderr.count("unreadable") == 4
    for culprit in ("'type' is missing", "version 99", "task.imagined"):
        assert culprit in done.stderr
    assert len([line for line in done.stdout.splitlines() if '"task.completed"' in line]) == 2
    desk.json("costs", "-t", "garbage")  # answers when the read models have caught up
    counted = re.findall(r"^log_entries_unreadable_total\{(.*)\} (\S+)$", desk.get("/metrics")[1], re.MULTILINE)
    assert counted == [
        (f'reason="{reason}",tenant_id="garbage"', "1.0")
        for reason in ("missing_field", "not_text", "unknown_type", "unknown_version")
    ]


def test_errors_say_what_to_do_and_set_the_exit_code(desk: Desk, tmp_path: Path) -> None:
    cases = [
        (2, "tenant id", ["events", "-t", "a:b"]),
        (2, "--session", ["submit", "-t", "acme", "text"]),
        (2, "--data is not JSON", ["submit", "-t", "acme", "-s", "s", "--data", "{", "text"]),
        (
            2,
            "priority: must be 'low', 'normal', 'high' or 'critical'",
            ["submit", "-t", "acme", "-s", "s", "--priority", "soon", "text"],
        ),
        (2, "choose from", ["costs", "--by", "colour"]),
        (2, "needs --tenant", ["costs", "--decision", "0" * 24]),
        (2, "goes without", ["costs", "-t", "acme", "--decision", "0" * 24, "--by", "agent"]),
        (1, "has no event", ["costs", "-t", "acme", "--decision", "0" * 24]),
        (2, "choose from", ["rebuild", "everything"]),
        (2, "position", ["events", "-t", "acme", "--after", "yesterday"]),
        (2, "cannot be read", ["submit", "-f", str(tmp_path / "nothing.jsonl")]),
        (2, "No such command", ["frobnicate"]),
        (1, "has no task", ["task", "-t", "acme", "0" * 24]),
        (1, "has no session", ["session", "-t", "acme", "nobody"]),
        (2, "module:object", ["worker", "--agents", "nonsense"]),
        (2, "No module named", ["worker", "--agents", "nonsense.at_all:team"]),
        (2, "rename yours", ["worker", "--agents", "handlers.team:Team"]),
    ]
    for code, words, arguments in cases:
        done = desk.run(*arguments)
        assert (done.returncode, words in done.stderr) == (code, True), (arguments, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        assert not done.stdout


def test_without_a_running_headwater_the_message_says_how_to_start_one(tmp_path: Path) -> None:
    done = headwater(environment(tmp_path / "empty"), "costs")
    assert done.returncode == 1
    assert "headwater up" in done.stderr


def test_a_second_up_on_the_same_data_is_refused(desk: Desk) -> None:
    done = desk.run("up", "--port", "0")
    assert done.returncode == 1
    assert "is in use by process" in done.stderr


def test_another_tenant_sees_nothing(desk: Desk) -> None:
    (task,) = desk.json("submit", "-t", "alice", "-s", "private", "--wait", "a secret")
    assert desk.run("task", "-t", "bob", task["task"]).returncode == 1
    assert desk.run("session", "-t", "bob", "private").returncode == 1
    assert desk.json("events", "-t", "bob") == []
    assert desk.json("costs", "-t", "bob") == []


def test_rebuilding_changes_no_digest(desk: Desk) -> None:
    desk.json("submit", "-t", "acme", "-s", "s3", "--wait", "one more")
    before = desk.json("digest")
    assert {row["projection"] for row in before} == {"archive", "ledger", "sessions", "metrics", "memories"}
    rebuilt = desk.json("rebuild", "all")
    assert {row["projection"] for row in rebuilt} == {"ledger", "sessions", "metrics", "memories"}
    assert desk.json("digest") == before


def test_the_http_application_answers(desk: Desk) -> None:
    assert desk.get("/healthz")[0] == 200
    assert json.loads(desk.get("/readyz")[1])["checks"] == {"redis": True, "postgres": True}
    metrics = desk.get("/metrics")[1]
    assert "supervisor_tasks_total" in metrics
    for child in ("projector", "worker-1", "worker-2"):
        assert f'process_up{{process="{child}"}} 1.0' in metrics
        assert f'process_restarts_total{{process="{child}"}} 0.0' in metrics
    assert "hw:&lt;shard&gt;:&lt;tenant&gt;:log" in desk.get("/asyncapi")[1]
    assert json.loads(desk.get("/asyncapi.json")[1])["asyncapi"].startswith("3.")
    assert "cdn" not in desk.get("/docs")[1]


def test_a_killed_worker_is_started_again(desk: Desk) -> None:
    def workers() -> dict[int, str]:
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
        return {int(p): args for p, parent, args in rows if int(parent) == desk.node.pid and "headwater worker" in args}

    before = set(workers())
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while len(set(workers()) - {min(before)}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (task,) = desk.json("submit", "-t", "acme", "-s", "s4", "--wait", "still there?")
    assert task["status"] == "completed"
