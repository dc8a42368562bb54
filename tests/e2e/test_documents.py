"""The documents are true: generated pages are current, README's commands run, links lead somewhere, Python compiles."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.research_team.agents import team as research_team
from headwater.docs import pages
from headwater.testing import check_recorded
from tests.processes import HeadwaterProcess

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_generated_pages_are_current() -> None:
    stale = [name for name, text in pages().items() if (ROOT / "docs" / name).read_text() != text]
    assert not stale, "run 'make docs'"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_documents_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


def test_makes_targets_are_those_the_readme_names() -> None:
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lint", "bench", "docs"):
        assert f"make {target}" in help_text


def test_the_readmes_commands_run(tmp_path: Path) -> None:
    """All of them, in their order, as a newcomer would type them: the two servers in the background."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")} | {
        "HEADWATER_DATA": str(tmp_path / "d")
    }
    env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HEADWATER_LOG_LEVEL": "warning"}
    for name in ("REDIS_URL", "DATABASE_URL"):
        env.pop(name, None)
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("headwater ")]
    background = [c for c in commands if c.split()[1] in ("simulator", "up")]
    assert [c.split()[1] for c in background] == ["simulator", "up"]
    with HeadwaterProcess(["simulator", "--port", "0"], env, tmp_path / "simulator.log") as simulator:
        _wait_for(simulator, r"http://127\.0\.0\.1:\d+")
        url = re.search(r"http://127\.0\.0\.1:\d+", simulator.output())
        assert url is not None
        for line in lines:
            if line.startswith("export "):
                env |= dict(pair.split("=", 1) for pair in line.split()[1:])
        env["HEADWATER_LLM_BASE_URL"] = f"{url[0]}/v1"
        with HeadwaterProcess([*background[1].split()[1:], "--port", "0"], env, tmp_path / "up.log") as up:
            _wait_for(up, "Headwater is up")
            task = ""
            for command in (c for c in commands if c not in background):
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=ROOT,
                    env=env | {"TASK": task},
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=90,
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                found = re.search(r"completed +([0-9a-f]{24})", done.stdout)
                task = found[1] if found else task
            assert task


def _wait_for(process: HeadwaterProcess, pattern: str) -> None:
    import time

    deadline = time.monotonic() + 90
    while not re.search(pattern, process.output()):
        assert process.is_running(), process.output()
        assert time.monotonic() < deadline, process.output()
        time.sleep(0.05)


def test_the_recorded_example_still_verifies() -> None:
    check_recorded(ROOT / "examples" / "research_team" / "recorded.headwater.jsonl", research_team)
