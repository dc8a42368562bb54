"""The command `costs`: what was spent, on what, what for, and under which decision."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from headwater.cli.common import DataOption, JsonOption, connected, out, print_json, read_settings
from headwater.client import Headwater
from projections import costs as ledger
from projections.costs import COST_KEYS, CostRow, DecisionCosts, total_of
from projections.outcomes import OUTCOMES
from schemas.errors import InvalidInputError
from schemas.ids import check_agent_id, check_tenant_id
from schemas.money import plain


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("costs")(costs)


def costs(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Only this agent, over all tenants.")] = None,
    by: Annotated[str | None, typer.Option(help=f"{', '.join(COST_KEYS)}. [default: agent, or tenant]")] = None,
    days: Annotated[int, typer.Option(min=1, max=36500, help="How far back: whole days in UTC, today included.")] = 30,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows, the dearest. [default: all]")] = None,
    decision: Annotated[
        str | None,
        typer.Option("--decision", "--under", help="An event of --tenant: what it cost with everything under it."),
    ] = None,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Print what was spent, from the ledger: exact, failed and cancelled attempts included.

    By outcome, each attempt counts once: useful; failed_attempt; rejected_handoff (the run whose handoff was
    rejected); failed_run; cancelled (the attempt, its run or its task); failed_task. Attempts without a known price
    (unpriced) or with an unknown end (unknown) are counted beside the cost, not in it.
    """
    if tenant is not None:
        check_tenant_id(tenant)
    if agent is not None:
        check_agent_id(agent)
    if decision is not None:
        _decision(tenant, decision, [agent, by, limit], data, json_)
        return
    key = by or ("tenant" if tenant is None else "agent")
    if key not in COST_KEYS:
        raise InvalidInputError(f"--by {key!r}: choose from {', '.join(COST_KEYS)}")

    async def work(hw: Headwater) -> list[CostRow]:
        if tenant is not None:
            await hw.caught_up(tenant)
        return await ledger.costs(hw.pool, by=key, tenant_id=tenant, agent_id=agent, days=days, limit=limit)  # type: ignore[arg-type]  # checked above

    rows = connected(read_settings(data=data), work)
    if json_:
        for row in rows:
            print_json(row.as_dict(key))
        return
    if key == "outcome":
        rows.sort(key=lambda row: OUTCOMES.index(row.key))
    whose = " and ".join(filter(None, [tenant and f"tenant {tenant}", agent and f"agent {agent}"])) or "all tenants"
    first = f", the dearest {limit}" if limit is not None and len(rows) == limit else ""
    out.print(cost_table(f"Costs of {whose} by {key}, last {days} days{first}", key, rows))


def _decision(tenant: str | None, event_id: str, others: Sequence[object], data: DataOption, json_: bool) -> None:
    if tenant is None:
        raise InvalidInputError("--decision needs --tenant: an event is one tenant's")
    if any(value is not None for value in others):
        raise InvalidInputError("--decision goes without --agent, --by and --limit: it shows one tree, by agent")

    async def work(hw: Headwater) -> DecisionCosts:
        await hw.caught_up(tenant)
        return await ledger.decision_costs(hw.pool, tenant, event_id)

    found = connected(read_settings(data=data), work)
    if json_:
        print_json(found.as_dict())
        return
    title = f"Costs of {found.type} {found.event_id} and everything under it, task {found.task_id}"
    out.print(cost_table(title, "agent", found.agents))


def cost_table(title: str, by: str, rows: Sequence[CostRow]) -> Table:
    """Costs with a line of totals."""
    total = total_of("total", list(rows))
    table = Table(title=title, title_justify="left", show_footer=len(rows) > 1)
    table.add_column(by, footer=total.key)
    table.add_column("cost (USD)", justify="right", footer=plain(total.cost_usd))
    for name in _COUNTS:
        table.add_column(name, justify="right", footer=f"{getattr(total, name):,}")
    for row in rows:
        counts = [f"{getattr(row, name):,}" for name in _COUNTS]
        table.add_row(escape(row.key), plain(row.cost_usd), *counts)
    return table


_COUNTS = ("tokens", "attempts", "failed", "unpriced", "unknown")
