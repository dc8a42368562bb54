"""`headwater fork --cohort`: many tasks run again, with a progress bar and a table of how they compare."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headwater.cli.common import err, out, print_json
from headwater.cli.tables import print_table, table_of
from headwater.client import Headwater
from headwater.replay.cohort import Cohort, run
from headwater.replay.fork import ForkOptions
from headwater.replay.lanes import in_lane
from schemas.errors import HeadwaterError, NotFoundError
from schemas.money import plain
from schemas.plurals import counted

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many tasks of a cohort, which, and how long to wait for their forks."""

    sample: int
    seed: int
    timeout_s: float


async def fork_cohort(
    hw: Headwater, tenant: str, cohort: Cohort, options: ForkOptions, how: Sampling, *, json_: bool
) -> bool:
    """Run it and print what came of it. Did every fork complete?"""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:
        bar = bars.add_task("running", total=None)

        def show(ended: int, of: int, cost_usd: Decimal) -> None:
            bars.update(bar, completed=ended, total=of, description=f"${plain(cost_usd)} so far")

        try:
            # The same lane for the same command: what an interrupted one left there is gone on with.
            async with in_lane(options, hw, cohort.lane(options)) as given, asyncio.timeout(how.timeout_s):
                found = await run(hw, tenant, cohort, given, sample=how.sample, seed=how.seed, progress=show)
        except TimeoutError:
            raise HeadwaterError(
                f"not all forks ended within {how.timeout_s:g} s: the same command goes on with them"
            ) from None
    if not found["tasks"] and not found["problems"]:
        raise NotFoundError(f"no task of {tenant!r} that has ended is in the cohort {cohort.text!r}")
    print_json(found) if json_ else _show(found)
    return bool(found["fork"]["completed"] == found["tasks"] and not found["problems"])


def _show(found: Mapping[str, Any]) -> None:
    table = table_of("", "origins", "forks", numbers=("origins", "forks"))
    sides = (found["origin"], found["fork"])
    for name in ("completed", "failed", "cancelled"):
        table.add_row(name, *(f"{side[name]:,}" for side in sides))
    table.add_row("cost", *(f"${side['total_usd']}" for side in sides))
    for which in ("p50", "p90", "max"):
        table.add_row(f"cost {which}", *(f"${side['cost_usd'].get(which, '0')}" for side in sides))
    for which in ("p50", "p90", "max"):
        table.add_row(f"seconds {which}", *(f"{side['duration_ms'].get(which, 0) / 1000:.2f}" for side in sides))
    print_table(table)
    made = counted(found["known_before"], "fork")
    out.print(f"{found['different']} of {counted(found['tasks'], 'result')} differ; {made} had been made before")
    different = [pair for pair in found["pairs"] if pair["differs_at"]]
    for pair in different[:SHOWN]:
        places = escape(", ".join(place or "all of it" for place in pair["differs_at"][:5]))
        out.print(f"  {pair['origin']} → {pair['fork']}  {' → '.join(pair['status'])}  {places}", soft_wrap=True)
    if len(different) > SHOWN:
        out.print(f"  and {len(different) - SHOWN} more; --json has all")
    for problem in found["problems"]:
        err.print(f"[red]not forked:[/red] {problem['task']}: {escape(problem['error'])}", soft_wrap=True)
