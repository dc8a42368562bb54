"""`make demo` as a newcomer runs it, and its recorded log decided again (I5)."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import handlers.handoffs
from examples.support_desk.agents import team
from handlers.decider import redecide
from handlers.router import HybridRouter
from handlers.strictness import StrictnessConfig, ValidationStrictness
from handlers.supervisor import Rules
from handlers.team import Team
from headwater.embedded import EmbeddedServers
from headwater.settings import Settings
from schemas.content import blob_of
from schemas.event import AgentEvent
from schemas.handoff import HandoffProposal
from schemas.task import Task
from streams.connection import open_streams
from streams.log import readable

ROOT = Path(__file__).parents[2]
TENANTS = ("lumen-pine", "rotaboard", "velo-harbor")
RULES = Rules(team, StrictnessConfig())


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The demo's output, and its data directory."""
    home = tmp_path_factory.mktemp("demo")
    for part in (home, *list(home.parents)[:2]):
        part.chmod(0o711)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-m", "examples.support_desk.demo"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, home / ".headwater-demo"


@pytest.fixture(scope="module")
def recorded(played: tuple[str, Path]) -> tuple[list[AgentEvent], dict[str, bytes]]:
    """Every event of the demo, and the large contents that its tasks refer to."""
    with EmbeddedServers(played[1], postgres=False) as endpoints:
        return asyncio.run(_read(endpoints.redis_url))


async def _read(redis_url: str) -> tuple[list[AgentEvent], dict[str, bytes]]:
    events: list[AgentEvent] = []
    blobs: dict[str, bytes] = {}
    streams = await open_streams(redis_url, shards=Settings().shards)
    for tenant in TENANTS:
        found, unreadable = readable(tenant, await streams.log.read(tenant, limit=100_000))
        assert not unreadable
        events += found
        hashes = [sha for e in found if e.type == "task.submitted" and (sha := blob_of(e.body.text))]  # type: ignore[attr-defined]
        blobs |= await streams.log.blobs(tenant, hashes)
    await streams.close()
    return events, blobs


def test_the_demo_shows_a_story_costs_and_an_equal_bill(played: tuple[str, Path]) -> None:
    output = played[0]
    assert "The story of one task" in output
    assert "The task was completed" in output
    assert re.search(r"velo-harbor +│ writer", output)
    found = re.search(r"ledger \$([0-9.]+) for (\d+) answers, bill \$([0-9.]+) for (\d+) requests: equal", output)
    assert found is not None, output[-2000:]
    assert found[1] == found[3]
    assert found[2] == found[4]
    assert int(found[2]) > 700


def test_deciding_the_demo_again_gives_the_recorded_decisions(
    recorded: tuple[list[AgentEvent], dict[str, bytes]],
) -> None:
    events, blobs = recorded
    assert sum(event.body.decision for event in events) > 1000
    # One task has 20,000 characters, so its rules can only be decided from a blob.
    assert blobs
    assert list(redecide(events, RULES, blobs)) == []


def test_a_changed_rule_is_found(recorded: tuple[list[AgentEvent], dict[str, bytes]]) -> None:
    def complaints_skip_triage(task: Task) -> str | None:
        return "researcher" if task.type == "complaint" else None

    changed = Team(
        team.registry, HybridRouter([complaints_skip_triage, *team.router.rules]), decomposes=team.decomposes
    )
    found = list(redecide(recorded[0], Rules(changed, StrictnessConfig()), recorded[1]))
    assert found
    assert {divergence.cause.body.task_type for divergence in found} == {"complaint"}  # type: ignore[attr-defined]


def test_a_changed_strictness_is_found(recorded: tuple[list[AgentEvent], dict[str, bytes]]) -> None:
    lenient = StrictnessConfig({"research_result": ValidationStrictness.LENIENT})
    found = list(redecide(recorded[0], Rules(team, lenient), recorded[1]))
    assert found
    assert {divergence.cause.type for divergence in found} == {"handoff.proposed", "supervisor.answered"}


def test_a_fault_in_the_decider_is_found(
    recorded: tuple[list[AgentEvent], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets_to_check(proposal: HandoffProposal) -> list[str]:
        return ["planted"] if proposal.confidence < 0.5 else []

    monkeypatch.setattr(handlers.handoffs, "structural_problems", forgets_to_check)
    found = list(redecide(recorded[0], RULES, recorded[1]))
    assert found
    assert all(divergence.now is not None and divergence.recorded is not None for divergence in found)
