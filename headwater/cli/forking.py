"""`headwater fork`: a task run again, or a cohort of tasks."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from headwater.cli.cohorts import Sampling, fork_cohort
from headwater.cli.common import JsonOption, TenantOption, connected, err, print_json, read_settings
from headwater.cli.comparing import show_sides
from headwater.cli.reading import print_event
from headwater.cli.where import HERE, Where, anywhere
from headwater.gateway import Gateway
from headwater.lane import OtherTeam
from headwater.replay.cohort import Cohort
from headwater.replay.fork import ForkOptions
from headwater.replay.gateway import Forks, forks_of
from headwater.replay.lanes import cancelling_left_over, in_lane
from projections.projection import format_position
from schemas.errors import HeadwaterError, InvalidInputError
from schemas.event import decode
from schemas.ids import check_tenant_id, new_id
from schemas.money import plain
from schemas.plurals import counted
from schemas.task import Accepted

MANY = "Many tasks"
LOOK_S = 0.5
"""How often the cost so far is looked at."""
LOOK_PER_FORK_S = 0.05
"""Over HTTP each fork is looked at by itself."""

AgentsOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:OBJECT", help="Another team than the running one; it runs in this process, while it waits."
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="USD", help="What each fork may cost. It may go over by the requests that are in flight then."
    ),
]
CohortOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        help="Not one task, but those that have in common: 'type=refund since=7d status=completed session=S', each "
        "word or none.",
        rich_help_panel=MANY,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("fork")(anywhere(fork, "--data-dir"))


def fork(
    tenant: TenantOption,
    task: Annotated[str | None, typer.Option("--task", "-k", help="The task to run again.")] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="EVENT", help="Decide this fact anew and go on from there.", show_default="from the start"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="TIER=NAME", help="Another model for a tier; again for its fallbacks."),
    ] = None,
    payload: Annotated[
        str | None, typer.Option("--data", metavar="JSON", help="A JSON object in the place of the task's data.")
    ] = None,
    agents: AgentsOption = None,
    budget: BudgetOption = None,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="So many forks at once.")] = 1,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print the fork's events as they come.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Wait so many seconds at most; the forks go on.")] = 600.0,
    cohort: CohortOption = None,
    sample: Annotated[int, typer.Option(min=1, max=10_000, help="So many tasks at most.", rich_help_panel=MANY)] = 50,
    seed: Annotated[int, typer.Option(help="Another number is another sample.", rich_help_panel=MANY)] = 0,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Run a task again, live. By the workers that run now or by --agents, as a new task, a fork, with its own costs.

    What was recorded before the point is taken over and not paid again; after it agents, models and tools work for
    real. A fork adds no messages to its session. Exits with 1 unless every fork completes. With --cohort, an
    interrupted command goes on where it stopped when it is given again.
    """
    check_tenant_id(tenant)
    if (task is None) == (cohort is None):
        raise InvalidInputError("name one of --task and --cohort")
    if follow and repeat > 1:
        raise InvalidInputError("--follow watches one fork: leave out --repeat")
    if cohort is not None and (at is not None or payload is not None or repeat > 1 or follow):
        raise InvalidInputError("--at, --data, --repeat and --follow are for one task: leave them out")
    beside = [name for name, value in (("--cohort", cohort), ("--agents", agents)) if value is not None]
    if beside and (where.is_remote or where.key is not None):
        raise InvalidInputError(
            f"{beside[0]} needs the servers themselves: run it on a machine of theirs, without --url (HEADWATER_URL); "
            "over a URL, fork one task with --task, by the team that runs there"
        )
    other = None if agents is None else OtherTeam.load(agents)
    options = ForkOptions(at=at, models=models_of(model or []), data=_data(payload), budget_usd=budget, team=other)
    if cohort is not None:
        chosen = Cohort.parse(cohort)
        how = Sampling(sample, seed, timeout)
        ok = connected(
            read_settings(data=where.data), lambda hw: fork_cohort(hw, tenant, chosen, options, how, json_=json_)
        )
    else:
        assert task is not None
        watch = Watching(repeat, follow, timeout, json_)
        ok = where.ask(lambda hw: _fork_task(hw, tenant, task, options, watch))
    raise typer.Exit(0 if ok else 1)


@dataclass(frozen=True, slots=True)
class Watching:
    """How many forks, and how to wait for them."""

    repeat: int
    follow: bool
    timeout_s: float
    json: bool


async def _fork_task(hw: Gateway, tenant: str, task: str, options: ForkOptions, how: Watching) -> bool:
    forks = forks_of(hw)
    async with in_lane(options, hw, new_id()) as given:
        made: list[Accepted] = []
        async with cancelling_left_over(hw, tenant, made, given.lane):
            for _ in range(how.repeat):
                made.append(await forks.fork(tenant, task, given))
            rest = "they go on" if given.lane is None else "they are cancelled, for nobody is left to serve their team"
            await _wait(hw, forks, tenant, made, how, rest)
    sides = await forks.sides(tenant, task, [one.task_id for one in made])
    if how.json:
        print_json({"tenant": tenant, "origin": sides[0], "forks": sides[1:]})
    else:
        show_sides(sides)
    return all(one["status"] == "completed" for one in sides[1:])


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


async def _wait(hw: Gateway, forks: Forks, tenant: str, made: list[Accepted], how: Watching, rest: str) -> None:
    """Wait for the forks' ends, and say meanwhile how far they are and what they cost."""
    ids = [one.task_id for one in made]
    follow = how.follow and not how.json
    waiting = [asyncio.create_task(_followed(hw, tenant, made[0]) if follow else _ended(hw, one)) for one in made]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=err, transient=True) as progress:
            bar = progress.add_task("running")
            async with asyncio.timeout(how.timeout_s):
                while any(not one.done() for one in waiting):
                    spent = plain(await forks.cost_of(tenant, ids))
                    done = sum(one.done() for one in waiting)
                    progress.update(bar, description=f"{done} of {counted(len(ids), 'fork')} ended, ${spent} so far")
                    await asyncio.wait(waiting, timeout=max(LOOK_S, LOOK_PER_FORK_S * len(ids)))
            for one in waiting:
                one.result()
    except TimeoutError:
        raise HeadwaterError(f"not all forks ended within {how.timeout_s:g} s; {rest}: {', '.join(ids)}") from None
    finally:
        for one in waiting:
            one.cancel()


async def _ended(hw: Gateway, accepted: Accepted) -> None:
    await hw.wait(accepted)


async def _followed(hw: Gateway, tenant: str, accepted: Accepted) -> None:
    async for entry in hw.events(tenant, task_id=accepted.task_id, follow=True):
        if entry.error is None:
            event = decode(tenant, format_position(entry.position), entry.fields)
            print_event(event, entry, False)
            if event.body.terminal:
                return
