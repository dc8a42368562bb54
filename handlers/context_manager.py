"""`context.compile`: the context for an agent's next request, compiled, recorded, and the same again (row D3)."""

import asyncio
import time
from dataclasses import asdict
from typing import Any

import orjson

from handlers.compiler import (
    CompiledContext,
    ContextParts,
    Remembered,
    Turn,
    WorkingContextCompiler,
    well_formed,
)
from handlers.journal import Journal
from handlers.memory import MAX_RESULTS, AgentMemory
from handlers.recall import Recall
from handlers.steps import recorded, request_hash, stamp
from schemas.bodies import ContextCompiled
from schemas.content import Json
from schemas.errors import InvalidInputError
from schemas.memory import MemoryEntry
from schemas.task import Task

MAX_MESSAGES = 8_000
"""More messages than the largest budget has tokens are never needed."""
QUERY_CHARS = 2_000
"""Of a long task, this much of its beginning is what memories are searched by."""


class ContextManager:
    """Puts together what an agent should see, and records what it saw."""

    def __init__(self, journal: Journal, recall: Recall, memory: AgentMemory) -> None:
        self._journal = journal
        self._recall = recall
        self._memory = memory

    async def compile(
        self, *, system: str, tier: str, task: str, query: str | None, memories: int, messages: int
    ) -> CompiledContext:
        """A context within the token budget of `tier`, ready for `context.llm.complete`.

        It has the system prompt, the session as it was when the task was submitted (its newest `messages`), up to
        `memories` memories nearest to `query` (or to the task), and the task. Each compilation is an event; an agent
        that is run again gets the recorded one. Waits while PostgreSQL is away or the projections are behind.

        Raises:
            InvalidInputError: the tier has no budget, or `memories` or `messages` is out of range.
        """
        if not (0 <= memories <= MAX_RESULTS and 0 <= messages <= MAX_MESSAGES):
            raise InvalidInputError(
                f"a context has up to {MAX_RESULTS} memories and {MAX_MESSAGES:,} messages, not {memories} and "
                f"{messages}"
            )
        clock = time.perf_counter_ns()
        system, task = well_formed(system), well_formed(task)
        query = well_formed(task[:QUERY_CHARS] if query is None else query)
        ordinal = self._journal.next_ordinal()
        asked = request_hash("compile", system, tier, task, query, memories, messages)
        # Also when the context is recorded: a provider's embedding has an ordinal of its own.
        vector = await self._memory.vector_of(query) if memories else None
        found = recorded(self._journal, ordinal, asked, ContextCompiled)
        if found is not None:
            return _from_record(found[1], await self._journal.resolve(found[1].context))
        remembered: list[MemoryEntry] = [] if vector is None else await self._memory.nearest(vector, memories)
        call = self._journal.call
        session = await self._recall.sessions.before_task(
            call.tenant_id, call.session_id, call.root_task_id or call.task_id, limit=messages
        )
        parts = ContextParts(task=task, system=system, session=session, memories=remembered)
        # In a thread: an exact count of a large context takes tens of milliseconds.
        compiled = await asyncio.to_thread(self._compile, parts, tier)
        body = ContextCompiled(
            **stamp(self._journal, ordinal, asked),
            tier=tier,
            budget_tokens=compiled.budget_tokens,
            token_usage=compiled.token_usage,
            token_counter=compiled.token_counter,
            dropped=compiled.dropped,
            context=_content(compiled),
            duration_us=(time.perf_counter_ns() - clock) // 1000,
        )
        delivery = self._journal.delivery.delivery
        event = self._journal.event(body, "context", ordinal, delivery)
        await self._journal.record(f"{ordinal}.0@{delivery}", event)
        return compiled

    def _compile(self, parts: ContextParts, tier: str) -> CompiledContext:
        return WorkingContextCompiler(self._recall.counters.of(tier)).compile(parts, tier)


def task_text(task: Task) -> str:
    """A task as the last message of a context: its text, and its data as JSON."""
    return f"{task.text}\n\n{orjson.dumps(task.data).decode()}" if task.data else task.text


def _content(compiled: CompiledContext) -> dict[str, Json]:
    return {
        "system": compiled.system,
        "session": [asdict(turn) for turn in compiled.session],
        "memories": [asdict(memory) for memory in compiled.memories],
        "task": compiled.task,
    }


def _from_record(body: ContextCompiled, context: dict[str, Any]) -> CompiledContext:
    return CompiledContext(
        tier=body.tier,
        budget_tokens=body.budget_tokens,
        token_counter=body.token_counter,
        system=context["system"],
        session=tuple(Turn(**turn) for turn in context["session"]),
        memories=tuple(Remembered(**memory) for memory in context["memories"]),
        task=context["task"],
        token_usage=dict(body.token_usage),
        dropped=dict(body.dropped),
    )
