"""`headwater fork` and `headwater compare`: a task run again, and two tasks side by side."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from headwater.cli.cohorts import fork_cohort
from headwater.cli.common import DataOption, JsonOption, TenantOption, connected, err, out, print_json, read_settings
from headwater.cli.reading import print_event
from headwater.cli.showing import as_text
from headwater.client import Headwater
from headwater.lane import OtherTeam
from headwater.replay.cohort import Cohort
from headwater.replay.compare import compare as compare_tasks
from headwater.replay.compare import side
from headwater.replay.fork import ForkOptions, fork_task
from headwater.replay.lanes import cancelling_left_over, in_lane
from projections import queries
from projections.projection import format_position
from schemas.errors import HeadwaterError, InvalidInputError
from schemas.event import decode
from schemas.ids import check_tenant_id, new_id
from schemas.money import plain
from schemas.task import Accepted

LOOK_S = 0.5
"""How often the cost so far is looked at."""


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("fork")(fork)
    app.command("compare")(compare)


def fork(
    tenant: TenantOption,
    task: Annotated[str | None, typer.Option("--task", "-k", help="The task to run again.")] = None,
    cohort: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Many tasks instead: 'type=refund since=7d status=completed session=S', each word or none.",
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, max=10_000, help="With --cohort: so many tasks at most.")] = 50,
    seed: Annotated[int, typer.Option(help="With --cohort: another number is another sample.")] = 0,
    at: Annotated[
        str | None,
        typer.Option(metavar="EVENT", help="Decide this fact anew and go on from there. [default: from the start]"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="TIER=NAME", help="Another model for a tier; again for its fallbacks."),
    ] = None,
    payload: Annotated[
        str | None, typer.Option("--data", metavar="JSON", help="A JSON object in the place of the task's data.")
    ] = None,
    agents: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:OBJECT", help="Another team than the running one; it runs in this process, while it waits."
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="So many forks at once.")] = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="USD", help="What each fork may cost. It may go over by the requests that are in flight then."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print the fork's events as they come.")] = False,
    timeout: Annotated[float, typer.Option(help="Wait so many seconds at most; the forks go on.")] = 600.0,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Data directory. [default: .headwater]")] = None,
    json_: JsonOption = False,
) -> None:
    """Run a task again, live, by the workers that run now or by --agents: as a new task, a fork, with its own costs.

    What was recorded before the point is taken over and not paid again; after it agents, models and tools work for
    real. A fork adds no messages to its session. Exits with 1 unless every fork completes. With --cohort, an
    interrupted command goes on where it stopped when it is given again.
    """
    check_tenant_id(tenant)
    if (task is None) == (cohort is None):
        raise InvalidInputError("name one of --task and --cohort")
    if follow and repeat > 1:
        raise InvalidInputError("--follow watches one fork: leave out --repeat")
    other = None if agents is None else OtherTeam.load(agents)
    options = ForkOptions(at=at, models=models_of(model or []), data=_data(payload), budget_usd=budget, team=other)
    settings = read_settings(data=data_dir)

    if cohort is not None:
        if at is not None or payload is not None or repeat > 1 or follow:
            raise InvalidInputError("--at, --data, --repeat and --follow are for one task: leave them out")
        chosen = Cohort.parse(cohort)

        async def work_on_all(hw: Headwater) -> bool:
            # The same lane for the same command: what an interrupted one left there is gone on with.
            async with in_lane(options, hw, settings, chosen.lane(options)) as given:
                return await fork_cohort(
                    hw, tenant, chosen, given, sample=sample, seed=seed, timeout_s=timeout, json_=json_
                )

        ok = connected(settings, work_on_all)
        raise typer.Exit(0 if ok else 1)

    async def work(hw: Headwater) -> bool:
        assert task is not None
        async with in_lane(options, hw, settings, new_id()) as given:
            forks = [await fork_task(hw, tenant, task, given) for _ in range(repeat)]
            async with cancelling_left_over(hw, tenant, forks, given.lane):
                rest = (
                    "they go on" if given.lane is None else "they are cancelled, for nobody is left to serve their team"
                )
                await _wait(hw, tenant, forks, timeout, rest, follow=follow and not json_)
        await hw.caught_up(tenant)
        recording = hw.history
        sides = [await side(recording, tenant, one) for one in (task, *(accepted.task_id for accepted in forks))]
        if json_:
            print_json({"tenant": tenant, "origin": sides[0].as_dict(), "forks": [one.as_dict() for one in sides[1:]]})
        else:
            _show_sides([one.as_dict() for one in sides])
        return all(one.status == "completed" for one in sides[1:])

    ok = connected(settings, work)
    raise typer.Exit(0 if ok else 1)


def models_of(given: list[str]) -> dict[str, tuple[str, ...]]:
    """Tier → models, from TIER=NAME. Raises `InvalidInputError`."""
    models: dict[str, tuple[str, ...]] = {}
    for text in given:
        tier, equals, name = text.partition("=")
        if not (tier and equals and name):
            raise InvalidInputError(f"--model {text!r} is not of the form TIER=NAME, such as fast=openai/gpt-4o-mini")
        models[tier] = (*models.get(tier, ()), name)
    return models


def _data(payload: str | None) -> dict[str, Any] | None:
    try:
        value = None if payload is None else orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"--data is not JSON: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise InvalidInputError("--data is not a JSON object")
    return value


async def _wait(
    hw: Headwater, tenant: str, forks: list[Accepted], timeout_s: float, rest: str, *, follow: bool
) -> None:
    """Wait for the forks' ends, and say meanwhile how far they are and what they cost."""
    ids = [one.task_id for one in forks]
    waiting = [asyncio.create_task(_followed(hw, tenant, forks[0]) if follow else _ended(hw, one)) for one in forks]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=err, transient=True) as progress:
            bar = progress.add_task("running")
            async with asyncio.timeout(timeout_s):
                while any(not one.done() for one in waiting):
                    spent = plain(await queries.cost_of_tasks(hw.pool, tenant, ids))
                    done = sum(one.done() for one in waiting)
                    progress.update(bar, description=f"{done} of {len(ids)} forks ended, ${spent} so far")
                    await asyncio.wait(waiting, timeout=LOOK_S)
            for one in waiting:
                one.result()
    except TimeoutError:
        raise HeadwaterError(f"not all forks ended within {timeout_s:g} s; {rest}: {', '.join(ids)}") from None
    finally:
        for one in waiting:
            one.cancel()


async def _ended(hw: Headwater, accepted: Accepted) -> None:
    await hw.wait(accepted)


async def _followed(hw: Headwater, tenant: str, accepted: Accepted) -> None:
    async for entry in hw.events(tenant, task_id=accepted.task_id, follow=True):
        if entry.error is None:
            event = decode(tenant, format_position(entry.position), entry.fields)
            print_event(event, entry, False)
            if event.body.terminal:
                return


def _show_sides(sides: list[dict[str, Any]]) -> None:
    table = Table("", "task", "status", "cost", "seconds", "tokens", "models")
    for number, one in enumerate(sides):
        table.add_row(_name(number, sides), *_row(one))
    out.print(table)
    for number, one in enumerate(sides):
        outcome = one["error"] if one["error"] is not None else as_text(one["result"])
        same = number > 0 and (one["status"], one["result"]) == (sides[0]["status"], sides[0]["result"])
        said = "the same result as its origin" if same and one["error"] is None else escape(outcome)
        out.print(f"[bold]{_name(number, sides)}[/bold]  {said}", soft_wrap=True)


def _name(number: int, sides: list[dict[str, Any]]) -> str:
    return "origin" if number == 0 else f"fork {number}" if len(sides) > 2 else "fork"


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = f"{one['duration_ms'] / 1000:.2f}"
    models = escape(", ".join(one["models"]))
    return str(one["task"]), str(one["status"]), f"${one['cost_usd']}", seconds, f"{one['tokens']:,}", models


def compare(
    tasks: Annotated[list[str], typer.Argument(metavar="K1 K2", help="The ids of two tasks.")],
    tenant: TenantOption,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Lay two tasks side by side: what was decided up to where they part, their results, costs, latency and tokens."""
    check_tenant_id(tenant)
    if len(tasks) != 2:
        raise InvalidInputError("give the ids of two tasks")

    async def work(hw: Headwater) -> dict[str, Any]:
        await hw.caught_up(tenant)
        return await compare_tasks(hw.history, tenant, *tasks)

    found = connected(read_settings(data=data), work)
    if json_:
        print_json(found)
        return
    _show_comparison(found)


def _show_comparison(found: Mapping[str, Any]) -> None:
    table = Table("", "task", "status", "cost", "seconds", "tokens", "models")
    table.add_row("left", *_row(found["left"]))
    table.add_row("right", *_row(found["right"]))
    out.print(table)
    rows = Table("", "left", "right")
    for index, row in enumerate(found["decisions"]):
        mark = "[red]≠[/red]" if index == found["first_difference"] else ""
        rows.add_row(mark, *(_decision(row[name]) for name in ("left", "right")))
    out.print(rows)
    if not found["results"]:
        out.print("the results are the same")
    for one in found["results"]:
        place = escape(one["pointer"] or "the result")
        out.print(f"[bold]{place}[/bold]", soft_wrap=True)
        out.print(f"  left   {escape(as_text(one['left']))}", soft_wrap=True)
        out.print(f"  right  {escape(as_text(one['right']))}", soft_wrap=True)


def _decision(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    step = "" if one["subtask"] is None else f" (step {one['subtask']})"
    what = f" {one['agent'] or one['question'] or ''}".rstrip()
    text = f"{one['type']}{escape(what)}{step}" + (f": {escape(one['why'])}" if one["why"] else "")
    return f"[dim]{text} (taken over)[/dim]" if one["taken_over"] else text
