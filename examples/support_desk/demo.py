"""`make demo`: plays the support desk on embedded servers and a provider simulator, and checks the bill.

It does what you would do by hand: start a simulator, `headwater up` with the team, `headwater submit -f tasks.jsonl`,
and then read the events and costs.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import orjson
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headwater.cli.showing import SUMMARY_CHARS, as_text
from headwater.cli.telling import show_story
from headwater.client import Headwater
from headwater.embedded.process import die_with_parent
from headwater.node import Node, find_endpoints, running_node
from headwater.replay.story import story_of
from headwater.settings import Settings
from headwater.simulator import FaultRule, SimulatorConfig, SimulatorProcess, load_answers, load_prices
from projections import costs
from schemas.errors import HeadwaterError
from schemas.event import AgentEvent
from schemas.money import plain
from schemas.task import NewTask, TaskOutcome
from streams.log import readable

HERE = Path(__file__).parent
DATA = Path(".headwater-demo")
START_S = 60
TASKS_S = 300
AT_ONCE = 32
console = Console()


def main() -> int:
    """Play the example. Returns 0 if every task ended well and the ledger equals the bill."""
    shutil.rmtree(DATA, ignore_errors=True)
    config = SimulatorConfig(
        seed=7,
        answers=load_answers(HERE / "answers.json"),
        prices=load_prices(HERE / "prices.json"),
        # A provider has bad moments: the refused attempts show up in the ledger, at no cost.
        faults=[FaultRule(latency_ms=20, jitter_ms=60, rate_429=0.02, rate_500=0.01, retry_after_s=0)],
    )
    started = time.monotonic()
    with SimulatorProcess(config) as simulator, headwater_up(simulator.url) as node:
        console.print(f"[bold]Headwater is up[/bold] after {time.monotonic() - started:.1f} s: {node.url}/docs")
        return asyncio.run(play(simulator))


@contextlib.contextmanager
def headwater_up(simulator_url: str) -> Iterator[Node]:
    """`headwater up` as a process of its own, as a user starts it."""
    environment = os.environ | {
        "HEADWATER_DATA": str(DATA),
        "HEADWATER_LLM_BASE_URL": f"{simulator_url}/v1",
        "HEADWATER_LLM_API_KEY": "simulator",
        "HEADWATER_FAST_MODELS": "openai/sim-fast",
        "HEADWATER_REASONING_MODELS": "openai/sim-reasoning",
        "HEADWATER_PRICES": str(HERE / "prices.json"),
        "HEADWATER_LLM_RETRY_MS": "50",
        "HEADWATER_LOG_LEVEL": "warning",
    }
    for name in ("REDIS_URL", "DATABASE_URL"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "headwater", "up", "--agents", "examples.support_desk.agents:team", "--port", "0"]
    DATA.mkdir()
    with (DATA / "up.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509  # one system call, no allocation
        )
    try:
        yield _wait_until_up(child)
    finally:
        child.send_signal(signal.SIGINT)
        child.wait()


def _wait_until_up(child: "subprocess.Popen[bytes]") -> Node:
    deadline = time.monotonic() + START_S
    while (node := running_node(DATA)) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            raise HeadwaterError(f"'headwater up' did not start:\n{(DATA / 'up.log').read_text()}")
        time.sleep(0.05)
    return node


async def play(simulator: SimulatorProcess) -> int:
    """Submit the tasks, wait for them, and show what happened."""
    settings = Settings(data=DATA, redis_url=None, database_url=None)
    lines = (HERE / "tasks.jsonl").read_text().splitlines()
    tasks = [NewTask.model_validate_json(line) for line in lines]
    async with Headwater(settings, find_endpoints(settings)) as hw:
        outcomes = await run_all(hw, tasks)
        for tenant in sorted({task.tenant for task in tasks}):
            if not await hw.caught_up(tenant, timeout_s=START_S):
                raise HeadwaterError(f"the projector is behind on {tenant}: see {DATA}/logs/projector.log")
        await tell_story(hw, outcomes)
        await show_costs(hw, sorted({task.tenant for task in tasks}))
        return await compare(hw, simulator, outcomes)


async def run_all(hw: Headwater, tasks: list[NewTask]) -> dict[str, TaskOutcome]:
    """Submit every line, duplicates too, and wait for the outcome of every task."""
    outcomes: dict[str, TaskOutcome] = {}
    duplicates = 0
    places = asyncio.Semaphore(AT_ONCE)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("tasks", total=len(tasks))

        async def one(task: NewTask) -> None:
            nonlocal duplicates
            async with places:
                accepted = await hw.submit(task)
                duplicates += accepted.duplicate
                outcomes[accepted.task_id] = await hw.outcomes.wait(accepted)
                progress.advance(bar)

        async with asyncio.timeout(TASKS_S):
            await asyncio.gather(*(one(task) for task in tasks))
    done = sum(outcome.status == "completed" for outcome in outcomes.values())
    console.print(f"{len(tasks)} lines, {duplicates} of them repeats: {len(outcomes)} tasks, {done} completed\n")
    failed = [outcome for outcome in outcomes.values() if outcome.status != "completed"]
    for outcome in failed[:5]:
        console.print(f"[red]failed[/red] {outcome.tenant_id} {outcome.task_id}: {escape(outcome.error or '')}")
    if not done:
        raise HeadwaterError(f"no task was completed: see {DATA}/logs")
    return outcomes


async def events_of(hw: Headwater, outcome: TaskOutcome) -> AsyncIterator[AgentEvent]:
    """A task's events, oldest first."""
    after = "0-0"
    while entries := await hw.bus(outcome.tenant_id).read(after=after):
        for event in readable(outcome.tenant_id, entries)[0]:
            if event.task_id == outcome.task_id:
                yield event
        after = entries[-1][0]


async def tell_story(hw: Headwater, outcomes: dict[str, TaskOutcome]) -> None:
    """One task, as a tree by causation: who decided what, why, and at what cost."""
    chosen = min(
        (o for o in outcomes.values() if o.status == "completed"),
        # The one whose classification was no JSON is the most instructive.
        key=lambda o: (orjson.dumps(o.agent_results.get("triage")).find(b'"unknown"') < 0, o.task_id),
    )
    console.print("[bold]The story of one task[/bold], as 'headwater replay' tells it:")
    story = story_of([event async for event in events_of(hw, chosen)])
    if story is not None:
        show_story(story)
    found = await hw.task(chosen.tenant_id, chosen.task_id)
    if found is not None:
        reply = as_text(chosen.result["reply"])[:SUMMARY_CHARS]
        console.print(f"  chain {' → '.join(found['call_chain'])}, cost ${found['cost_usd']}, reply: {escape(reply)}\n")


async def show_costs(hw: Headwater, tenants: list[str]) -> None:
    """Costs by tenant and agent."""
    table = Table("tenant", "agent", "cost (USD)", "tokens", "attempts", "failed", title="Costs", title_justify="left")
    for tenant in tenants:
        for row in await costs.costs(hw.pool, by="agent", tenant_id=tenant):
            counts = (f"{row.tokens:,}", f"{row.attempts:,}", f"{row.failed:,}")
            table.add_row(tenant, row.key, plain(row.cost_usd), *counts)
        table.add_section()
    console.print(table)


async def compare(hw: Headwater, simulator: SimulatorProcess, outcomes: dict[str, TaskOutcome]) -> int:
    """The ledger against the bill, to the last digit."""
    ledger = await costs.ledger_totals(hw.pool)
    bill = simulator.bill()
    billed = Decimal(bill["total_usd"])
    same = ledger.cost_usd == billed and ledger.priced == bill["requests"]
    ended = all(outcome.status == "completed" for outcome in outcomes.values())
    verdict = "[green]equal to the last digit[/green]" if same else "[red]NOT EQUAL[/red]"
    console.print(
        f"\nledger ${plain(ledger.cost_usd)} for {ledger.priced} answers, bill ${plain(billed)} for "
        f"{bill['requests']} requests: {verdict}"
    )
    if ledger.unknown or ledger.unpriced:
        console.print(f"{ledger.unknown} attempts of unknown outcome, {ledger.unpriced} without a price")
    return 0 if same and ended else 1


if __name__ == "__main__":
    sys.exit(main())
