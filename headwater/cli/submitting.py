"""`headwater submit`: one task, or a file of them."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headwater.cli.common import JsonOption, TenantOption, err, out, print_json
from headwater.cli.showing import show_outcome
from headwater.cli.where import HERE, Where, anywhere
from headwater.gateway import Gateway
from schemas.complaints import first_complaint
from schemas.errors import HeadwaterError, InvalidInputError
from schemas.ids import check_tenant_id
from schemas.plurals import counted
from schemas.task import PRIORITY_RANK, Accepted, NewTask

SUBMIT_AT_ONCE = 256


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("submit")(anywhere(submit, "--data-dir"))
    app.command("cancel")(anywhere(cancel))


def submit(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The task's text, '-' to read it from standard input.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Tenant id.")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Session id.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="What kind of task it is.", show_default="task")] = None,
    payload: Annotated[
        str | None, typer.Option("--data", metavar="JSON", help="A JSON object that goes with the task.")
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(
            help="low, normal, high or critical.", show_default="normal", autocompletion=lambda: list(PRIORITY_RANK)
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", "-k", help="The same key twice is one task.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the result and print it.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="With --wait: give up after this many seconds.")] = 300.0,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="A file with a JSON object a line, '-' for standard input.")
    ] = None,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Submit a task, or with -f a file of tasks. Prints the task's id (with --wait, its outcome).

    A line of the file is {"tenant", "session", "text", "type", "data", "priority", "idempotency_key"}; the last four
    may be left out. A bad line is reported with its number, and the rest goes on.
    """
    if file is not None:
        if text is not None:
            raise typer.BadParameter("give a text or a file, not both")
        failed = where.ask(lambda hw: _submit_file(hw, file, wait, timeout, json_))
        raise typer.Exit(1 if failed else 0)
    task = _one_task(text, tenant, session, type_, payload, priority, idempotency_key)
    ok = where.ask(lambda hw: _submit_one(hw, task, wait, timeout, json_))
    raise typer.Exit(0 if ok else 1)


def _one_task(
    text: str | None,
    tenant: str | None,
    session: str | None,
    type_: str | None,
    payload: str | None,
    priority: str | None,
    idempotency_key: str | None,
) -> NewTask:
    missing = [name for name, value in (("--tenant", tenant), ("--session", session), ("TEXT", text)) if not value]
    if missing:
        raise InvalidInputError(
            f"{', '.join(missing)} missing: a task needs a tenant, a session and a text (or use -f)"
        )
    try:
        data = None if payload is None else orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"--data is not JSON: {error}") from error
    given = {
        "tenant": tenant,
        "session": session,
        "text": sys.stdin.read() if text == "-" else text,
        "type": type_,
        "data": data,
        "priority": priority,
        "idempotency_key": idempotency_key,
    }
    return _validated({name: value for name, value in given.items() if value is not None})


def _validated(value: Any) -> NewTask:
    try:
        return NewTask.model_validate(value)
    except ValidationError as error:
        raise InvalidInputError(first_complaint(error, "the task")) from error


async def _submit_one(hw: Gateway, task: NewTask, wait: bool, timeout_s: float, json_: bool) -> bool:
    accepted = await hw.submit(task)
    if not wait:
        if json_:
            print_json(accepted.as_dict())
        else:
            out.print(accepted.task_id)
            if accepted.duplicate:
                err.print("this idempotency key was used before: nothing new was submitted")
        return True
    try:
        async with asyncio.timeout(timeout_s):
            outcome = await hw.wait(accepted)
    except TimeoutError:
        raise HeadwaterError(
            f"task {accepted.task_id} did not end within {timeout_s:g} s; it goes on: look with "
            f"'headwater task --tenant {task.tenant} {accepted.task_id}'"
        ) from None
    shown = await hw.task(task.tenant, accepted.task_id) or outcome.as_dict()
    print_json(shown) if json_ else show_outcome(shown)
    return outcome.status == "completed"


async def _submit_file(hw: Gateway, file: Path, wait: bool, timeout_s: float, json_: bool) -> bool:
    """Submit every good line, and say of every bad one what is wrong. Returns whether anything failed."""
    lines = _read_lines(file)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
    )
    problems: list[str] = []
    accepted: list[Accepted] = []
    places = asyncio.Semaphore(SUBMIT_AT_ONCE)
    with progress:
        bar = progress.add_task("submitting", total=len(lines))

        async def one(number: int, line: bytes) -> None:
            async with places:
                try:
                    result = await hw.submit(_parse(line))
                    accepted.append(result)
                    if json_ and not wait:
                        print_json(result.as_dict())
                except HeadwaterError as error:
                    problems.append(f"line {number}: {error}")
                progress.advance(bar)

        await asyncio.gather(*(one(number, line) for number, line in lines))
        failed = await _wait_for_all(hw, accepted, progress, timeout_s, json_) if wait else 0
    for problem in sorted(problems, key=lambda text: int(text.split()[1].rstrip(":"))):
        err.print(f"[red]error:[/red] {problem}", soft_wrap=True)
    duplicates = sum(result.duplicate for result in accepted)
    summary = (
        f"{len(accepted) - duplicates} submitted, {duplicates} known already, {counted(len(problems), 'bad line')}"
    )
    err.print(summary + (f", {failed} failed" if wait else ""))
    return bool(problems or failed)


async def _wait_for_all(
    hw: Gateway, accepted: list[Accepted], progress: Progress, timeout_s: float, json_: bool
) -> int:
    tasks = list({result.task_id: result for result in accepted}.values())
    bar = progress.add_task("waiting", total=len(tasks))
    failed = 0

    async def one(result: Accepted) -> None:
        nonlocal failed
        outcome = await hw.wait(result)
        failed += outcome.status != "completed"
        if json_:
            print_json(outcome.as_dict())
        progress.advance(bar)

    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(one(result) for result in tasks))
    except TimeoutError:
        raise HeadwaterError(f"not all tasks ended within {timeout_s:g} s; they go on") from None
    return failed


def _read_lines(file: Path) -> list[tuple[int, bytes]]:
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from error
    return [(number, line) for number, line in enumerate(data.splitlines(), 1) if line.strip()]


def _parse(line: bytes) -> NewTask:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError("is not a JSON object")
    return _validated(value)


def cancel(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    tenant: TenantOption,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Ask for a task to be cancelled. What has not started does not start, and what runs is told to stop.

    A task that has completed or failed stays so, and the command exits with 1.
    """
    check_tenant_id(tenant)
    status = where.ask(lambda hw: hw.cancel(tenant, task_id, reason))
    if status in ("completed", "failed"):
        raise HeadwaterError(f"task {task_id} is {status}: it can not be cancelled any more")
    if json_:
        print_json({"tenant": tenant, "task": task_id, "status": status})
    else:
        out.print("it is cancelled already" if status == "cancelled" else f"asked for; the task is {status}")
