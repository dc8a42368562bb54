"""Commands that read: events, task, session, costs."""

from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from headwater.cli.common import DataOption, JsonOption, TenantOption, connected, err, out, print_json, read_settings
from headwater.cli.showing import as_text, cost_table, show_outcome, summary_of
from headwater.client import Headwater
from projections import queries
from projections.queries import CostRow
from schemas.errors import InvalidInputError, NotFoundError, UnreadableEventError
from schemas.event import AgentEvent, entry_fields
from schemas.ids import check_agent_id, check_tenant_id
from schemas.money import plain
from streams.log import Entry, read_event

PAGE = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("events")(events)
    app.command("task")(task)
    app.command("session")(session)
    app.command("costs")(costs)


def events(
    tenant: TenantOption,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only this session.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only this task.")] = None,
    after: Annotated[str, typer.Option(help="Only after this position.")] = "0-0",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many events.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events as they come.")] = False,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Print a tenant's log, oldest first. An entry that cannot be read is named on stderr, and the rest goes on."""
    check_tenant_id(tenant)
    _check_position(after)

    async def work(hw: Headwater) -> None:
        printed = 0
        async for entry in _entries(hw, tenant, after, follow):
            fields = entry_fields(entry[1])
            if (session and fields.get("session") != session) or (task and fields.get("task") != task):
                continue
            try:
                event = read_event(tenant, entry)
            except UnreadableEventError as error:
                err.print(f"[red]unreadable:[/red] {escape(str(error))}", soft_wrap=True)
                continue
            _print_event(event, fields, json_)
            printed += 1
            if limit is not None and printed >= limit:
                return

    connected(read_settings(data=data), work)


async def _entries(hw: Headwater, tenant: str, after: str, follow: bool) -> Any:
    bus = hw.bus(tenant)
    if follow:
        async for entry in bus.follow(after=after):
            yield entry
        return
    page: list[Entry] = await bus.read(after=after, limit=PAGE)
    while page:
        for entry in page:
            yield entry
        page = await bus.read(after=page[-1][0], limit=PAGE) if len(page) == PAGE else []


def _print_event(event: AgentEvent, fields: dict[str, str], json_: bool) -> None:
    if json_:
        body = orjson.loads(fields["body"])
        print_json(
            {"position": event.position, "tenant": event.tenant_id, **fields, "v": int(fields["v"]), "body": body}
        )
        return
    body = event.body.model_dump(mode="json")
    when = event.at.strftime("%H:%M:%S.%f")[:-3]
    line = f"[dim]{event.position}  {when}[/dim]  {event.task_id[-8:]}  [bold]{event.type:17}[/bold] "
    out.print(f"{line}{escape(event.source_agent_id):12} {escape(summary_of(event.type, body))}", soft_wrap=True)


def task(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    tenant: TenantOption,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Print a task: its result, its call chain, how it was routed, what each agent said, and its exact cost."""
    check_tenant_id(tenant)
    found = connected(read_settings(data=data), lambda hw: hw.task(tenant, task_id))
    if found is None:
        raise NotFoundError(f"tenant {tenant!r} has no task {task_id!r}")
    print_json(found) if json_ else show_outcome(found)


def session(
    session_id: Annotated[str, typer.Argument(metavar="ID", help="The session's id.")],
    tenant: TenantOption,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Print a session: its messages in order, its tasks, and its exact cost."""
    check_tenant_id(tenant)

    async def work(hw: Headwater) -> dict[str, Any] | None:
        await hw.caught_up(tenant)
        return await queries.session(hw.pool, tenant, session_id)

    found = connected(read_settings(data=data), work)
    if found is None:
        raise NotFoundError(f"tenant {tenant!r} has no session {session_id!r}")
    if json_:
        print_json(found)
        return
    out.print(f"[bold]{escape(session_id)}[/bold]  {len(found['tasks'])} tasks, ${found['cost_usd']}")
    for message in found["messages"]:
        colour = "cyan" if message["role"] == "user" else "green"
        out.print(f"[{colour}]{message['role']:9}[/] {escape(as_text(message['content']))}", soft_wrap=True)


def costs(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Only this agent, over all tenants.")] = None,
    by: Annotated[
        str | None, typer.Option(help="agent, model, session, task, day or tenant. [default: agent, or tenant]")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=36500, help="How far back.")] = 30,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Print what was spent, by agent, model, session, task, day or tenant, from the ledger."""
    if tenant is not None:
        check_tenant_id(tenant)
    if agent is not None:
        check_agent_id(agent)
    key = by or ("tenant" if tenant is None else "agent")
    if key not in ("agent", "model", "session", "task", "day", "tenant"):
        raise InvalidInputError(f"--by {key!r}: choose from agent, model, session, task, day, tenant")

    async def work(hw: Headwater) -> list[CostRow]:
        if tenant is not None:
            await hw.caught_up(tenant)
        return await queries.costs(hw.pool, by=key, tenant_id=tenant, agent_id=agent, days=days)  # type: ignore[arg-type]

    rows = connected(read_settings(data=data), work)
    if json_:
        for row in rows:
            print_json(_cost_json(key, row))
        return
    whose = " and ".join(filter(None, [tenant and f"tenant {tenant}", agent and f"agent {agent}"])) or "all tenants"
    out.print(cost_table(f"Costs of {whose} by {key}, last {days} days", key, rows))


def _cost_json(key: str, row: CostRow) -> dict[str, Any]:
    return {
        key: row.key,
        "cost_usd": plain(row.cost_usd),
        "tokens": row.tokens,
        "tokens_by_type": {
            "input_uncached": row.input_uncached,
            "cache_read": row.cache_read,
            "cache_write": row.cache_write,
            "output_text": row.output_text,
            "output_reasoning": row.output_reasoning,
        },
        "attempts": row.attempts,
        "failed": row.failed,
        "unpriced": row.unpriced,
        "unknown": row.unknown,
    }


def _check_position(text: str) -> None:
    ms, _, seq = text.partition("-")
    if not (ms.isdigit() and (seq or "0").isdigit()):
        raise InvalidInputError(f"--after {text!r} is not a position such as 1732450000000-0")
