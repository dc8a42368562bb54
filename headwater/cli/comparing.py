"""`headwater compare`, and how two or more runs of a task look beside each other."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from headwater.cli.common import JsonOption, TenantOption, out, print_json
from headwater.cli.showing import as_text
from headwater.cli.tables import print_table, table_of
from headwater.cli.where import HERE, Where, anywhere
from headwater.replay.gateway import forks_of
from schemas.errors import InvalidInputError
from schemas.ids import check_tenant_id


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("compare")(anywhere(compare))


def compare(
    tasks: Annotated[list[str], typer.Argument(metavar="K1 K2", help="The ids of two tasks.")],
    tenant: TenantOption,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Lay two tasks side by side. What was decided up to where they part, their results, costs, latency and tokens."""
    check_tenant_id(tenant)
    if len(tasks) != 2:
        raise InvalidInputError("give the ids of two tasks")
    left, right = tasks
    found = where.ask(lambda hw: forks_of(hw).compare(tenant, left, right))
    print_json(found) if json_ else _show_comparison(found)


def _show_comparison(found: Mapping[str, Any]) -> None:
    _print_sides([("left", found["left"]), ("right", found["right"])])
    out.print()
    rows = table_of("", "left", "right", texts=("left", "right"))
    for index, row in enumerate(found["decisions"]):
        mark = "[red]≠[/red]" if index == found["first_difference"] else " "
        rows.add_row(f"{index + 1} {mark}", *(_decision(row[name]) for name in ("left", "right")))
    print_table(rows)
    out.print()
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


def show_sides(sides: list[dict[str, Any]]) -> None:
    """A task and its forks: a line each, and what came of each."""
    _print_sides([(_name(number, sides), one) for number, one in enumerate(sides)])
    out.print()
    for number, one in enumerate(sides):
        outcome = one["error"] if one["error"] is not None else as_text(one["result"])
        same = number > 0 and (one["status"], one["result"]) == (sides[0]["status"], sides[0]["result"])
        said = "the same result as its origin" if same and one["error"] is None else escape(outcome)
        out.print(f"[bold]{_name(number, sides)}[/bold]  {said}", soft_wrap=True)


def _name(number: int, sides: list[dict[str, Any]]) -> str:
    return "origin" if number == 0 else f"fork {number}" if len(sides) > 2 else "fork"


def _print_sides(sides: list[tuple[str, Mapping[str, Any]]]) -> None:
    columns = ("", "task", "status", "cost", "seconds", "tokens", "models")
    table = table_of(*columns, numbers=("cost", "seconds", "tokens"), texts=("models",))
    for name, one in sides:
        table.add_row(name, *_row(one))
    print_table(table, less=("seconds", "tokens"))


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = f"{one['duration_ms'] / 1000:.2f}"
    models = escape(", ".join(one["models"]))
    return str(one["task"]), str(one["status"]), f"${one['cost_usd']}", seconds, f"{one['tokens']:,}", models
