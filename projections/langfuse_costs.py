"""Langfuse's opinion of what was spent, from its metrics interface. Advisory: the ledger is the truth.

Langfuse adds up what was exported to it. It shows a span some 15 to 30 seconds after it was sent, counts a span that
it was sent twice twice, and knows nothing of an attempt that has not been exported yet. An attempt belongs to the day
on which it started, here; in the ledger, to the one on which it ended.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx

from projections.costs import first_day
from schemas.errors import UnavailableError

MAX_ROWS = 1000
"""The most groups that one query gives; there are no further pages."""
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Costs of one agent or tenant. `attempts` counts LLM attempts, failed ones too."""

    cost_usd: Decimal = Decimal(0)
    tokens: int = 0
    attempts: int = 0


class LangfuseCosts:
    """Asks the Langfuse server at `host`, with the project's keys."""

    def __init__(self, host: str, public_key: str, secret_key: str) -> None:
        self._host = host.rstrip("/")
        self._keys = (public_key, secret_key)

    async def by_agent(self, tenant_id: str | None, days: int) -> dict[str, Spent]:
        """Agent → what was spent in the last `days` days, for one tenant or for all.

        Raises:
            UnavailableError: Langfuse cannot be reached, refuses the keys, has no metrics, or has too many groups.
        """
        rows = await self._ask("name", {"userId": tenant_id} if tenant_id else {}, days)
        found: dict[str, Spent] = {}
        for row in rows:
            _add(found, str(row["name"]), row)
        return found

    async def by_tenant(self, agent_id: str | None, days: int) -> dict[str, Spent]:
        """Tenant → what was spent in the last `days` days, by one agent or by all. Raises as `by_agent` does."""
        # A user cannot be grouped by, but every span has its tenant among its tags.
        rows = await self._ask("tags", {"name": agent_id} if agent_id else {}, days)
        found: dict[str, Spent] = {}
        for row in rows:
            for tag in row["tags"] or ():
                if tag.startswith("tenant:"):
                    _add(found, tag.removeprefix("tenant:"), row)
        return found

    async def _ask(self, dimension: str, equal: Mapping[str, str], days: int) -> list[dict[str, Any]]:
        from langfuse.api import AsyncLangfuseAPI  # its import takes a second, and few processes ask
        from langfuse.api.core.api_error import ApiError

        query = json.dumps(
            {
                "view": "observations",
                "dimensions": [{"field": dimension}],
                "metrics": [
                    {"measure": "totalCost", "aggregation": "sum"},
                    {"measure": "totalTokens", "aggregation": "sum"},
                    {"measure": "count", "aggregation": "count"},
                ],
                "filters": [
                    {"column": column, "operator": "=", "value": value, "type": "string"}
                    for column, value in {"type": "GENERATION", **equal}.items()
                ],
                "fromTimestamp": datetime.combine(first_day(days), time(), UTC).isoformat(),
                "toTimestamp": (datetime.now(UTC) + timedelta(minutes=1)).isoformat(),
                "config": {"row_limit": MAX_ROWS},
            }
        )
        public_key, secret_key = self._keys
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S) as http:
                api = AsyncLangfuseAPI(base_url=self._host, username=public_key, password=secret_key, httpx_client=http)
                rows: list[dict[str, Any]] = (await api.metrics.metrics(query=query)).data
        except ApiError as error:
            raise UnavailableError(f"Langfuse at {self._host}: {_reason(error.status_code)}") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise UnavailableError(f"Langfuse at {self._host} cannot be reached: {error!r}") from error
        if len(rows) >= MAX_ROWS:
            raise UnavailableError(
                f"Langfuse at {self._host} gives {MAX_ROWS} groups at most, and there are more: ask for one tenant or "
                "agent, or for fewer days"
            )
        return rows


def _reason(status: int | None) -> str:
    if status == httpx.codes.NOT_FOUND:
        return "it has no metrics of version 2 (404): they need a server that writes version 4 data"
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return f"it refused the keys ({status}): check LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY"
    return f"it answered with HTTP status {status}"


def _add(found: dict[str, Spent], key: str, row: Mapping[str, Any]) -> None:
    before = found.get(key, Spent())
    found[key] = Spent(
        before.cost_usd + _number(row["sum_totalCost"]),
        before.tokens + int(_number(row["sum_totalTokens"])),
        before.attempts + int(_number(row["count_count"])),
    )


def _number(value: Any) -> Decimal:
    """A number that may come as a string, or as null for a sum over nothing."""
    try:
        return Decimal(str(value or 0))
    except InvalidOperation as error:
        raise UnavailableError(f"Langfuse answered {str(value)[:80]!r} where a number belongs") from error
