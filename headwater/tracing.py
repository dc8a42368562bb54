"""Langfuse (contract row E1): the exporter of the log beside the projector, and what an agent's own spans belong to.

What Headwater itself knows (tasks, agents' runs, LLM attempts, handoffs) reaches Langfuse from the log, through
`projections.langfuse`, and survives an outage. `AgentTracer` is for the rest: spans that a user's code makes with the
Langfuse SDK. They get the tenant, session and agent, and stand under the agent's run; the SDK drops them when the
server is away.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import structlog

from headwater.settings import Settings, get_settings
from projections.db import Pool
from projections.langfuse import Exporter, ExporterOptions, LangfuseServer
from schemas.trace_ids import call_span_id, trace_id

if TYPE_CHECKING:
    from langfuse import Langfuse

logger = structlog.get_logger(__name__)

STOP_S = 20.0
"""How long a request that is on its way may take when the projector stops; then it counts as doubtful."""


def init_langfuse(settings: Settings | None = None) -> "AgentTracer":
    """The tracer of this process. Without keys it does nothing, and a log line says so.

    With keys it makes the SDK's client, so that `langfuse.get_client()` and `@observe` in agents' code use the same
    project. The server need not be there.
    """
    settings = settings or get_settings()
    if not _is_on(settings):
        return AgentTracer(None)
    # The import takes a second; nobody without keys shall wait for it.
    from langfuse import Langfuse

    client = Langfuse(
        public_key=settings.langfuse_public_key,
        secret_key=settings.langfuse_secret_key,
        base_url=settings.langfuse_host,
    )
    logger.info("langfuse_on", host=settings.langfuse_host)
    return AgentTracer(client)


class AgentTracer:
    """Binds tenant, session and agent to logs and to the user's own Langfuse spans. Made by `init_langfuse`."""

    def __init__(self, client: "Langfuse | None") -> None:
        """`client`: the SDK's client, or None for a tracer that touches logs only."""
        self._client = client

    @property
    def enabled(self) -> bool:
        """Are there keys?"""
        return self._client is not None

    @contextlib.contextmanager
    def trace_agent_execution(
        self, agent_id: str, tenant_id: str, session_id: str, *, task_id: str | None = None, call_id: str | None = None
    ) -> Iterator[None]:
        """Everything inside belongs to this agent's run: log lines have its tenant, session and agent, and the spans
        that the Langfuse SDK makes have them as user, session, tags and metadata.

        With `task_id` and `call_id`, as the runner passes them, such spans stand in the task's trace under the run.
        """
        with contextlib.ExitStack() as stack:
            names = {"agent": agent_id, "tenant": tenant_id, "session": session_id, "task": task_id, "call": call_id}
            bound = {name: value for name, value in names.items() if value is not None}
            stack.enter_context(structlog.contextvars.bound_contextvars(**bound))
            if self._client is not None:
                if task_id is not None and call_id is not None:
                    stack.enter_context(_under(tenant_id, task_id, call_id))
                stack.enter_context(_attributes(agent_id, tenant_id, session_id))
            yield

    def trace_handoff(self, source_agent: str, target_agent: str, tenant_id: str, valid: bool) -> None:
        """Say in Langfuse that a handoff was judged outside the log, such as by a `HandoffProtocol` used by itself.

        Handoffs between agents of a team are exported from the log, with their reasons: do not trace them again.
        """
        if self._client is None:
            return
        with _attributes(source_agent, tenant_id, None):
            self._client.create_event(
                name="handoff.accepted" if valid else "handoff.rejected",
                level="DEFAULT" if valid else "WARNING",
                metadata={
                    "source_agent": source_agent,
                    "target_agent": target_agent,
                    "tenant_id": tenant_id,
                    "valid": valid,
                },
            )

    def flush(self) -> None:
        """Wait until the SDK has sent the user's own spans, or has given up. Blocks."""
        if self._client is not None:
            self._client.flush()


@contextlib.asynccontextmanager
async def exporting(settings: Settings, pool: Pool) -> AsyncIterator[None]:
    """Export the archive to Langfuse for as long as this lasts, if there are keys. Nothing inside waits for it."""
    if not _is_on(settings):
        yield
        return
    assert settings.langfuse_host is not None
    assert settings.langfuse_public_key is not None
    assert settings.langfuse_secret_key is not None
    server = LangfuseServer(settings.langfuse_host, settings.langfuse_public_key, settings.langfuse_secret_key)
    options = ExporterOptions(content=settings.langfuse_content, settle_s=settings.langfuse_settle_s)
    stop = asyncio.Event()
    logger.info("langfuse_on", host=settings.langfuse_host)
    export = asyncio.create_task(Exporter(pool, server, options).run(stop), name="langfuse-exporter")
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait([export], timeout=STOP_S)
        export.cancel()
        await asyncio.gather(export, return_exceptions=True)
        await server.close()


def _is_on(settings: Settings) -> bool:
    if settings.has_langfuse:
        return True
    names = {
        "LANGFUSE_PUBLIC_KEY": settings.langfuse_public_key,
        "LANGFUSE_SECRET_KEY": settings.langfuse_secret_key,
        "LANGFUSE_HOST": settings.langfuse_host,
    }
    missing = [name for name, value in names.items() if not value]
    # Keys without a host, or the like, are more likely a mistake than a wish.
    log = logger.info if len(missing) == len(names) else logger.warning
    log("langfuse_off", missing=missing)
    return False


def _attributes(agent_id: str, tenant_id: str, session_id: str | None) -> contextlib.AbstractContextManager[object]:
    from langfuse import propagate_attributes

    return propagate_attributes(
        user_id=tenant_id,
        session_id=session_id,
        tags=[f"agent:{agent_id}", f"tenant:{tenant_id}"],
        metadata={"agent_id": agent_id, "tenant_id": tenant_id},
    )


def _under(tenant_id: str, task_id: str, call_id: str) -> contextlib.AbstractContextManager[object]:
    """Make the span that the exporter will make of this run the parent of what comes."""
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

    context = SpanContext(
        trace_id=int(trace_id(tenant_id, task_id), 16),
        span_id=int(call_span_id(tenant_id, call_id), 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    return use_span(NonRecordingSpan(context))
