"""Commands that read: events, task, session."""

from typing import Annotated

import typer
from rich.markup import escape

from headwater.cli.common import JsonOption, TenantOption, err, out, print_json
from headwater.cli.showing import as_text, show_forks, show_outcome, summary_of
from headwater.cli.where import HERE, Where, anywhere
from headwater.gateway import Gateway
from headwater.history import check_position, event_json
from projections.history import SeenEntry
from projections.projection import format_position
from schemas.errors import InvalidInputError, NotFoundError, UnreadableEventError
from schemas.event import AgentEvent, decode
from schemas.ids import check_session_id, check_tenant_id
from schemas.plurals import counted


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("events")(anywhere(events))
    app.command("task")(anywhere(task))
    app.command("session")(anywhere(session))


def events(
    tenant: TenantOption,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only this session.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only this task.")] = None,
    after: Annotated[str, typer.Option(help="Only after this position.")] = "0-0",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many events.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events as they come.")] = False,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Print a tenant's log, oldest first. An entry that cannot be read is named on stderr, and the rest goes on."""
    check_tenant_id(tenant)
    start = check_position(after, "--after")

    async def work(hw: Gateway) -> None:
        printed = 0
        seen = hw.events(tenant, after=start, session_id=session, task_id=task, follow=follow)
        async for entry in seen:
            try:
                if entry.error is not None:
                    raise UnreadableEventError(entry.error)
                event = decode(tenant, format_position(entry.position), entry.fields)
            except UnreadableEventError as error:
                err.print(f"[red]unreadable:[/red] {escape(str(error))}", soft_wrap=True)
                continue
            print_event(event, entry, json_)
            printed += 1
            if limit is not None and printed >= limit:
                return

    where.ask(work)


def print_event(event: AgentEvent, entry: SeenEntry, json_: bool) -> None:
    """One event on a line."""
    if json_:
        print_json(event_json(event.tenant_id, entry))
        return
    body = event.body.model_dump(mode="json")
    when = event.at.strftime("%H:%M:%S.%f")[:-3]
    line = f"[dim]{event.position}  {when}[/dim]  {event.task_id:24}  [bold]{event.type:19}[/bold] "
    out.print(f"{line}{escape(event.source_agent_id):12} {escape(summary_of(event.type, body))}", soft_wrap=True)


def task(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    tenant: TenantOption,
    forks: Annotated[
        bool, typer.Option("--forks", help="Its forks instead, and theirs, with what they cost beside it.")
    ] = False,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Print a task. Its result, its call chain, how it was routed, what each agent said, and its exact cost.

    Forks are tasks of their own, and never in its cost.
    """
    check_tenant_id(tenant)
    found = where.ask(lambda hw: hw.forks(tenant, task_id) if forks else hw.task(tenant, task_id))
    if found is None:
        raise NotFoundError(f"tenant {tenant!r} has no task {task_id!r}")
    if json_:
        print_json(found)
    elif forks:
        show_forks(found)
    else:
        show_outcome(found)


def session(
    words: Annotated[
        list[str], typer.Argument(metavar="[clear] ID", help="The session's id; with 'clear' before it, clear it.")
    ],
    tenant: TenantOption,
    reason: Annotated[str, typer.Option(help="With 'clear': why, for the log.")] = "",
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Print a session, or clear it with 'session clear ID'. Its messages in order, its tasks, and its exact cost.

    What was said before a clear stays in the log, and is not part of any later context.
    """
    check_tenant_id(tenant)
    if len(words) > 2 or (len(words) == 2 and words[0] != "clear"):
        raise InvalidInputError(f"session {' '.join(words)!r}: give one session id, or 'clear' and one")
    session_id = check_session_id(words[-1])
    if len(words) == 2:
        position = where.ask(lambda hw: hw.clear_session(tenant, session_id, reason=reason))
        cleared = {"tenant": tenant, "session": session_id, "position": position}
        print_json(cleared) if json_ else out.print(f"cleared {escape(session_id)}")
        return

    found = where.ask(lambda hw: hw.session(tenant, session_id))
    if found is None:
        raise NotFoundError(f"tenant {tenant!r} has no session {session_id!r}")
    if json_:
        print_json(found)
        return
    out.print(f"[bold]{escape(session_id)}[/bold]  {counted(len(found['tasks']), 'task')}, ${found['cost_usd']}")
    for name, value in found.get("state", {}).items():
        out.print(f"[dim]state[/dim]     {escape(name)} = {escape(as_text(value))}", soft_wrap=True)
    for message in found["messages"]:
        colour = "cyan" if message["role"] == "user" else "green"
        out.print(f"[{colour}]{message['role']:9}[/] {escape(as_text(message['content']))}", soft_wrap=True)
