"""The export loop: take, send, and only then forget. An outage stops it and nothing else.

Each span is sent once. Where nobody knows whether a request arrived (the connection broke, the server answered 500, or
this process died), its spans are looked up before those that are missing are sent again. A server may take a while to
show what it has, so a span counts as missing after `settle_s` only.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog

from projections.db import Pool, database_errors
from projections.langfuse.outbox import OnItsWay, Outbox
from projections.langfuse.spans import Span, SpanMaker
from projections.langfuse.wire import LangfuseServer, LookUpError, LookUpUnsupportedError, SendResult
from schemas.errors import UnavailableError

logger = structlog.get_logger(__name__)

MAX_BYTES = 2_000_000
"""A request's size before compression; one event that is larger travels alone."""


@dataclass(frozen=True, slots=True)
class ExporterOptions:
    """How the exporter behaves."""

    content: bool = True
    settle_s: float = 60.0
    """How long the server may take to show what it was sent."""
    poll_s: float = 1.0
    first_backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    max_spans: int = 200
    """In one request."""


class Exporter:
    """Exports the archive of one database to one Langfuse project. Of several on a database, one works at a time."""

    def __init__(self, pool: Pool, server: LangfuseServer, options: ExporterOptions | None = None) -> None:
        self._pool = pool
        self._server = server
        self._options = options or ExporterOptions()
        self._backoff_s = 0.0
        self._trouble = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Export until `stop` is set; then the request that is on its way is waited for."""
        while not stop.is_set():
            try:
                with database_errors():
                    async with self._pool.acquire() as conn:
                        outbox = Outbox(conn)
                        # Given back with the connection.
                        if await outbox.lock():
                            await self._export(outbox, stop)
            except UnavailableError as error:
                self._failed(str(error))
            except Exception:
                # Whatever it is, the projector beside it must go on, and the export must be tried again.
                logger.exception("langfuse_export_crashed")
                self._failed("the exporter crashed")
            await _wait(stop, max(self._backoff_s, self._options.poll_s))

    async def _export(self, outbox: Outbox, stop: asyncio.Event) -> None:
        while not stop.is_set():
            wait_s = await self.round(outbox)
            if wait_s:
                await _wait(stop, wait_s)

    async def round(self, outbox: Outbox) -> float:
        """One step. Returns how many seconds to wait before the next one."""
        waiting = await outbox.waiting()
        if not waiting:
            taken = await outbox.take()
            if taken is None:
                return self._options.poll_s
            return await self._send_all(outbox, taken)
        doubtful = [item for item in waiting if item.sent_s_ago is not None]
        if doubtful:
            return await self._settle(outbox, doubtful)
        await outbox.sending(waiting)
        return await self._send_all(outbox, waiting)

    async def _settle(self, outbox: Outbox, doubtful: Sequence[OnItsWay]) -> float:
        """Find out which of these the server has."""
        old = [item for item in doubtful if (item.sent_s_ago or 0) >= self._options.settle_s]
        try:
            there = await self._server.look_up({item.trace_id for item in doubtful})
        except LookUpUnsupportedError as error:
            there = set()
            if old:
                logger.warning("langfuse_sent_again_unseen", spans=len(old), why=str(error))
        except LookUpError as error:
            return self._failed(str(error))
        await outbox.delivered([item for item in doubtful if item.span_id in there])
        missing = [item for item in doubtful if item.span_id not in there]
        lost = [item for item in old if item.span_id not in there]
        await outbox.not_arrived(lost)
        logger.info("langfuse_looked_up", found=len(doubtful) - len(missing), missing=len(lost))
        if len(lost) == len(missing):
            return 0
        return min(max(self._options.poll_s, self._options.settle_s / 6), self._options.settle_s)

    async def _send_all(self, outbox: Outbox, items: Sequence[OnItsWay]) -> float:
        """Send what was marked as sent, in requests of a bounded size."""
        rest = list(items)
        for batch in _batches(items, self._options.max_spans):
            made = await self._make(outbox, batch)
            result = await self._send(outbox, made)
            rest = rest[len(batch) :]
            if result is not None:
                await outbox.not_arrived(rest)
                return self._failed(result.error, result.retry_after_s)
        if self._trouble:
            logger.info("langfuse_back")
        self._trouble, self._backoff_s = "", 0.0
        return 0

    async def _make(self, outbox: Outbox, items: Sequence[OnItsWay]) -> list[tuple[OnItsWay, Span]]:
        content = self._options.content
        found = await outbox.surroundings(items, content=content)
        makers = {tenant: SpanMaker(near.related, near.blobs, content=content) for tenant, near in found.items()}
        alone = SpanMaker({}, {}, content=content)
        made = []
        for item in items:
            try:
                made.append((item, makers.get(item.event.tenant_id, alone).make(item.event)))
            except Exception as error:
                # One odd event must not hold up the others for ever.
                logger.exception("langfuse_span_not_made", tenant=item.event.tenant_id, event_id=item.event.id)
                await outbox.refused(item, f"{type(error).__name__}: {error}")
        return made

    async def _send(self, outbox: Outbox, made: Sequence[tuple[OnItsWay, Span]]) -> SendResult | None:
        """Send one request; what the server refuses for good is found by halving. A result means: stop for now."""
        if not made:
            return None
        items = [item for item, _ in made]
        result = await self._server.send([span for _, span in made])
        match result.outcome:
            case "delivered":
                await outbox.delivered(items)
            case "doubtful":
                return result
            case "not_taken":
                await outbox.not_arrived(items)
                return result
            case "refused" if len(made) > 1:
                middle = len(made) // 2
                failed = await self._send(outbox, made[:middle])
                if failed is not None:
                    await outbox.not_arrived(items[middle:])
                    return failed
                return await self._send(outbox, made[middle:])
            case "refused":
                item, span = made[0]
                smaller = span.without_content()
                if smaller is not None:
                    return await self._send(outbox, [(item, smaller)])
                logger.error(
                    "langfuse_span_refused", tenant=item.event.tenant_id, event_id=item.event.id, error=result.error
                )
                await outbox.refused(item, result.error)
        return None

    def _failed(self, trouble: str, retry_after_s: float | None = None) -> float:
        if trouble != self._trouble:
            logger.warning("langfuse_away", error=trouble, lost="nothing: the export goes on from where it stands")
            self._trouble = trouble
        options = self._options
        self._backoff_s = min(max(self._backoff_s * 2, options.first_backoff_s), options.max_backoff_s)
        return max(self._backoff_s, min(retry_after_s or 0, options.max_backoff_s))


def _batches(items: Sequence[OnItsWay], max_spans: int) -> Iterator[list[OnItsWay]]:
    batch: list[OnItsWay] = []
    size = 0
    for item in items:
        if batch and (len(batch) == max_spans or size + item.size_bytes > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size_bytes
    if batch:
        yield batch


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
