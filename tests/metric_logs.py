"""Logs from which every projected metric gets a sample, and what Prometheus reads of them."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from projections.exposition import MetricsCollector, Sample
from schemas.bodies import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    BudgetExceeded,
    ContextCompiled,
    EventDropped,
    EventParked,
    EventRedriven,
    HandoffAccepted,
    HandoffRejected,
    Subtask,
    TaskCancelled,
    TaskCompleted,
    TaskDecomposed,
    TaskFailed,
    TaskForked,
    TaskRouted,
    TaskSubmitted,
)
from schemas.money import TokenCounts, plain
from tests.logbook import RATE, Logbook

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def exposed(samples: Iterable[Sample]) -> Series:
    """What Prometheus reads: (name, labels) → value."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(samples))
    return read(generate_latest(registry).decode())


def read(text: str) -> Series:
    """A page of metrics: (name, labels) → value."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float:
    """The sum over all series of that name with these labels among theirs."""
    return sum(v for (n, have), v in series.items() if n == name and set(labels.items()) <= set(have))


HANDOFF: dict[str, Any] = {"target_agent_id": "checker", "payload_type": "research_result", "strictness": "strict"}


def log_of_everything(tenant: str) -> Logbook:
    """A log from which every metric gets a sample, but for those of `log_of_the_rest`."""
    book = Logbook(tenant)
    who: dict[str, Any] = {"agent_id": "writer", "delivery": 1, "duration_us": 2_000_000}

    def end(task: str, body: TaskCompleted | TaskFailed | TaskCancelled, *, decomposed: bool) -> None:
        if decomposed:
            book.add(TaskDecomposed(subtasks=(Subtask(description="one"),)), task=task)
        book.add(body, task=task)

    for n in range(1, 9):
        book.add(TaskSubmitted(task_type="t", text="do it"), task=f"t-{n}", source="user")
    book.add(AgentCompleted(call_id="c-1", result=1, **who), task="t-1", source="writer")
    book.add(AgentCompleted(call_id="c-2", result=1, **(who | {"duration_us": 1000})), task="t-1", source="writer")
    book.add(AgentFailed(call_id="c-3", error_class="E", error="no", **who), task="t-2", source="writer")
    book.add(AgentCancelled(call_id="c-4", **(who | {"duration_us": 10**9})), task="t-3", source="writer")
    accepted = HandoffAccepted(source_agent_id="writer", checks=(), call_id="c", **HANDOFF)
    book.add(accepted, task="t-1")
    book.add(accepted.model_copy(update={"verification": "unverified"}), task="t-1")
    rejected = HandoffRejected(source_agent_id="writer", reasons=("no",), returned_to="sender", **HANDOFF)
    book.add(rejected, task="t-1")
    book.add(rejected.model_copy(update={"verification": "unverified"}), task="t-1")
    done = TaskCompleted(result=1, routed_by="rules", agent_results={})
    end("t-1", done, decomposed=False)
    end("t-5", done.model_copy(update={"decomposed": True}), decomposed=True)
    end("t-2", TaskFailed(reason="no"), decomposed=False)
    end("t-6", TaskFailed(reason="no"), decomposed=True)
    end("t-3", TaskCancelled(), decomposed=True)
    compiled = ContextCompiled(
        call_id="c-1",
        ordinal=0,
        delivery=1,
        agent_id="writer",
        tier="reasoning",
        budget_tokens=32_000,
        token_usage={"total": 10},
        token_counter="bytes",
        dropped={},
        context={},
        request_hash="0",
        duration_us=250_000,
    )
    book.add(compiled, task="t-1", source="writer")
    book.attempt(task="t-1", call="c-1", tokens=TokenCounts(input_uncached=60, cache_read=30, output_reasoning=10))
    book.attempt(task="t-1", call="c-1", status="error", tokens=None, cost_usd="0", cost_status="not_billed")
    book.attempt(task="t-1", call="c-1", cost_usd=None, cost_status="unpriced")
    book.attempt(task="t-1", call="c-1", status="cancelled", cost_usd=None, cost_status="unknown", tokens=None)
    book.attempt(task="t-1", call="c-1", status="unknown", cost_usd=None, cost_status="unknown", tokens=None)
    routed = TaskRouted(agent_id="checker", call_id="c", routed_by="rules", confidence=1, reasoning="")
    book.add(routed, task="t-1")
    origin: dict[str, Any] = {"reader": "decider", "position": "1-0", "event_id": "e", "event_type": "task.submitted"}
    for _ in range(4):
        book.add(EventParked(attempts=4, error="no", **origin), task="t-7")
    book.add(EventRedriven(parked_id="1-0", **origin), task="t-7")
    book.add(EventDropped(parked_id="2-0", error="no", **origin), task="t-7")
    return book


def log_of_the_rest(tenant: str) -> Logbook:
    """A log with budgets, and with entries that cannot be read."""
    book = Logbook(tenant)
    write_budgets(book)
    write_unreadable(book)
    return book


def fork(book: Logbook, task: str, budget_usd: str | None) -> None:
    body = TaskForked(task_type="t", text="again", origin_task_id="t-1", root_task_id="t-1", budget_usd=budget_usd)
    book.add(body, task=task, source="user")


def write_budgets(book: Logbook) -> None:
    """Five forks with a budget and one without: one ends within it, two by it, one is cancelled, one goes on."""
    for task in ("b-within", "b-spent", "b-unpriced", "b-cancelled", "b-open"):
        fork(book, task, plain(RATE * 150))
    fork(book, "b-none", None)
    for task in ("b-within", "b-spent", "b-cancelled", "b-open", "b-none"):
        book.attempt(task=task, call="c", agent="writer", spent=100)
    for _ in range(2):
        book.attempt(task="b-spent", call="c", agent="writer", spent=100)
    book.attempt(task="b-open", call="c", agent="writer", status="error", cost_usd="0", cost_status="not_billed")
    book.attempt(task="b-open", call="c", agent="writer", status="unknown", cost_usd=None, cost_status="unknown")
    asked: dict[str, Any] = {"call_id": "c", "ordinal": 3, "delivery": 1, "agent_id": "writer", "tier": "fast"}
    asked |= {"requested_model": "openai/small", "budget_usd": plain(RATE * 150)}
    for task, reason, spent in (("b-spent", "spent", 300), ("b-spent", "spent", 300), ("b-unpriced", "unpriced", 0)):
        book.add(BudgetExceeded(because=reason, spent_usd=plain(RATE * spent), **asked), task=task, source="writer")
    book.add(TaskCompleted(result=1, routed_by="rules", agent_results={}), task="b-within")
    for task in ("b-spent", "b-unpriced", "b-none"):
        book.add(TaskFailed(reason="no"), task=task)
    book.add(TaskCancelled(), task="b-cancelled")
    book.attempt(task="b-cancelled", call="c", agent="writer", spent=100)


UNREADABLE: dict[str, list[dict[str, str]]] = {
    "unknown_type": [{"type": "task.imagined"}, {"type": "task.dreamt"}],
    "unknown_version": [{"v": "99"}],
    "no_task": [{"task": ""}],
    "malformed_envelope": [{"at": "yesterday"}],
    "malformed_body": [{"body": "{}"}],
    "not_text": [{"session": "\x00"}],
}


def write_unreadable(book: Logbook) -> None:
    """Entries that make no event: a good one's fields, changed; and one without fields that we know."""
    good = next(fields for n in range(len(book)) if (fields := book.fields(n))["type"] == "task.failed")
    for change in (change for changes in UNREADABLE.values() for change in changes):
        book.add_raw(good | change)
    book.add_raw({"data": "somebody else's"})
