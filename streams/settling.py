"""Writing what a handler returned: the events that end a call, or the commits of a leased round."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from faststream import BaseMiddleware
from faststream.message import StreamMessage

from schemas.errors import InvalidInputError
from schemas.event import AgentEvent, encode
from streams.connection import Streams
from streams.functions import Commit, FunctionError
from streams.retries import parked_calls
from streams.subscriber import LeasedRound, TakenCall

logger = structlog.get_logger(__name__)


def settle_middleware(streams: Streams) -> type[BaseMiddleware[Any, Any]]:
    """The middleware that writes what a handler returned."""

    class SettleMiddleware(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[Any]) -> None:
            result = await call_next(msg)
            message: TakenCall | LeasedRound = msg.raw_message
            if isinstance(message, TakenCall):
                await _settle(streams, message, result)
            else:
                await _commit(streams, message, result)

    return SettleMiddleware


async def _settle(streams: Streams, taken: TakenCall, events: Sequence[AgentEvent]) -> None:
    blobs: dict[str, bytes] = {}
    try:
        facts = [encode(event, blobs) for event in events]
    except InvalidInputError as error:
        if taken.instead is None:
            raise
        events, blobs = taken.instead(error), {}  # another run would give the same, at the same price
        facts = [encode(event, blobs) for event in events]
    parked = parked_calls(taken.delivery, events)
    await streams.functions.settle(taken.delivery, facts=facts, blobs=blobs, parked=parked)


async def _commit(streams: Streams, leased: LeasedRound, commits: Sequence[Commit]) -> None:
    try:
        written = await streams.functions.commit(leased.reader, list(zip(leased.batches, commits, strict=True)))
    except FunctionError:
        # Named in the log. That tenant's lease ends, and its batch is tried again; the others are written.
        return
    for batch, is_written in zip(leased.batches, written, strict=True):
        if not is_written:
            logger.warning("stale_lease", reader=leased.reader, tenant=batch.tenant_id)
