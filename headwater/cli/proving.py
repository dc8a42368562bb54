"""`replay --verify`, `fixture` and `reprice`: what a recorded log proves, and what it would have cost."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from handlers.prices import PriceTable
from handlers.supervisor import Rules
from headwater.cli.common import JsonOption, err, out, print_json, read_settings
from headwater.cli.recordings import one_tenant, read_log, sink
from headwater.cli.showing import as_text
from headwater.cli.tables import print_table, table_of
from headwater.cli.where import HERE, Where, anywhere
from headwater.remote_history import RemoteHistory
from headwater.replay.fixture import fixture
from headwater.replay.moments import position_of
from headwater.replay.recording import Recording
from headwater.replay.reprice import Repriced
from headwater.replay.reprice import reprice as price_again
from headwater.replay.verify import Report, verify
from headwater.teams import load_team
from projections.projection import START, Position
from schemas.errors import InvalidInputError, NotFoundError
from schemas.ids import check_tenant_id
from schemas.money import plain
from schemas.plurals import counted

SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("fixture")(anywhere(make_fixture))
    app.command("reprice")(anywhere(reprice))


def verify_logs(
    files: list[Path],
    where: Where,
    agents: str | None,
    tenant: str | None,
    task: str | None,
    since: str | None,
    json_: bool,
) -> None:
    """Verify files, or a Headwater's log. Exits with 1 if a decision would be another one now."""
    over_there = where.is_remote and not files and read_settings(agents=agents).agents is None
    if over_there and (task is None or tenant is None or since is not None):
        raise InvalidInputError(
            "name one task with --tenant and --task, and the team behind the URL decides it again; or name the team "
            "with --agents module:object, and it decides here"
        )
    rules = None if over_there else rules_of(agents, where.data)
    start = START if since is None else position_of(since, [])
    report = Report()
    with _progress() as progress:
        bar = progress.add_task("verifying")

        @_at_times
        def show(tasks: int, decisions: int) -> None:
            progress.update(bar, description=f"verifying: {counted(tasks, 'task')}, {counted(decisions, 'decision')}")

        async def work(recording: Recording) -> Report:
            if rules is None:
                assert isinstance(recording, RemoteHistory)
                assert tenant is not None
                assert task is not None
                return await recording.verify(tenant, task)
            tenants = [check_tenant_id(tenant)] if tenant else await recording.tenants()
            return await verify(recording, tenants, rules, task_id=task, since=start, limit=SHOWN, progress=show)

        sources: list[Path | None] = [*files] or [None]
        for file in sources:
            _add(report, read_log(where, file, work))
    if task is not None and not report.tasks + report.skipped:
        raise NotFoundError(f"there is no task {task!r} in this log" + ("" if since is None else f" after {since}"))
    print_json(report.as_dict()) if json_ else _show_report(report)
    raise typer.Exit(1 if report.diverged else 0)


def _add(total: Report, found: Report) -> None:
    total.tasks += found.tasks
    total.decisions += found.decisions
    total.skipped += found.skipped
    total.open_tasks += found.open_tasks
    total.diverged += found.diverged
    total.differences += found.differences[: SHOWN - len(total.differences)]


def rules_of(agents: str | None, data: Path | None) -> Rules:
    """The rules of the team that `--agents` or HEADWATER_AGENTS names."""
    settings = read_settings(data=data, agents=agents)
    if settings.agents is None:
        raise InvalidInputError("name the team whose rules decide, with --agents module:object or HEADWATER_AGENTS")
    team = load_team(settings.agents)
    return Rules(team, team.strictness)


def _show_report(report: Report) -> None:
    notes = [f"{report.open_tasks:,} of them not ended"] * bool(report.open_tasks)
    notes += [f"{report.skipped:,} left out, which began before this log does"] * bool(report.skipped)
    more = f" ({'; '.join(notes)})" if notes else ""
    out.print(f"{counted(report.tasks, 'task')} with {counted(report.decisions, 'decision')} verified{more}")
    for found in report.differences:
        out.print(f"[red]task {found.task_id}[/red] of {escape(found.tenant_id)}, event {found.event_id}")
        out.print(f"  at        {escape(found.pointer or '(the whole decision)')}")
        out.print(f"  recorded  {escape(as_text(found.recorded))}", soft_wrap=True)
        out.print(f"  now       {escape(as_text(found.now))}", soft_wrap=True)
    if report.diverged:
        rest = report.diverged - len(report.differences)
        more = f", {rest:,} not shown" if rest else ""
        out.print(f"{counted(report.diverged, 'task')} would go another way now{more}")
    else:
        out.print("[green]every decision would be the same now[/green]")


def make_fixture(
    task: Annotated[str, typer.Option("--task", "-k", help="Task id.")],
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", help="Tenant id.", show_default="the only one there is")
    ] = None,
    agents: Annotated[
        str | None,
        typer.Option(
            "--agents",
            metavar="MODULE:OBJECT",
            help="The team it was recorded with.",
            show_default="HEADWATER_AGENTS",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, best named *.headwater.jsonl.", show_default="stdout"),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="A word or number that stays: one that the rules look at.")
    ] = None,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A file of 'headwater export'.")] = None,
    where: Where = HERE,
) -> None:
    """Write a task as a sanitised log for tests. Mails, names and numbers become stand-ins of the same shape.

    pytest runs files named *.headwater.jsonl with the plugin headwater.testing.plugin: each is decided again.
    """
    rules = rules_of(agents, where.data)

    async def work(recording: Recording) -> list[bytes]:
        tenant_id = await one_tenant(recording, tenant)
        return [line async for line in fixture(recording, tenant_id, task, rules, keep=keep or ())]

    lines = read_log(where, file, work)
    with sink(output) as target:
        target.write(b"".join(lines))
    err.print(f"task {task} written to {output or 'standard output'}; read it once before you share it")


def reprice(
    prices: Annotated[Path, typer.Option("--prices", help="JSON price file in LiteLLM's format.")],
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A file of 'headwater export'.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="A=B", help="Price what model A used as if B had used it.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only after this position or time.")] = None,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Print what the recorded tokens would have cost at other prices. The ledger does not move.

    Nothing is known of the quality of what another model would have answered.
    """
    models = dict(_pair(text) for text in model or ())
    table = PriceTable.load(prices)
    start: Position = START if since is None else position_of(since, [])
    with _progress() as progress:
        bar = progress.add_task("pricing")

        @_at_times
        def show(attempts: int) -> None:
            progress.update(bar, description=f"pricing: {counted(attempts, 'attempt')}")

        async def work(recording: Recording) -> Repriced:
            tenants = [check_tenant_id(tenant)] if tenant else await recording.tenants()
            return await price_again(recording, tenants, table, models=models, since=start, progress=show)

        found = read_log(where, file, work)
    if json_:
        print_json(found.as_dict())
        return
    unpriced = any(line.unpriced for line in found.lines)
    numbers = ("attempts", "tokens", "recorded", "repriced", "difference", *(["unpriced"] if unpriced else []))
    rows = table_of("agent", "model", *numbers, numbers=numbers, texts=("model",))
    for line in found.lines:
        difference = plain(line.repriced_usd - line.recorded_usd)
        money = (plain(line.recorded_usd), plain(line.repriced_usd), difference)
        counts = (f"{line.attempts:,}", f"{line.tokens:,}")
        priced = line.model if line.repriced_as == line.model else f"{line.model} → {line.repriced_as}"
        rows.add_row(line.agent_id, escape(priced), *counts, *money, *([f"{line.unpriced:,}"] if unpriced else []))
    print_table(rows, less=("attempts", "tokens"))
    total = plain(found.repriced_usd - found.recorded_usd)
    out.print(f"${plain(found.recorded_usd)} recorded, ${plain(found.repriced_usd)} repriced: {total} difference")
    if models:
        out.print("the tokens are the recorded model's, and what another one would have answered is unknown")


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise InvalidInputError(f"--model {text!r} is not of the form A=B")
    return old, new


def _at_times(show: Callable[..., None]) -> Callable[..., None]:
    """`show`, called ten times a second at most: drawing what was done must not take longer than doing it."""
    due = 0.0

    def maybe(*counts: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + 0.1
            show(*counts)

    return maybe


def _progress() -> Any:
    return Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True)
