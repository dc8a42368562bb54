"""What an agent gets beside its task: the LLM, durable steps, and the way to hand over."""

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handlers.compiler import CompiledContext
from handlers.context_manager import ContextManager, task_text
from handlers.journal import Journal
from handlers.llm import LlmClient, LlmService, Tier
from handlers.memory import AgentMemory
from handlers.recall import Recall
from handlers.session import AgentSession
from handlers.steps import durable_step, jsonable, request_hash
from schemas.call import SubtaskResult
from schemas.content import Json, seal
from schemas.handoff import HandoffProposal
from schemas.task import Task


@dataclass(frozen=True, slots=True)
class HandOver:
    """What `context.hand_over` returns, for `execute` to return in turn."""

    proposal: HandoffProposal


class TaskContext:
    """One run of an agent.

    Attributes:
        llm: `await context.llm.complete(text, system=…, tier="fast")`.
        memory: `await context.memory.store(text)`, `await context.memory.search(query, k=5)`.
        session: `await context.session.set(key, value)`, `await context.session.get(key)`.
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
        recall: Recall,
        task: Task,
        handoff: HandoffProposal | None,
        results: tuple[SubtaskResult, ...] = (),
    ) -> None:
        call = journal.call
        self._journal = journal
        self._task_text = task_text(task)
        self.llm = LlmClient(service, journal)
        self.memory = AgentMemory(journal, self.llm, recall.embedder, recall.memories)
        self.session = AgentSession(journal, recall.sessions)
        self._contexts = ContextManager(journal, recall, self.memory)
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
        asked = request_hash(name, jsonable(args), jsonable(kwargs))

        async def work() -> Json:
            ran = fn(*args, **kwargs) if inspect.iscoroutinefunction(fn) else asyncio.to_thread(fn, *args, **kwargs)
            return jsonable(await ran)

        return await durable_step(self._journal, self._journal.next_ordinal(), name, asked, work)

    async def compile(
        self,
        *,
        system: str = "",
        tier: Tier = "fast",
        task: str | None = None,
        query: str | None = None,
        memories: int = 20,
        messages: int = 500,
    ) -> CompiledContext:
        """The session, the memories and the task, fitted into the tier's token budget; see `ContextManager.compile`."""
        return await self._contexts.compile(
            system=system,
            tier=tier,
            task=self._task_text if task is None else task,
            query=query,
            memories=memories,
            messages=messages,
        )

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
