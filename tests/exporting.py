"""The Langfuse exporter as a test runs it: quick, against a fake, over logs with a bit of everything."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from projections.db import Pool
from projections.langfuse import Exporter, ExporterOptions, LangfuseServer, export_status
from projections.runner import Runner
from schemas.bodies import (
    AgentCompleted,
    AgentFailed,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    SupervisorAnswered,
    TaskCompleted,
    TaskFailed,
    TaskSubmitted,
)
from schemas.handoff import HandoffProposal
from schemas.money import TokenCounts
from streams.connection import Streams
from tests.fake_langfuse import PUBLIC_KEY, SECRET_KEY, FakeLangfuse, StoredSpan
from tests.logbook import Logbook
from tests.processes import until

SPANS_PER_TASK = 9


def write_task(book: Logbook, task: str, *, session: str = "s-1") -> None:
    """A task with two agents, a question, a handoff rejected and one accepted, a failed and a priced attempt."""
    more: dict[str, Any] = {"task": task, "session": session}
    first, second, check = f"{task}.read", f"{task}.write", f"{task}.check"
    submitted = book.add(TaskSubmitted(task_type="report", text=f"write {task}"), source="user", **more)
    failed: dict[str, Any] = {
        "status": "error",
        "tokens": None,
        "cost_usd": "0",
        "cost_status": "not_billed",
        "http_status": 429,
    }
    book.attempt(call=first, agent="reader", error_class="RateLimitError", error="slow down", **failed, **more)
    book.attempt(
        call=first,
        agent="reader",
        tokens=TokenCounts(input_uncached=10, cache_read=20, cache_write=5, output_text=7, output_reasoning=3),
        cost_usd="0.0000123456789",
        attempt=2,
        request={"messages": [{"role": "user", "content": f"secret of {book.tenant_id}"}]},
        response={"text": f"answer to {book.tenant_id}"},
        **more,
    )
    done = AgentCompleted(agent_id="reader", call_id=first, delivery=1, handed_over=True, duration_us=1_500_000)
    book.add(done, source="reader", **more)
    payload = HandoffProposal(
        source_agent_id="reader",
        target_agent_id="writer",
        tenant_id=book.tenant_id,
        payload_type="research_result",
        content={"notes": "n"},
        confidence=0.9,
        call_chain=("user", "supervisor", "reader"),
    )
    proposed = book.add(HandoffProposed(call_id=first, payload=payload), source="reader", **more)
    judged: dict[str, Any] = {
        "source_agent_id": "reader",
        "target_agent_id": "writer",
        "payload_type": "research_result",
        "strictness": "strict",
        "proposal_event_id": proposed.id,
    }
    book.attempt(call=check, agent="supervisor", tokens=TokenCounts(input_uncached=4), cost_usd="0.01", **more)
    answer = SupervisorAnswered(
        call_id=check, question="check", delivery=1, answer={"grounded": True, "reasons": []}, duration_us=250_000
    )
    book.add(answer, **more)
    accepted = HandoffAccepted(checks=("structural", "semantic"), verification="verified", call_id=second, **judged)
    book.add(accepted, parent=proposed, **more)
    unpriced: dict[str, Any] = {"cost_usd": None, "cost_status": "unpriced", "rates": None}
    book.attempt(call=second, agent="writer", model="openai/unheard-of", **unpriced, **more)
    book.add(
        AgentCompleted(agent_id="writer", call_id=second, delivery=1, result={"text": "done"}, duration_us=500_000),
        source="writer",
        **more,
    )
    end = TaskCompleted(result={"text": "done"}, routed_by="rules", agent_results={"writer": {"text": "done"}})
    book.add(end, parent=submitted, **more)


def write_failed_task(book: Logbook, task: str) -> None:
    """A task whose handoff is rejected and whose agent then fails."""
    call = f"{task}.read"
    book.add(TaskSubmitted(task_type="report", text="fail"), task=task, source="user")
    rejected = HandoffRejected(
        source_agent_id="reader",
        target_agent_id="nobody",
        payload_type="status_update",
        strictness="lenient",
        reasons=("agent 'nobody' is not registered",),
        returned_to="supervisor",
    )
    book.add(rejected, task=task)
    book.add(
        AgentFailed(
            agent_id="reader", call_id=call, delivery=1, error_class="ValueError", error="no notes", duration_us=1
        ),
        task=task,
        source="reader",
    )
    book.add(TaskFailed(reason="reader failed: no notes"), task=task)


async def archive(pool: Pool, streams: Streams, *books: Logbook, start: int = 0) -> None:
    """Apply the logs, from event `start` on, to every projection."""
    await Runner(pool, streams.log).apply([book.batch(start) for book in books])


@asynccontextmanager
async def exporter(pool: Pool, fake: FakeLangfuse, **options: Any) -> AsyncIterator[None]:
    """A running exporter that waits as little as can be."""
    quick = {"poll_s": 0.02, "first_backoff_s": 0.02, "max_backoff_s": 0.2, "settle_s": 0.5, "max_spans": 7}
    server = LangfuseServer(fake.url, PUBLIC_KEY, SECRET_KEY, timeout_s=5)
    stop = asyncio.Event()
    running = asyncio.create_task(Exporter(pool, server, ExporterOptions(**quick | options)).run(stop))
    try:
        yield
    finally:
        stop.set()
        await running
        await server.close()


async def all_exported(pool: Pool) -> None:
    """Wait until everything that is archived is exported or refused."""

    async def done() -> bool:
        return (await export_status(pool)).done

    await until(done, "the whole archive was exported")


def assert_once(spans: list[StoredSpan], count: int) -> None:
    """Each span is there exactly once, and there are `count`."""
    doubled = {key: n for key, n in Counter(span.id for span in spans).items() if n > 1}
    assert not doubled
    assert len(spans) == count
