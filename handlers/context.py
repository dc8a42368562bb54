"""What an agent gets beside its task: the LLM, durable steps, and the way to hand over."""

import asyncio
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from handlers.journal import Journal
from handlers.llm import LlmClient, LlmService
from schemas.bodies import StepRecorded
from schemas.call import SubtaskResult
from schemas.content import Json, canonical_json, content_hash, seal
from schemas.errors import InvalidInputError
from schemas.handoff import HandoffProposal


@dataclass(frozen=True, slots=True)
class HandOver:
    """What `context.hand_over` returns, for `execute` to return in turn."""

    proposal: HandoffProposal


class TaskContext:
    """One run of an agent.

    Attributes:
        llm: `await context.llm.complete(text, system=…, tier="fast")`.
        handoff: the accepted handoff that started this run (`.content`, `.source_agent_id`, …), or None.
        call_chain: who worked on the task so far, this agent last.
        results: of the steps that this step of a decomposed task depends on (`.description`, `.agent_id`, `.result`).
        repair_reasons: why the handoff that this agent proposed before was rejected; empty on a first run.
        delivery: 1, or more if earlier workers died while running this.
    """

    def __init__(
        self,
        journal: Journal,
        service: LlmService,
        handoff: HandoffProposal | None,
        results: tuple[SubtaskResult, ...] = (),
    ) -> None:
        call = journal.call
        self._journal = journal
        self.llm = LlmClient(service, journal)
        self.tenant_id = call.tenant_id
        self.session_id = call.session_id
        self.task_id = call.task_id
        self.agent_id = call.agent_id
        self.call_chain = call.call_chain
        self.repair_reasons = call.repair_reasons
        self.delivery = journal.delivery.delivery
        self.handoff = handoff
        self.results = results

    async def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Json:
        """Run `fn(*args, **kwargs)` once: its JSON-able result is recorded, and given back if the agent is run again.

        A plain function runs in a thread. Raises what `fn` raises (nothing is recorded then), and
        `InvalidInputError` if arguments or result are not JSON-able.
        """
        ordinal = self._journal.next_ordinal()
        asked = content_hash(canonical_json([name, jsonable(args), jsonable(kwargs)]))[:24]
        earlier = self._journal.recorded(ordinal)
        for event in earlier:
            if isinstance(event.body, StepRecorded) and event.body.request_hash == asked:
                self._journal.reuse(event)
                return await self._journal.resolve(event.body.result)
        clock = time.perf_counter_ns()
        result = fn(*args, **kwargs) if inspect.iscoroutinefunction(fn) else asyncio.to_thread(fn, *args, **kwargs)
        value = jsonable(await result)
        body = StepRecorded(
            call_id=self._journal.call.call_id,
            ordinal=ordinal,
            delivery=self.delivery,
            agent_id=self.agent_id,
            name=name,
            request_hash=asked,
            result=seal(value),
            duration_us=(time.perf_counter_ns() - clock) // 1000,
            diverged=bool(earlier),
        )
        await self._journal.record_step(body)
        return value

    def hand_over(
        self,
        target_agent_id: str,
        *,
        payload_type: str,
        content: Any,
        confidence: float = 1.0,
        reason: str = "",
    ) -> HandOver:
        """End this agent's turn and propose that `target_agent_id` goes on with `content`. Return what this returns."""
        return HandOver(
            HandoffProposal(
                source_agent_id=self.agent_id,
                target_agent_id=target_agent_id,
                tenant_id=self.tenant_id,
                payload_type=payload_type,
                content=seal(jsonable(content)),
                confidence=confidence,
                call_chain=self.call_chain,
                reason=reason,
            )
        )


def jsonable(value: Any) -> Json:
    """`value` as plain JSON types (pydantic models, dates, decimals and tuples included).

    Raises:
        InvalidInputError: some part of it cannot be expressed in JSON.
    """
    try:
        plain = to_jsonable_python(value)
        canonical_json(plain)
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidInputError(f"an agent's value must be JSON-able: {error}") from error
    return plain
