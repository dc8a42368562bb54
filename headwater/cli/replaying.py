"""Commands that read a recorded log again: replay (the story, a moment, step by step, blame) and export."""

import gzip
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from headwater.cli.common import DataOption, JsonOption, connected, err, print_json, read_settings, run_async
from headwater.cli.stepping import step_through
from headwater.cli.telling import show_blame, show_moment, show_story
from headwater.client import Headwater
from headwater.replay.blame import blame as find_blame
from headwater.replay.moments import events_of, moment, position_of, task_events
from headwater.replay.recording import FileRecording, LiveRecording, Recording, export
from headwater.replay.story import story_of
from schemas.errors import InvalidInputError, NotFoundError
from schemas.event import AgentEvent
from schemas.ids import check_tenant_id

T = TypeVar("T")

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="A file of 'headwater export'; then no server is needed.")
]
OptionalTenant = Annotated[str | None, typer.Option("--tenant", "-t", help="Tenant id. [default: the file's only one]")]
TaskOption = Annotated[str | None, typer.Option("--task", "-k", help="Task id.")]
SessionOption = Annotated[str | None, typer.Option("--session", "-s", help="Session id: all its tasks.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("replay")(replay)
    app.command("export")(export_log)


def replay(
    file: FileArgument = None,
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
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Tell a task's story from the log: what led to what, why, by whom, and where the money went.

    No model is asked, and nothing is written. Reads the archive and the stream as one log, or a file.
    """
    if (task is None) == (session is None):
        raise InvalidInputError("name one of --task and --session")
    if session is not None and (step or blame is not None or at is not None):
        raise InvalidInputError("--at, --step and --blame look at one task: name it with --task")
    if sum([at is not None, step, blame is not None]) > 1:
        raise InvalidInputError("give one of --at, --step and --blame")

    async def look(recording: Recording) -> None:
        tenant_id = await one_tenant(recording, tenant)
        if session is not None:
            await _tell_session(recording, tenant_id, session, json_)
            return
        assert task is not None
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

    with_recording(file, data, look)


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


async def one_tenant(recording: Recording, tenant: str | None) -> str:
    """The tenant that was named, or the only one there is. Raises `InvalidInputError` if that is not clear."""
    if tenant is not None:
        return check_tenant_id(tenant)
    known = await recording.tenants()
    if len(known) == 1:
        return known[0]
    raise InvalidInputError(f"name the tenant with --tenant; there are: {', '.join(known) or 'none'}")


def with_recording(file: Path | None, data: Path | None, work: Callable[[Recording], Awaitable[T]]) -> T:
    """Run `work` on a file, or on the running Headwater's log."""
    if file is not None:
        recording = FileRecording(file)

        async def on_file() -> T:
            return await work(recording)

        return run_async(on_file())

    async def on_log(hw: Headwater) -> T:
        return await work(LiveRecording(hw.streams, hw.pool))

    return connected(read_settings(data=data), on_log)


def export_log(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Tenant id.")],
    task: TaskOption = None,
    session: SessionOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, gzipped if it ends with .gz. [default: stdout]"),
    ] = None,
    data: DataOption = None,
) -> None:
    """Write a tenant's log, or one task's or session's part of it, to a file that replay and verify read."""
    check_tenant_id(tenant)

    async def work(recording: Recording) -> int:
        count = 0
        with _sink(output) as sink:
            async for line in export(recording, [tenant], task_id=task, session_id=session):
                sink.write(line)
                count += b'"position"' in line
        return count

    count = with_recording(None, data, work)
    if not count:
        raise NotFoundError(f"tenant {tenant!r} has no such events")
    err.print(f"{count:,} events of {tenant} written to {output or 'standard output'}")


def _sink(output: Path | None) -> Any:
    if output is None:
        return open(sys.stdout.fileno(), "wb", closefd=False)  # a descriptor is no path
    try:
        return gzip.open(output, "wb") if output.suffix == ".gz" else output.open("wb")
    except OSError as error:
        raise InvalidInputError(f"{output} cannot be written: {error.strerror}") from error
