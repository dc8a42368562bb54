"""What tasks with a budget have spent: kept in the log's own server, so that every worker sees it at once.

Whole picodollars (10⁻¹² US dollars), because Redis adds integers exactly. A part of one counts as one.
"""

from decimal import ROUND_CEILING, Decimal

from streams.connection import Streams
from streams.wire import redis_errors

PICOS = Decimal(10**12)


def picos(usd: Decimal) -> int:
    """US dollars as whole picodollars, rounded up."""
    return int((usd * PICOS).to_integral_value(ROUND_CEILING))


async def spent_usd(streams: Streams, tenant_id: str, task_id: str) -> Decimal:
    """What an open task with a budget has spent so far, in US dollars."""
    with redis_errors():
        found = await streams.redis.hget(streams.keys.spent(tenant_id), task_id)
    return Decimal(int(found or 0)) / PICOS
