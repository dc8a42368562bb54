"""The command `costs`: what was spent, on what, what for, and under which decision."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from headwater.cli.common import DataOption, JsonOption, connected, print_json, read_settings
from headwater.cli.tables import print_table, table_of
from headwater.cli.where import HERE, Where, anywhere
from headwater.client import Headwater
from headwater.gateway import Gateway
from projections.cost_tracker import Comparison
from projections.costs import COST_KEYS, CostRow, DecisionCosts, total_of
from projections.outcomes import OUTCOMES
from schemas.errors import DeviationError, InvalidInputError
from schemas.ids import check_agent_id, check_tenant_id
from schemas.money import plain

_Reach = Callable[[Callable[[Gateway], Awaitable[Any]]], Any]
"""`reached`, with the options that say where."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("costs")(anywhere(costs))


def costs(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Only this agent, over all tenants.")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help=f"{', '.join(COST_KEYS)}.",
            show_default="agent, or without --tenant tenant",
            autocompletion=lambda: list(COST_KEYS),
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=36500, help="How far back: whole days in UTC, today included.")] = 30,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows, the dearest.", show_default="all")
    ] = None,
    decision: Annotated[
        str | None,
        typer.Option("--decision", "--under", help="An event of --tenant: what it cost with everything under it."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="langfuse", help="Print the ledger beside Langfuse, and the difference.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="With --compare: exit 1 if the differences are a larger share of the ledger.")
    ] = 0.01,
    where: Where = HERE,
    json_: JsonOption = False,
) -> None:
    """Print what was spent. From the ledger: exact, failed and cancelled attempts included.

    By outcome, each attempt counts once: useful; failed_attempt; rejected_handoff (the run whose handoff was
    rejected); failed_run; cancelled (the attempt, its run or its task); failed_task. Attempts without a known price
    (unpriced) or with an unknown end (unknown) are counted beside the cost, not in it.
    """
    _check(tenant, agent)
    if decision is not None:
        _refuse("--decision", {"--agent": agent, "--by": by, "--limit": limit, "--compare": compare})
        _decision(tenant, decision, where.ask, json_)
    elif compare is not None:
        _refuse("--compare", {"--by": by, "--limit": limit})
        if compare != "langfuse":
            raise InvalidInputError(f"--compare {compare!r}: the ledger can be compared with langfuse")
        if where.is_remote:
            raise InvalidInputError(
                "--compare goes without --url (HEADWATER_URL): Langfuse's keys are where its Headwater is"
            )
        _compare(tenant, agent, days, tolerance, where.data, json_)
    else:
        by = by or ("tenant" if tenant is None else "agent")
        _groups(tenant, agent, by, days, limit, where.ask, json_)


def _check(tenant: str | None, agent: str | None) -> None:
    if tenant is not None:
        check_tenant_id(tenant)
    if agent is not None:
        check_agent_id(agent)


def _refuse(option: str, others: Mapping[str, object]) -> None:
    if given := [name for name, value in others.items() if value is not None]:
        raise InvalidInputError(f"{option} goes without {given[0]}: it has a grouping of its own")


def _groups(
    tenant: str | None, agent: str | None, key: str, days: int, limit: int | None, reach: _Reach, json_: bool
) -> None:
    if key not in COST_KEYS:
        raise InvalidInputError(f"--by {key!r}: choose from {', '.join(COST_KEYS)}")
    rows: list[CostRow] = reach(
        lambda hw: hw.costs(by=key, tenant_id=tenant, agent_id=agent, days=days, limit=limit)  # type: ignore[arg-type]  # checked above
    )
    if json_:
        for row in rows:
            print_json(row.as_dict(key))
        return
    if key == "outcome":
        rows.sort(key=lambda row: OUTCOMES.index(row.key))
    first = f", the dearest {limit}" if limit is not None and len(rows) == limit else ""
    print_table(cost_table(f"Costs of {_whose(tenant, agent)} by {key}, last {days} days{first}", key, rows))


def _decision(tenant: str | None, event_id: str, reach: _Reach, json_: bool) -> None:
    if tenant is None:
        raise InvalidInputError("--decision needs --tenant: an event is one tenant's")
    found: DecisionCosts = reach(lambda hw: hw.decision_costs(tenant, event_id))
    if json_:
        print_json(found.as_dict())
        return
    title = f"Costs of {found.type} {found.event_id} and everything under it, task {found.task_id}"
    print_table(cost_table(title, "agent", found.agents))


def _compare(tenant: str | None, agent: str | None, days: int, tolerance: float, data: DataOption, json_: bool) -> None:
    async def work(hw: Headwater) -> Comparison:
        if tenant is not None:
            await hw.caught_up(tenant)
        return await hw.cost_tracker.compare(tenant_id=tenant, agent_id=agent, period_days=days)

    found = connected(read_settings(data=data), work)
    within = found.deviation <= Decimal(str(tolerance))
    if json_:
        print_json(found.as_dict() | {"tolerance": tolerance, "within_tolerance": within})
    else:
        print_table(_comparison_table(f"Costs of {_whose(tenant, agent)}, last {days} days (USD)", found))
    if not within:
        raise DeviationError(
            f"the ledger and Langfuse differ by {found.deviation:.4%} of the ledger, more than {tolerance:.4%}. The "
            "ledger is the truth; Langfuse shows what it was sent after some 30 seconds, and counts what it got "
            "twice twice"
        )


def _comparison_table(title: str, found: Comparison) -> Table:
    numbers = ("ledger", "langfuse", "difference", "attempts", "in langfuse")
    table = table_of(found.by, *numbers, numbers=numbers, title=title)
    totals = (found.ledger_usd, found.langfuse_usd, found.langfuse_usd - found.ledger_usd)
    _foot(table, ("total", *map(plain, totals), "", ""))
    for line in found.lines:
        money = (line.ledger.cost_usd, line.langfuse.cost_usd, line.difference_usd)
        counts = (f"{line.ledger.attempts:,}", f"{line.langfuse.attempts:,}")
        table.add_row(escape(line.key), *map(plain, money), *counts)
    return table


def _whose(tenant: str | None, agent: str | None) -> str:
    return " and ".join(filter(None, [tenant and f"tenant {tenant}", agent and f"agent {agent}"])) or "all tenants"


def cost_table(title: str, by: str, rows: Sequence[CostRow]) -> Table:
    """Costs with a line of totals."""
    total = total_of("total", list(rows))
    # What did not happen needs no column; what did is never left out.
    counts = [name for name in _COUNTS if name in ("tokens", "attempts") or getattr(total, name)]
    table = table_of(by, "cost (USD)", *counts, numbers=("cost (USD)", *counts), title=title)
    if len(rows) > 1:
        _foot(table, (total.key, plain(total.cost_usd), *(f"{getattr(total, name):,}" for name in counts)))
    for row in rows:
        table.add_row(escape(row.key), plain(row.cost_usd), *(f"{getattr(row, name):,}" for name in counts))
    return table


def _foot(table: Table, cells: Sequence[str]) -> None:
    table.show_footer = True
    for column, cell in zip(table.columns, cells, strict=True):
        column.footer = cell


_COUNTS = ("tokens", "attempts", "failed", "unpriced", "unknown")
