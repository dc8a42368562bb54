"""What a tenant or an agent cost, for programs (contract row E2): from the ledger, or from Langfuse for comparison."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import asyncpg
import structlog

from projections.costs import CostRow, costs
from projections.db import Pool
from projections.langfuse_costs import LangfuseCosts, Spent
from schemas.errors import UnavailableError
from schemas.ids import check_agent_id, check_tenant_id
from schemas.money import exact_sum, plain

logger = structlog.get_logger(__name__)

Source = Literal["ledger", "langfuse"]


class CostTracker:
    """Answers from the ledger in PostgreSQL, and from Langfuse when asked to.

    Money in the answers is an exact `Decimal` in US dollars; `costs_json` turns an answer into JSON, where money is a
    string of plain decimal digits. An "invocation" is one LLM attempt, failed ones included. The period is whole days
    in UTC, today included. Where the source that was asked for is not there or does not answer, every number is zero
    and `source` is "unavailable", with the reason in the log.
    """

    def __init__(self, ledger: Pool | None = None, langfuse: LangfuseCosts | None = None) -> None:
        self._ledger = ledger
        self._langfuse = langfuse

    async def get_tenant_costs(
        self, tenant_id: str, period_days: int = 30, *, source: Source | None = None
    ) -> dict[str, Any]:
        """What a tenant spent, by agent.

        `source` None is the ledger where there is one, else Langfuse. Returns `{"tenant_id", "period_days", "agents":
        {agent: {"total_cost", "total_tokens", "invocation_count"}}, "total_cost", "source"}`.

        Raises:
            InvalidInputError: the tenant id or the period is not allowed.
        """
        check_tenant_id(tenant_id)
        found, used = await self._spent(source, tenant_id, None, period_days)
        return {
            "tenant_id": tenant_id,
            "period_days": period_days,
            "agents": {
                agent: {"total_cost": s.cost_usd, "total_tokens": s.tokens, "invocation_count": s.attempts}
                for agent, s in found.items()
            },
            "total_cost": exact_sum(s.cost_usd for s in found.values()),
            "source": used,
        }

    async def get_agent_costs(
        self, agent_id: str, period_days: int = 30, *, source: Source | None = None
    ) -> dict[str, Any]:
        """What an agent spent, by tenant: an administrator's question, over all tenants.

        Returns `{"agent_id", "period_days", "tenants": {tenant: {"total_cost", "total_tokens"}}, "total_cost",
        "source"}`; otherwise as `get_tenant_costs`.
        """
        check_agent_id(agent_id)
        found, used = await self._spent(source, None, agent_id, period_days)
        return {
            "agent_id": agent_id,
            "period_days": period_days,
            "tenants": {tenant: {"total_cost": s.cost_usd, "total_tokens": s.tokens} for tenant, s in found.items()},
            "total_cost": exact_sum(s.cost_usd for s in found.values()),
            "source": used,
        }

    async def compare(
        self, *, tenant_id: str | None = None, agent_id: str | None = None, period_days: int = 30
    ) -> "Comparison":
        """The ledger and Langfuse side by side: one agent's costs by tenant, or a tenant's (or everybody's) by agent.

        Raises:
            UnavailableError: one of the two is not there or does not answer; a comparison with zeros would mislead.
        """
        if self._langfuse is None:
            raise UnavailableError(
                "there is no Langfuse to compare with: set LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_HOST"
            )
        if self._ledger is None:
            raise UnavailableError("there is no ledger to compare with")
        here = await _from_ledger(self._ledger, tenant_id, agent_id, period_days)
        there = await _from_langfuse(self._langfuse, tenant_id, agent_id, period_days)
        lines = tuple(
            ComparedLine(key, here.get(key, Spent()), there.get(key, Spent()))
            for key in dict.fromkeys([*here, *sorted(there)])
        )
        return Comparison("agent" if agent_id is None else "tenant", lines)

    async def _spent(
        self, source: Source | None, tenant_id: str | None, agent_id: str | None, days: int
    ) -> tuple[dict[str, Spent], str]:
        if source not in (None, "ledger", "langfuse"):
            raise ValueError(f"source is {source!r}: choose 'ledger' or 'langfuse'")
        wanted = source or ("ledger" if self._ledger is not None else "langfuse")
        try:
            if wanted == "ledger" and self._ledger is not None:
                return await _from_ledger(self._ledger, tenant_id, agent_id, days), "ledger"
            if wanted == "langfuse" and self._langfuse is not None:
                return await _from_langfuse(self._langfuse, tenant_id, agent_id, days), "langfuse"
            reason = "not configured"
        except (UnavailableError, asyncpg.PostgresError) as error:
            reason = str(error)
        logger.warning("costs_unavailable", source=wanted, tenant=tenant_id, agent=agent_id, reason=reason)
        return {}, "unavailable"


async def _from_ledger(pool: Pool, tenant_id: str | None, agent_id: str | None, days: int) -> dict[str, Spent]:
    by: Literal["agent", "tenant"] = "agent" if agent_id is None else "tenant"
    rows = await costs(pool, by=by, tenant_id=tenant_id, agent_id=agent_id, days=days)
    return {row.key: _spent_of(row) for row in rows}


async def _from_langfuse(
    langfuse: LangfuseCosts, tenant_id: str | None, agent_id: str | None, days: int
) -> dict[str, Spent]:
    if agent_id is None:
        return await langfuse.by_agent(tenant_id, days)
    found = await langfuse.by_tenant(agent_id, days)
    return found if tenant_id is None else {key: spent for key, spent in found.items() if key == tenant_id}


def _spent_of(row: CostRow) -> Spent:
    return Spent(row.cost_usd, row.tokens, row.attempts)


@dataclass(frozen=True, slots=True)
class ComparedLine:
    """One agent (or tenant) in the ledger and in Langfuse."""

    key: str
    ledger: Spent
    langfuse: Spent

    @property
    def difference_usd(self) -> Decimal:
        """Langfuse less the ledger."""
        return exact_sum((self.langfuse.cost_usd, self.ledger.cost_usd.copy_negate()))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ledger beside Langfuse, by "agent" or "tenant"."""

    by: str
    lines: tuple[ComparedLine, ...]

    @property
    def ledger_usd(self) -> Decimal:
        """The ledger's total."""
        return exact_sum(line.ledger.cost_usd for line in self.lines)

    @property
    def langfuse_usd(self) -> Decimal:
        """Langfuse's total."""
        return exact_sum(line.langfuse.cost_usd for line in self.lines)

    @property
    def deviation(self) -> Decimal:
        """The lines' differences, regardless of sign, as a share of the ledger's total: 0.01 is one percent.

        Regardless of sign, so that too much here does not hide too little there. 1 if only Langfuse has costs.
        """
        apart = exact_sum(abs(line.difference_usd) for line in self.lines)
        if not self.ledger_usd:
            return Decimal(bool(apart))
        return apart / self.ledger_usd

    def as_dict(self) -> dict[str, Any]:
        """For JSON; money as strings of plain digits."""
        return {
            "by": self.by,
            "ledger_usd": plain(self.ledger_usd),
            "langfuse_usd": plain(self.langfuse_usd),
            "difference_usd": plain(self.langfuse_usd - self.ledger_usd),
            "deviation": float(self.deviation),
            "lines": [
                {
                    self.by: line.key,
                    "ledger_usd": plain(line.ledger.cost_usd),
                    "langfuse_usd": plain(line.langfuse.cost_usd),
                    "difference_usd": plain(line.difference_usd),
                    "ledger_attempts": line.ledger.attempts,
                    "langfuse_attempts": line.langfuse.attempts,
                }
                for line in self.lines
            ],
        }


def costs_json(answer: Any) -> Any:
    """An answer of `CostTracker` for JSON: every Decimal becomes a string of plain digits, and nothing is rounded."""
    if isinstance(answer, Decimal):
        return plain(answer)
    if isinstance(answer, dict):
        return {key: costs_json(value) for key, value in answer.items()}
    return answer
