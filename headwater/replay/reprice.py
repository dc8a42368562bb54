"""What recorded tokens would have cost at other prices, or with other models. The ledger does not move.

The tokens are those that the recorded model used: another model would have used others, and would have answered
otherwise. So the sum is exact for other *prices*, and an estimate for another *model*, of unknown quality.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from handlers.prices import PriceTable
from headwater.replay.moments import read
from headwater.replay.recording import Recording
from projections.projection import START, Position
from schemas.bodies import LlmAttempted
from schemas.money import plain

ZERO = Decimal(0)
EMBEDDING = "embedding"
"""The tier whose models bill what goes in only."""
Progress = Callable[[int], None]


@dataclass(slots=True)
class Line:
    """One agent with one model: what it cost, and what it would have cost."""

    agent_id: str
    model: str
    repriced_as: str
    attempts: int = 0
    tokens: int = 0
    recorded_usd: Decimal = ZERO
    repriced_usd: Decimal = ZERO
    unpriced: int = 0
    """Attempts that the new table has no price for: they are in neither sum."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "agent": self.agent_id,
            "model": self.model,
            "repriced_as": self.repriced_as,
            "attempts": self.attempts,
            "tokens": self.tokens,
            "recorded_usd": plain(self.recorded_usd),
            "repriced_usd": plain(self.repriced_usd),
            "difference_usd": plain(self.repriced_usd - self.recorded_usd),
            "unpriced": self.unpriced,
        }


@dataclass(slots=True)
class Repriced:
    """Lines by agent and model, the largest difference first."""

    price_table: str
    lines: list[Line] = field(default_factory=list)

    @property
    def recorded_usd(self) -> Decimal:
        """What it cost, of all that could be priced again."""
        return sum((line.recorded_usd for line in self.lines), ZERO)

    @property
    def repriced_usd(self) -> Decimal:
        """What it would have cost."""
        return sum((line.repriced_usd for line in self.lines), ZERO)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "price_table": self.price_table,
            "recorded_usd": plain(self.recorded_usd),
            "repriced_usd": plain(self.repriced_usd),
            "difference_usd": plain(self.repriced_usd - self.recorded_usd),
            "quality": "unknown: the recording cannot say what another model would have answered",
            "lines": [line.as_dict() for line in self.lines],
        }


async def reprice(
    recording: Recording,
    tenants: list[str],
    prices: PriceTable,
    *,
    models: Mapping[str, str] | None = None,
    since: Position = START,
    progress: Progress = lambda attempts: None,
) -> Repriced:
    """Price every attempt that has tokens again. `models` maps a recorded model to the one to price it as."""
    lines: dict[tuple[str, str], Line] = {}
    seen = 0
    for tenant_id in tenants:
        async for position, fields in recording.entries(tenant_id, types={LlmAttempted.type}, after=since):
            event = read(tenant_id, position, fields)
            if event is None or not isinstance(event.body, LlmAttempted) or event.body.tokens is None:
                continue
            _add(lines, event.body, prices, models or {})
            seen += 1
            progress(seen)
    ordered = sorted(lines.values(), key=lambda line: (-abs(line.repriced_usd - line.recorded_usd), line.agent_id))
    return Repriced(prices.sha256, ordered)


def _add(lines: dict[tuple[str, str], Line], body: LlmAttempted, prices: PriceTable, models: Mapping[str, str]) -> None:
    assert body.tokens is not None
    model = body.requested_model
    priced_as = models.get(model) or models.get(model.partition("/")[2]) or model
    line = lines.setdefault((body.agent_id, model), Line(body.agent_id, model, priced_as))
    charge = prices.charge(priced_as, body.tokens, output=body.tier != EMBEDDING)
    line.attempts += 1
    line.tokens += body.tokens.total
    if "cost_usd" not in charge or body.cost_usd is None:
        line.unpriced += 1
        return
    line.recorded_usd += Decimal(body.cost_usd)
    line.repriced_usd += Decimal(charge["cost_usd"])
