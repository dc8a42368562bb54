"""The benchmarks still run: a quick run of all of them, on their own servers."""

import asyncio
import json
import sys
from pathlib import Path

from bench.__main__ import DEFAULT
from bench.figures import Figure, percentile

ROOT = Path(__file__).parent.parent.parent
EXPECTED = {
    "tasks, 1 in flight",
    "tasks, 16 in flight",
    "tasks, 128 in flight",
    "bare redis-py loop, 128 in flight",
    "share of the yardstick",
    "submit to result, idle, p50",
    "submit to result, idle, p99",
    "appends, 128 at once",
    "Redis memory per task",
    "projected events",
    "rebuilt events",
}


async def test_quick_run_measures_everything() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "--quick"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode == 0, err.decode()
    report = json.loads(out)
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert set(figures) >= EXPECTED
    assert all(figures[name]["value"] > 0 for name in EXPECTED)
    assert any("half load" in name for name in figures)
    assert any("slower with" in name for name in figures)
    # The table goes to stderr, and says of every aim whether it was reached.
    assert "tasks, 128 in flight" in err.decode()


async def test_an_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "nothing"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    said, _, names = err.decode().partition("; there are: ")
    assert said.endswith("there is no benchmark 'nothing'")
    assert set(names.strip().split(", ")) >= {*DEFAULT, "profile"}


async def test_profile_says_where_the_workers_time_goes() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "profile", "--quick", "--json"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, err.decode()
    shares = {figure["name"]: figure["value"] for figure in json.loads(out)["figures"]}
    assert abs(sum(shares.values()) - 100) < 0.1
    assert {f"worker's time in {part}" for part in ("asyncio", "pydantic", "FastStream", "redis-py")} <= set(shares)


def test_figures_are_held_against_their_aims_from_the_right_side() -> None:
    assert Figure("a", 10, "x", aim=9).met is True
    assert Figure("a", 10, "x", aim=11).met is False
    assert Figure("a", 10, "x", aim=9, better="lower").met is False
    assert Figure("a", 10, "x", aim=10, better="lower").met is True
    assert Figure("a", 10, "x").met is None


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7
