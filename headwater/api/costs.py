"""What was spent, over HTTP."""

from typing import Annotated

from fastapi import Path, Query

from headwater.api.access import Reader, ReaderOfAll
from headwater.api.models import TASK_ID_PATTERN, CostsOut, DecisionOut
from headwater.api.parts import Connection, router
from headwater.api.problems import problems
from projections.costs import CostKey
from schemas.ids import check_agent_id

costs = router("costs")


@costs.get("/costs", summary="What was spent, from the ledger")
async def spent(
    access: ReaderOfAll,
    hw: Connection,
    by: Annotated[
        CostKey | None, Query(description="What to group by: the agent, or for all tenants the tenant.")
    ] = None,
    agent: Annotated[
        str | None, Query(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$", description="Only this agent.")
    ] = None,
    days: Annotated[int, Query(ge=1, le=36500, description="How far back: whole days in UTC, today included.")] = 30,
    limit: Annotated[int, Query(ge=1, le=10_000, description="At most so many rows, the dearest.")] = 1000,
) -> CostsOut:
    """Exact costs of the key's tenant, the dearest group first. An operator's key without a tenant sees all tenants.

    Attempts without a price (`unpriced`) or of unknown outcome (`unknown`) are counted, and not in `cost_usd`.
    """
    tenant = access.tenant_id
    key: CostKey = by or ("tenant" if tenant is None else "agent")
    if agent is not None:
        check_agent_id(agent)
    rows = await hw.costs(by=key, tenant_id=tenant, agent_id=agent, days=days, limit=limit)
    return CostsOut(tenant=tenant, by=key, days=days, rows=[row.as_dict(key) for row in rows])


@costs.get("/costs/decisions/{event_id}", summary="What one decision cost", responses=problems(404))
async def of_decision(
    caller: Reader,
    hw: Connection,
    event_id: Annotated[str, Path(pattern=TASK_ID_PATTERN, description="Any event of the log, by its id.")],
) -> DecisionOut:
    """What an event cost with everything that followed from it, by agent: of a `task.submitted`, its whole task."""
    return DecisionOut(**(await hw.decision_costs(caller.tenant_id, event_id)).as_dict())
