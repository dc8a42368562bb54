"""Commands that read a recorded log again: replay (the story, a moment, step by step, blame) and export."""

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.common import JsonOption, err, print_json
from headwater.cli.proving import verify_logs
from headwater.cli.recordings import one_tenant, read_log, sink
from headwater.cli.stepping import step_through
from headwater.cli.telling import show_blame, show_moment, show_story
from headwater.cli.where import HERE, Where, anywhere
from headwater.remote_history import RemoteHistory
from headwater.replay.blame import blame as find_blame
from headwater.replay.moments import events_of, moment, position_of, task_events
from headwater.replay.recording import Recording, export
from headwater.replay.story import story_of
from schemas.errors import InvalidInputError, NotFoundError
from schemas.event import AgentEvent
from schemas.ids import check_tenant_id
from schemas.plurals import counted

FilesArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FILE", help="A file of 'headwater export'; with --verify, any number. No server needed."),
]
OptionalTenant = Annotated[
    str | None, typer.Option("--tenant", "-t", help="Tenant id.", show_default="the file's only one")
]
TaskOption = Annotated[str | None, typer.Option("--task", "-k", help="Task id.")]
SessionOption = Annotated[str | None, typer.Option("--session", "-s", help="Session id: all its tasks.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("replay")(anywhere(replay))
    app.command("export")(anywhere(export_log))


def replay(
    files: FilesArgument = None,
    tenant: OptionalTenant = None,
    task: TaskOption = None,
    session: SessionOption = None,
    at: Annotated[
        str | None, typer.Option(metavar="POSITION|EVENT|TIME", help="How things stood then, instead of the story.")
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="Walk event by event: n, p, g POSITION, d, q.")] = False,
    blame: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Who put this value into the result: a JSON pointer as /reply.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decide again with the team of --agents; exit 1 at a difference.")
    ] = False,
    agents: Annotated[
        str | None,
        typer.Option(
            "--agents",
            metavar="MODULE:OBJECT",
            help="With --verify: the team that decides. Over a URL, without one, the team over there.",
            show_default="HEADWATER_AGENTS",
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="With --verify: only tasks after this position or time.")] = None,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Tell a task's story from the log. What led to what, why, by whom, and where the money went.

    With --verify, every decision of the log is made again from the recorded facts and compared: a new routing rule or
    strictness table, tested against last month. No model is asked, and nothing is written. Reads the archive and the
    stream as one log, or files.
    """
    looks = [name for name, given in (("--at", at), ("--step", step), ("--blame", blame)) if given not in (None, False)]
    if verify:
        if session is not None or looks:
            raise InvalidInputError("--verify goes with --agents, --tenant, --task and --since only")
        verify_logs(files or [], where, agents, tenant, task, since, json_)
        return
    _check_look(files or [], task, session, looks)

    async def look(recording: Recording) -> None:
        tenant_id = await one_tenant(recording, tenant)
        if session is not None:
            await _tell_session(recording, tenant_id, session, json_)
            return
        assert task is not None
        if at is not None and isinstance(recording, RemoteHistory):
            # Where the ledger is. Here it would take the tenant's whole log.
            found = await recording.moment(tenant_id, task, at)
            print_json(found) if json_ else show_moment(found)
            return
        events = await task_events(recording, tenant_id, task)
        if at is not None:
            found = await moment(recording, tenant_id, events, position_of(at, events))
            print_json(found) if json_ else show_moment(found)
        elif blame is not None:
            found = await find_blame(recording, events, blame)
            print_json(found) if json_ else show_blame(found)
        elif step:
            step_through(events)
        else:
            _tell(events, json_)

    read_log(where, files[0] if files else None, look)


def _check_look(files: list[Path], task: str | None, session: str | None, looks: list[str]) -> None:
    if len(files) > 1:
        raise InvalidInputError("give one file; only --verify takes several")
    if (task is None) == (session is None):
        raise InvalidInputError("name one of --task and --session")
    if session is not None and looks:
        raise InvalidInputError(f"{looks[0]} looks at one task: name it with --task")
    if len(looks) > 1:
        raise InvalidInputError(f"give one of {' and '.join(looks)}")


def _tell(events: list[AgentEvent], json_: bool) -> None:
    story = story_of(events)
    assert story is not None, "there are events"
    print_json(story.as_dict()) if json_ else show_story(story)


async def _tell_session(recording: Recording, tenant_id: str, session_id: str, json_: bool) -> None:
    tasks: dict[str, list[AgentEvent]] = {}
    async for event in events_of(recording, tenant_id, session_id=session_id):
        if event.task_id:
            tasks.setdefault(event.task_id, []).append(event)
    if not tasks:
        raise NotFoundError(f"tenant {tenant_id!r} has no session {session_id!r} in this log")
    for events in tasks.values():
        _tell(events, json_)


def export_log(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Tenant id.")],
    task: TaskOption = None,
    session: SessionOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, gzipped if it ends with .gz.", show_default="stdout"),
    ] = None,
    where: Where = HERE,
) -> None:
    """Write a log to a file for replay. A tenant's, or one task's or session's part of it; no server is needed then."""
    check_tenant_id(tenant)

    async def work(recording: Recording) -> int:
        lines = export(recording, [tenant], task_id=task, session_id=session)
        head, first = await anext(lines), await anext(lines, None)
        if first is None:
            # A head alone is no log: nothing is written.
            return 0
        count = int(b'"position"' in first)
        with sink(output) as target:
            target.write(head + first)
            async for line in lines:
                target.write(line)
                count += b'"position"' in line
        return count

    count = read_log(where, None, work)
    if not count:
        raise NotFoundError(f"tenant {tenant!r} has no such events")
    err.print(f"{counted(count, 'event')} of {tenant} written to {output or 'standard output'}")
