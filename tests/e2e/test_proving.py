"""`replay --verify`, `fixture` and `reprice` on a recorded log, and recorded logs that pytest picks up."""

import asyncio
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from examples.research_team.agents import team
from headwater.embedded import Endpoints
from headwater.replay.recording import export
from headwater.testing import AnswerRule, RecordedLogError, TaskRun, check_recorded, running
from tests.e2e.test_replay_cli import ANSWERS, headwater

TEAM = "examples.research_team.agents:team"
CUSTOMER = "Why did redis bill Maria Lopez (maria.lopez@corp.example) 4711 dollars, asks Maria, order 4711?"


@pytest.fixture(scope="module")
def recorded(headwater_servers: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TaskRun]]:
    """Tasks of two tenants: split, handed over, rejected, routed by a model."""
    answers: list[AnswerRule | dict[str, Any]] = [
        {"system": "check a handoff", "user": "Lopez", "json": {"grounded": True}},
        *ANSWERS,
        {"system": "Choose the one agent", "json": {"agent_id": "editor", "reasoning": "it shortens"}},
    ]

    async def play() -> tuple[bytes, list[TaskRun]]:
        async with running(team, headwater_servers, answers=answers) as hw:
            runs = [
                await hw.run_task("Please:\n1. look into redis\n2. sum it up", tenant="acme"),
                await hw.run_task(CUSTOMER, tenant="acme", session="Maria Lopez"),
                await hw.run_task("Shorten this.", tenant="globex"),
            ]
            recording = hw.hw.history
            lines = [line async for line in export(recording, ["acme", "globex"])]
            return b"".join(lines), runs

    data, runs = asyncio.run(play())
    path = tmp_path_factory.mktemp("proving") / "log.jsonl"
    path.write_bytes(data)
    return path, runs


def test_a_recorded_log_verifies(recorded: tuple[Path, list[TaskRun]]) -> None:
    path, runs = recorded
    report = json.loads(headwater("replay", "--verify", "--agents", TEAM, "--json", str(path), str(path)))
    decisions = sum(event.body.decision for run in runs for event in run.events)
    assert (report["tasks"], report["decisions"], report["diverged"]) == (6, 2 * decisions, 0)
    assert decisions >= 15
    one = json.loads(headwater("replay", "--verify", "--agents", TEAM, "--json", "-t", "globex", str(path)))
    assert one["tasks"] == 1


def test_another_rule_is_a_difference_with_its_pointer(recorded: tuple[Path, list[TaskRun]]) -> None:
    path, runs = recorded
    other = "tests.e2e.other_team:team"
    done = subprocess.run(
        [sys.executable, "-m", "headwater", "replay", "--verify", "--agents", other, "--json", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HEADWATER_DATA": "/nonexistent"},
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    # The other team sends questions to the editor at once.
    found = {d["task"]: d for d in report["differences"]}[runs[1].outcome.task_id]
    assert (found["pointer"], found["recorded"], found["now"]) == ("/call_chain/2", "researcher", "editor")
    routed = next(event for event in runs[1].events if event.type == "task.routed")
    assert (found["event"], found["position"]) == (routed.id, routed.position)
    assert report["diverged"] == 2


def test_verify_needs_a_team(recorded: tuple[Path, list[TaskRun]]) -> None:
    assert "--agents module:object" in headwater("replay", "--verify", str(recorded[0]), status=2)


def test_a_fixture_is_sanitised_and_still_proves_the_decisions(
    recorded: tuple[Path, list[TaskRun]], tmp_path: Path
) -> None:
    path, runs = recorded
    target = tmp_path / "refund.headwater.jsonl"
    task_id = runs[1].outcome.task_id
    headwater("fixture", str(path), "-t", "acme", "--task", task_id, "--agents", TEAM, "-o", str(target))
    text = target.read_text()
    # As words of their own: ids and times are random digits, and may have any of them inside.
    for secret in ("Lopez", "Maria", "corp.example", "4711", "acme"):
        assert re.search(rf"(?<![0-9a-zA-Z]){re.escape(secret)}(?![0-9a-zA-Z])", text) is None
    lines = [json.loads(line) for line in text.splitlines()]
    submitted = json.loads(next(line["body"] for line in lines if line.get("type") == "task.submitted"))["text"]
    name = submitted.split("bill ")[1].split(" ")[0]
    # The same stand-in for the same value, and of the same shape.
    assert submitted.count(name) == CUSTOMER.count("Maria")
    assert (len(name), name[0].isupper(), name[1:].islower()) == (5, True, True)
    assert "person1@example.com" in submitted
    number = submitted.split("order ")[1].rstrip("?")
    assert (len(number), number[0], submitted.count(number)) == (4, "4", 2)
    check_recorded(target, team)
    recorded_types = [event.type for event in runs[1].events]
    assert [line["type"] for line in lines if "type" in line] == recorded_types


def test_pytest_picks_a_fixture_up_and_fails_with_the_difference(
    recorded: tuple[Path, list[TaskRun]], tmp_path: Path
) -> None:
    path, runs = recorded
    target = tmp_path / "refund.headwater.jsonl"
    headwater(
        "fixture", str(path), "-t", "acme", "--task", runs[1].outcome.task_id, "--agents", TEAM, "-o", str(target)
    )

    def pytest_with(spec: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "pytest.ini").write_text(f"[pytest]\nheadwater_team = {spec}\n")
        command = [sys.executable, "-m", "pytest", "-p", "headwater.testing.plugin", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "--rootdir", str(tmp_path), "-c", str(tmp_path / "pytest.ini"), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )

    good = pytest_with(TEAM)
    assert "1 passed" in good.stdout, good.stdout
    bad = pytest_with("tests.e2e.other_team:team")
    assert "1 failed" in bad.stdout
    assert "/call_chain/2: recorded 'researcher', now 'editor'" in bad.stdout


def test_a_log_that_does_not_verify_makes_no_fixture(recorded: tuple[Path, list[TaskRun]], tmp_path: Path) -> None:
    path, runs = recorded
    other = ["--agents", "tests.e2e.other_team:team"]
    said = headwater("fixture", str(path), "-t", "acme", "--task", runs[1].outcome.task_id, *other, status=1)
    assert "does not verify with this team" in said


def test_a_file_without_tasks_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.headwater.jsonl").write_text('{"headwater":1}\n')
    with pytest.raises(RecordedLogError, match="no task"):
        check_recorded(tmp_path / "x.headwater.jsonl", team)


def test_repricing_is_exact_for_prices_and_leaves_quality_open(
    recorded: tuple[Path, list[TaskRun]], tmp_path: Path
) -> None:
    path, runs = recorded
    rates = {"input_cost_per_token": "0.001", "output_cost_per_token": "0.002"}
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"sim-fast": rates, "sim-reasoning": rates, "better": rates}))
    found = json.loads(headwater("reprice", str(path), "--prices", str(prices), "--json"))
    attempts = [event.body for run in runs for event in run.events if event.type == "llm.attempted"]
    expected = sum(
        (
            Decimal("0.001") * (b.tokens.input_uncached + b.tokens.cache_read + b.tokens.cache_write)  # type: ignore[attr-defined]
            + Decimal("0.002") * (b.tokens.output_text + b.tokens.output_reasoning)  # type: ignore[attr-defined]
            for b in attempts
        ),
        Decimal(0),
    )
    assert Decimal(found["repriced_usd"]) == expected
    assert Decimal(found["recorded_usd"]) == sum((run.cost_usd for run in runs), Decimal(0))
    assert "unknown" in found["quality"]
    other = json.loads(
        headwater("reprice", str(path), "--prices", str(prices), "--model", "sim-fast=nowhere", "--json")
    )
    assert sum(line["unpriced"] for line in other["lines"]) == sum(
        event.body.requested_model == "openai/sim-fast"  # type: ignore[attr-defined]
        for run in runs
        for event in run.events
        if event.type == "llm.attempted"
    )
