"""`headwater export` and `headwater replay`, on a file with no server at all and on a running system."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.research_team.agents import team
from headwater.embedded import Endpoints
from headwater.replay.recording import FileRecording, export
from headwater.testing import AnswerRule, TaskRun, running
from projections.projection import parse_position

STEPS = [{"description": "redis?"}, {"description": "Sum up redis.", "depends_on": [0]}]
ANSWERS: list[AnswerRule | dict[str, Any]] = [
    {"system": "check a handoff", "user": "Sum up|Shorten|only what the facts say", "json": {"grounded": True}},
    {"system": "check a handoff", "json": {"grounded": False, "reasons": ["nothing says so"]}},
    {"system": "Split the task", "json": {"subtasks": STEPS, "reasoning": "two jobs"}},
    {"system": "Put the results", "json": {"answer": "All is said.", "sources": [0, 1]}},
    {"system": "Answer from the facts", "answer": "Written in order."},
    {"system": "Answer briefly", "answer": "Brief."},
    {"system": "Say in a word", "answer": "streams"},
]


@pytest.fixture(scope="module")
def recorded(headwater_servers: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskRun]:
    """An export of two tenants' tasks, and the decomposed one with a rejected handoff in it."""
    import asyncio

    async def play() -> tuple[bytes, TaskRun]:
        async with running(team, headwater_servers, answers=ANSWERS) as hw:
            await hw.run_task("Shorten this?", tenant="globex")
            run = await hw.run_task("Please:\n1. look into redis\n2. sum it up", tenant="acme", session="s1")
            recording = hw.hw.history
            lines = [line async for line in export(recording, ["acme", "globex"])]
            return b"".join(lines), run

    data, run = asyncio.run(play())
    path = tmp_path_factory.mktemp("replay") / "log.jsonl"
    path.write_bytes(data)
    return path, run


def headwater(*arguments: str, stdin: str = "", status: int = 0) -> str:
    # No server can be found: neither URLs nor a data directory that something runs on.
    env = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "DATABASE_URL")}
    done = subprocess.run(
        [sys.executable, "-m", "headwater", *arguments],
        env=env | {"HEADWATER_DATA": "/nonexistent", "COLUMNS": "200"},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def replay(recorded: tuple[Path, TaskRun], *arguments: str, **more: Any) -> str:
    path, run = recorded
    return headwater("replay", str(path), "--tenant", "acme", "--task", run.outcome.task_id, *arguments, **more)


def nodes(story: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for node in story:
        yield node
        yield from nodes(node["children"])


def test_the_story_is_a_tree_whose_branches_add_up(recorded: tuple[Path, TaskRun]) -> None:
    story = json.loads(replay(recorded, "--json"))
    _, run = recorded
    assert story["status"] == run.outcome.status
    assert float(story["total_usd"]) == pytest.approx(float(run.cost_usd))
    everything = list(nodes(story["story"]))
    assert {node["event"] for node in everything} == {event.id for event in run.events}
    assert story["waste"]["rejected_handoff"] > "0"
    rejected = next(node for node in everything if node["type"] == "handoff.rejected")
    assert "nothing says so" in rejected["said"]


def test_the_story_can_be_read(recorded: tuple[Path, TaskRun]) -> None:
    told = replay(recorded)
    for said in ("The supervisor split it into 2 steps", "was REJECTED and went back to researcher", "came to nothing"):
        assert said in told


def test_a_session_is_all_its_tasks(recorded: tuple[Path, TaskRun]) -> None:
    path, run = recorded
    lines = headwater("replay", str(path), "--tenant", "acme", "--session", "s1", "--json").splitlines()
    assert [json.loads(line)["task"] for line in lines] == [run.outcome.task_id]


def test_a_moment_shows_how_things_stood(recorded: tuple[Path, TaskRun]) -> None:
    _, run = recorded
    routed = next(event for event in run.events if event.type == "task.routed")
    found = json.loads(replay(recorded, "--at", routed.id, "--json"))
    assert (found["status"], found["at"]) == ("running", routed.position)
    assert [call["agent_id"] for call in found["state"]["calls"].values()] == ["researcher"]
    assert [message["role"] for message in found["messages"]] == ["user"]
    at_end = json.loads(replay(recorded, "--at", "2100-01-01T00:00:00", "--json"))
    assert at_end["status"] == run.outcome.status
    assert at_end["state"] is None
    assert float(at_end["ledger"]["total_usd"]) == pytest.approx(float(run.cost_usd))
    assert found["ledger"]["attempts"] < at_end["ledger"]["attempts"]
    before = json.loads(replay(recorded, "--at", "1-0", "--json"))
    assert before["status"] == "not submitted"


def test_blame_names_the_event_the_agent_and_the_attempt(recorded: tuple[Path, TaskRun]) -> None:
    path, _ = recorded
    line = next(json.loads(line) for line in path.read_text().splitlines() if '"globex"' in line)
    found = json.loads(headwater("replay", str(path), "-t", "globex", "-k", line["task"], "--blame", "/text", "--json"))
    assert found["value"] in ("Written in order.", "Brief.")
    assert (found["origin"]["type"], found["origin"]["attempt"]) == ("llm.attempted", 1)
    assert [hop["type"] for hop in found["path"]][-1] == "task.completed"
    text = headwater("replay", str(path), "-t", "globex", "-k", line["task"], "--blame", "/nothing", status=2)
    assert "nothing at '/nothing'" in text
    assert "text" in text


def test_stepping_goes_forward_back_and_to_a_position(recorded: tuple[Path, TaskRun]) -> None:
    _, run = recorded
    last = run.events[-1]
    walked = replay(recorded, "--step", stdin=f"n\nd\np\np\ng {last.position}\ng nonsense\nwhat\nq\n")
    count = len(run.events)
    shown = [line.split()[0] for line in walked.splitlines() if line.startswith(("1/", "2/", f"{count}/"))]
    assert shown[:4] == [f"1/{count}", f"2/{count}", f"1/{count}", f"{count}/{count}"]
    assert "supervisor" in walked.split("after")[1].split("[")[0] or "kind" in walked


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--tenant", "acme"], "name one of --task and --session"),
        (["--task", "x"], "name the tenant with --tenant; there are: acme, globex"),
        (["--tenant", "acme", "--task", "nope"], "no task 'nope'"),
        (["--tenant", "acme", "--session", "s1", "--step"], "--step looks at one task: name it with --task"),
    ],
)
def test_bad_arguments_are_named(recorded: tuple[Path, TaskRun], arguments: list[str], why: str) -> None:
    status = 1 if "nope" in arguments else 2
    assert why in " ".join(headwater("replay", str(recorded[0]), *arguments, status=status).split())


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    for content in ("", "{}\n", "not json\n"):
        (tmp_path / "x.jsonl").write_text(content)
        assert "x.jsonl" in headwater("replay", str(tmp_path / "x.jsonl"), "--task", "t", status=2)


async def test_a_file_gives_what_the_log_gave(recorded: tuple[Path, TaskRun]) -> None:
    path, run = recorded
    recording = FileRecording(path)
    assert await recording.tenants() == ["acme", "globex"]
    entries = [entry async for entry in recording.entries("acme")]
    assert [fields["id"] for _, fields in entries] == [event.id for event in run.events]
    positions = [parse_position(position) for position, _ in entries]
    assert positions == sorted(positions)
    assert all(
        fields["id"] not in {e.id for e in run.events} for _, fields in [e async for e in recording.entries("globex")]
    )
