"""Commands for operators: rebuild, digest and trim."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from headwater.cli.common import DataOption, JsonOption, connected, err, out, print_json, read_settings
from headwater.cli.tables import print_table, table_of
from headwater.client import Headwater
from headwater.trimming import Trimmed, trim_logs
from projections.rebuild import ProjectionDigest, digests, rebuildable
from projections.rebuild import rebuild as rebuild_projections
from projections.rewinding import missing_ranges
from schemas.errors import InvalidInputError
from schemas.ids import check_tenant_id
from schemas.plurals import counted


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("rebuild")(rebuild)
    app.command("digest")(digest)
    app.command("trim")(trim)
    app.command("missing")(missing)


def rebuild(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="ledger, sessions, memories, metrics or all.",
            autocompletion=lambda: [*rebuildable(), "all"],
        ),
    ] = "all",
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a read model again from the archive. What is read meanwhile is the old one, until it is done."""
    names = rebuildable() if what == "all" else [what]
    if unknown := [name for name in names if name not in rebuildable()]:
        raise InvalidInputError(f"{unknown[0]!r} cannot be rebuilt: choose from {', '.join(rebuildable())}, all")
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TextColumn("events"))
    with Progress(*columns, TimeElapsedColumn(), console=err) as progress:
        bars: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done)

        async def work(hw: Headwater) -> list[ProjectionDigest]:
            await rebuild_projections(hw.pool, names, report)
            return await digests(hw.pool)

        after = connected(read_settings(data=data), work)
    _show([found for found in after if found.projection in names], json_)


def digest(data: DataOption = None, json_: JsonOption = False) -> None:
    """Print a digest of every read model. Equal digests at equal positions mean equal rows."""
    _show(connected(read_settings(data=data), lambda hw: digests(hw.pool)), json_)


def trim(
    older_than: Annotated[
        float | None,
        typer.Option(metavar="HOURS", min=0, help="Leave what is younger.", show_default="HEADWATER_RETENTION_HOURS"),
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")] = None,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Remove old events from Redis. Only what is archived in PostgreSQL and nothing waits for; reading stays the same.

    What belongs to an open task stays, and what some reader has not read.
    """
    settings = read_settings(data=data, retention_hours=older_than)
    if older_than is None and settings.retention_hours == 0:
        raise InvalidInputError("say how much to leave: --older-than HOURS, or set HEADWATER_RETENTION_HOURS")
    if tenant is not None:
        check_tenant_id(tenant)

    async def work(hw: Headwater) -> list[Trimmed]:
        return await trim_logs(hw.streams, hw.pool, retention_hours=settings.retention_hours, tenant_id=tenant)

    trimmed = connected(settings, work)
    if json_:
        for one in trimmed:
            print_json(asdict(one))
        return
    out.print(
        f"{counted(sum(one.entries for one in trimmed), 'event')} and "
        f"{counted(sum(one.blobs for one in trimmed), 'content')} removed"
    )


def missing(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")] = None,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """List the parts of logs that are in no read model. Trimmed from Redis, and lost with a newer PostgreSQL.

    What a restored database lacks and Redis still has is read again by itself, and is not missing.
    """
    if tenant is not None:
        check_tenant_id(tenant)
    found = connected(read_settings(data=data), lambda hw: missing_ranges(hw.pool, tenant_id=tenant))
    if json_:
        for one in found:
            print_json(asdict(one))
        return
    if not found:
        out.print("nothing is missing")
        return
    table = table_of("tenant", "all after", "and before", "noticed")
    for one in found:
        table.add_row(one.tenant, one.after, one.before, f"{one.noticed_at:%Y-%m-%d %H:%M:%S}")
    print_table(table)


def _show(found: list[ProjectionDigest], json_: bool) -> None:
    if json_:
        for one in found:
            print_json(one.as_dict())
        return
    table = table_of(
        *("projection", "digest", "rows", "events", "tenants", "position"), numbers=("rows", "events", "tenants")
    )
    for one in found:
        counts = (f"{one.rows:,}", f"{one.events:,}", f"{one.tenants:,}")
        table.add_row(one.projection, one.digest, *counts, one.position)
    print_table(table, less=("position", "tenants", "events"))
