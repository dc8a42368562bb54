"""`headwater dead-letters`: what could not be handled, and what to do about it."""

from typing import Annotated

import typer
from rich.markup import escape

from headwater.cli.common import JsonOption, TenantOption, err, out, print_json
from headwater.cli.tables import print_table, table_of
from headwater.cli.where import HERE, Where, anywhere
from schemas.ids import check_tenant_id
from schemas.plurals import counted

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Its id, as 'dead-letters list' prints it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    letters = typer.Typer(help="Look at what could not be handled, have it handled again, or drop it.")
    for name, command in (("list", list_), ("show", show), ("redrive", redrive), ("drop", drop)):
        letters.command(name)(anywhere(command))
    app.add_typer(letters, name="dead-letters", no_args_is_help=True)


def list_(
    tenant: TenantOption,
    after: Annotated[str, typer.Option(help="Only after this id.")] = "0-0",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Print a tenant's dead letters, oldest first."""
    check_tenant_id(tenant)
    found = where.ask(lambda hw: hw.dead_letters.page(tenant, after=after, limit=limit))
    if json_:
        for letter in found:
            print_json(letter.as_dict())
        return
    if not found:
        err.print("no dead letters")
        return
    table = table_of("id", "event", "task", "reader", "attempts", "error", numbers=("attempts",), texts=("error",))
    for letter in found:
        cells = (letter.event_type, letter.task_id, letter.reader, str(letter.attempts), letter.error)
        table.add_row(letter.id, *(escape(cell) for cell in cells))
    print_table(table, less=("event", "reader", "attempts"))


def show(
    parked_id: IdArgument,
    tenant: TenantOption,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Print one dead letter with its origin, its error and all its fields."""
    check_tenant_id(tenant)
    letter = where.ask(lambda hw: hw.dead_letters.show(tenant, parked_id))
    if json_:
        print_json(letter.as_dict())
        return
    origin = f"call {letter.call_id}" if letter.call_id else f"position {letter.position}"
    out.print(f"[bold]{letter.id}[/bold]  {letter.reader}, {escape(origin)}, {counted(letter.attempts, 'attempt')}")
    out.print(f"[red]{escape(letter.error)}[/red]", soft_wrap=True)
    for name, value in letter.fields.items():
        out.print(f"  [dim]{escape(name):9}[/dim] {escape(value)}", soft_wrap=True)


def redrive(
    parked_id: IdArgument,
    tenant: TenantOption,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Have a dead letter handled again. After it comes what waited behind it in its task."""
    check_tenant_id(tenant)
    letter = where.ask(lambda hw: hw.dead_letters.redrive(tenant, parked_id))
    print_json(letter.as_dict() | {"outcome": "redriven"}) if json_ else out.print(f"redriven: {parked_id}")


def drop(
    parked_id: IdArgument,
    tenant: TenantOption,
    reason: Annotated[str, typer.Option(help="Why; it becomes part of the task's reason to fail.")] = "",
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Give a dead letter up for good. Its task fails if it is still open."""
    check_tenant_id(tenant)
    letter = where.ask(lambda hw: hw.dead_letters.drop(tenant, parked_id, reason=reason))
    print_json(letter.as_dict() | {"outcome": "dropped"}) if json_ else out.print(f"dropped: {parked_id}")
