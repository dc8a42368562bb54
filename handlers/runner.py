"""Executes calls: an agent is run, or a question of the supervisor's is answered; the facts go out to be settled."""

import asyncio
import contextlib
import time

import structlog

from handlers.attempts import WORKER_LOST, lost_with_its_worker
from handlers.capabilities import capability_for, check_input, check_output
from handlers.context import HandOver, TaskContext
from handlers.journal import Journal
from handlers.llm import LlmService
from handlers.questions import Questions
from handlers.recall import NoSessions, Recall
from handlers.registry import AgentRegistry
from handlers.steps import jsonable
from handlers.supervisor import Rules
from handlers.tokens import TokenCounters
from handlers.tracing import ExecutionTracer
from schemas.bodies import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    EventBody,
    EventParked,
    HandoffProposed,
    SupervisorAnswered,
)
from schemas.call import Call, SubtaskResult
from schemas.content import seal
from schemas.errors import StaleLeaseError, UnavailableError, words_of
from schemas.event import AgentEvent
from schemas.task import Task
from streams.connection import Streams
from streams.subscriber import TakenCall

logger = structlog.get_logger(__name__)

MAX_DELIVERIES = 5
"""A call that was given out this often, and whose workers all died, is not run again: it may be what kills them."""


_EXITS = (SystemExit, BaseExceptionGroup)
"""An agent that leaves with these fails like any other: it must not take its worker and the runs beside it along."""


class AgentRunner:
    """Executes calls. `handle` is a FastStream handler; what it returns settles the call."""

    def __init__(
        self,
        streams: Streams,
        registry: AgentRegistry,
        llm: LlmService,
        *,
        lease_ms: int,
        tracer: ExecutionTracer | None = None,
        recall: Recall | None = None,
        rules: Rules | None = None,
    ) -> None:
        self._streams = streams
        self._registry = registry
        self._llm = llm
        self._lease_ms = lease_ms
        self._tracer = tracer
        self._recall = recall or Recall(NoSessions(), TokenCounters(llm.tiers))
        self._questions = Questions(streams, registry, llm, rules)

    async def handle(self, taken: TakenCall) -> list[AgentEvent]:
        """Run the agent of a call.

        Raises:
            StaleLeaseError: another worker has the call now; nothing is to be written.
            UnavailableError: Redis is away; the call will be delivered again.
        """
        clock = time.perf_counter_ns()
        journal = Journal(self._streams, taken, lease_ms=self._lease_ms)
        try:
            bodies = await self._run(journal, clock)
        except (StaleLeaseError, UnavailableError):
            raise
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            assert current is not None
            if taken.delivery.cancelled:
                # Its task has ended. The lease is still ours, so that what was done so far can be settled.
                current.uncancel()
                bodies = [self._cancelled(journal, clock)]
            elif current.cancelling() or taken.call.kind != "agent":
                raise
            else:
                # The agent's own doing: something that it waited for was cancelled.
                bodies = [self._failed(journal, clock, error)]
        except (Exception, *_EXITS) as error:
            if taken.call.kind != "agent":
                raise
            bodies = [self._failed(journal, clock, error)]
        finally:
            await journal.close()
        logger.debug(
            "call_handled",
            tenant=taken.call.tenant_id,
            session=taken.call.session_id,
            task=taken.call.task_id,
            agent=taken.call.agent_id,
            call=taken.call.call_id,
            delivery=taken.delivery.delivery,
            outcome=bodies[0].type,
            duration_us=_since(clock),
        )
        events = journal.final([journal.event(body, "end", n) for n, body in enumerate(bodies)])
        begun = events[: len(events) - len(bodies)]
        if taken.call.kind == "agent":
            taken.instead = lambda error: [*begun, journal.event(self._failed(journal, clock, error), "end", 0)]
        return events

    async def _run(self, journal: Journal, clock: int) -> list[EventBody]:
        call = journal.call
        if journal.delivery.steps:
            await journal.load()
        given_up = journal.delivery.delivery > MAX_DELIVERIES
        if given_up or journal.delivery.cancelled:
            lost = lost_with_its_worker(journal)
            if lost is not None:
                journal.set_aside(lost)
        if given_up:
            text = f"{MAX_DELIVERIES} workers died or lost their lease while running this call"
            # Parked as well, so that a person can look at what kills workers; the task goes on with the failure.
            parked = EventParked(
                reader="worker",
                position="",
                event_id=call.ordered_by,
                event_type="call",
                attempts=MAX_DELIVERIES,
                error=text,
                call_id=call.call_id,
            )
            return [self._lost(journal, clock, text), parked]
        if journal.delivery.cancelled:
            return [self._cancelled(journal, clock)]
        if call.kind != "agent":
            return [await self._questions.answer(journal)]
        journal.announce()
        agent = self._registry.get(call.agent_id)
        task = Task(
            tenant_id=call.tenant_id,
            session_id=call.session_id,
            task_id=call.task_id,
            type=call.task_type,
            text=await journal.resolve(call.text),
            data=await journal.resolve(call.data) or {},
            priority=call.priority,
            subtask=call.subtask,
        )
        handoff = call.handoff
        if handoff is not None:
            handoff = handoff.model_copy(update={"content": await journal.resolve(handoff.content)})
        capability = capability_for(agent.registration, task, handoff)
        check_input(capability, task, handoff)
        context = TaskContext(journal, self._llm, self._recall, task, handoff, await self._prerequisites(journal))
        with self._traced(call):
            result = await agent.invoke(task, context)
        handed_over = isinstance(result, HandOver)
        if not handed_over:
            check_output(capability, jsonable(result))
        completed = AgentCompleted(
            agent_id=call.agent_id,
            call_id=call.call_id,
            delivery=journal.delivery.delivery,
            result=None if handed_over else seal(jsonable(result)),
            handed_over=handed_over,
            duration_us=_since(clock),
        )
        if isinstance(result, HandOver):
            return [
                completed,
                HandoffProposed(call_id=call.call_id, payload=result.proposal, given=tuple(journal.given)),
            ]
        return [completed]

    def _traced(self, call: Call) -> contextlib.AbstractContextManager[None]:
        if self._tracer is None:
            return contextlib.nullcontext()
        return self._tracer.trace_agent_execution(
            call.agent_id, call.tenant_id, call.session_id, task_id=call.task_id, call_id=call.call_id
        )

    @classmethod
    def _lost(cls, journal: Journal, clock: int, text: str) -> EventBody:
        call = journal.call
        if call.kind == "agent":
            return cls._failure(journal, clock, WORKER_LOST, text)
        return SupervisorAnswered(
            call_id=call.call_id,
            question=call.kind,
            delivery=journal.delivery.delivery,
            error=f"{WORKER_LOST}: {text}",
            duration_us=_since(clock),
        )

    @staticmethod
    async def _prerequisites(journal: Journal) -> tuple[SubtaskResult, ...]:
        return tuple(
            [
                result.model_copy(update={"result": await journal.resolve(result.result)})
                for result in journal.call.results
            ]
        )

    @staticmethod
    def _cancelled(journal: Journal, clock: int) -> EventBody:
        call, delivery = journal.call, journal.delivery.delivery
        if call.kind != "agent":
            return SupervisorAnswered(
                call_id=call.call_id,
                question=call.kind,
                delivery=delivery,
                error="the task has ended",
                duration_us=_since(clock),
            )
        return AgentCancelled(
            agent_id=call.agent_id, call_id=call.call_id, delivery=delivery, duration_us=_since(clock)
        )

    @classmethod
    def _failed(cls, journal: Journal, clock: int, error: BaseException) -> AgentFailed:
        return cls._failure(journal, clock, type(error).__name__, words_of(error))

    @staticmethod
    def _failure(journal: Journal, clock: int, error_class: str, error: str) -> AgentFailed:
        return AgentFailed(
            agent_id=journal.call.agent_id,
            call_id=journal.call.call_id,
            delivery=journal.delivery.delivery,
            error_class=error_class,
            error=error[:2000],
            duration_us=_since(clock),
        )


def _since(clock: int) -> int:
    return (time.perf_counter_ns() - clock) // 1000
