"""Commands that read: events, task, session."""

from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from headwater.cli.common import DataOption, JsonOption, TenantOption, connected, err, out, print_json, read_settings
from headwater.cli.showing import as_text, show_outcome, summary_of
from headwater.client import Headwater
from projections import queries
from schemas.errors import InvalidInputError, NotFoundError, UnreadableEventError
from schemas.event import AgentEvent, entry_fields
from schemas.ids import check_session_id, check_tenant_id
from streams.log import Entry, read_event

PAGE = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("events")(events)
    app.command("task")(task)
    app.command("session")(session)


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
    words: Annotated[
        list[str], typer.Argument(metavar="[clear] ID", help="The session's id; with 'clear' before it, clear it.")
    ],
    tenant: TenantOption,
    reason: Annotated[str, typer.Option(help="With 'clear': why, for the log.")] = "",
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Print a session: its messages in order, its tasks, and its exact cost. 'session clear ID' clears it.

    What was said before a clear stays in the log, and is not part of any later context.
    """
    check_tenant_id(tenant)
    if len(words) > 2 or (len(words) == 2 and words[0] != "clear"):
        raise InvalidInputError(f"session {' '.join(words)!r}: give one session id, or 'clear' and one")
    session_id = check_session_id(words[-1])
    if len(words) == 2:
        position = connected(read_settings(data=data), lambda hw: hw.clear_session(tenant, session_id, reason=reason))
        cleared = {"tenant": tenant, "session": session_id, "position": position}
        print_json(cleared) if json_ else out.print(f"cleared {escape(session_id)}")
        return

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


def _check_position(text: str) -> None:
    ms, _, seq = text.partition("-")
    if not (ms.isdigit() and (seq or "0").isdigit()):
        raise InvalidInputError(f"--after {text!r} is not a position such as 1732450000000-0")
